// Does one operation of the core so many times, on one thread, for a counter of instructions to look at:
//   run_operation INSTRUCTION_SET OPERATION COUNT TIMES
// Without arguments: the names of the operations. What surrounds the operation is the same for any TIMES.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/pack/packed_levels.h"
#include "core/pack/planes.h"
#include "core/pack/streams.h"
#include "core/runtime/dispatch.h"
#include "core/train/add_noise.h"
#include "core/train/range.h"

using namespace diffq_fast;

namespace {

using Operation = std::function<void()>;
using Operations = std::map<std::string, std::function<Operation(int64_t count)>>;

constexpr int64_t kGroupSizes[] = {1, 8, 16, 128, 0};

template <typename Item>
std::vector<Item> room(int64_t count) {
    return std::vector<Item>(static_cast<size_t>(count));
}

std::vector<float> normal(int64_t count, uint32_t seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal_distribution(0, 0.05f);
    auto values = room<float>(count);
    for (float& value : values) value = normal_distribution(generator);
    return values;
}

// One weight and what its training step and its export read and write.
struct Data {
    int64_t count, group_size;
    std::vector<float> weights, gradients, logits, results, logit_gradients;
    std::vector<uint8_t> widths;
    std::vector<uint32_t> words;
    float range[2];
    int64_t extremes[4];

    Data(int64_t count_, int64_t group_size_, bool mixed)
        : count(count_),
          group_size(group_size_),
          weights(normal(count, 1)),
          gradients(normal(count, 2)),
          logits(normal(group_count(count, group_size), 3)),
          results(room<float>(count)),
          logit_gradients(logits.size()),
          widths(logits.size(), 8) {
        std::mt19937 generator(4);
        if (mixed) {
            for (uint8_t& width : widths) width = static_cast<uint8_t>(2 + generator() % 7);
        }
        words = room<uint32_t>(Streams(widths.data(), count, group_size, 1).words());
        find_range();
        quantize();
    }

    Floats floats(std::vector<float>& values) const { return {values.data(), count, DType::float32}; }
    Floats weight() { return floats(weights); }
    Packing packing() const {
        return {widths.data(), count, group_size, static_cast<int64_t>(words.size()), 1};
    }
    void find_range() { weight_range({weight()}, {0, false}, range, extremes, 1); }
    void quantize() { quantize_pack(packing(), weight(), range, false, words.data()); }
    void dequantize() { unpack_dequantize(packing(), words.data(), range, false, floats(results)); }
    NoiseArguments noise(NoiseKind noise_kind) {
        const NoiseOptions options{{group_size, false}, BitsRule(Param::bits, 2, 15), noise_kind};
        return {{weight()}, {logits.data()}, {1, 2}, {0}, range, options, 1};
    }
    void forward(NoiseKind noise_kind) { add_noise(noise(noise_kind), {floats(results)}); }
    void backward(NoiseKind noise_kind) {
        float nonfinite;
        add_noise_backward(noise(noise_kind), extremes, {floats(gradients)},
                           {{floats(results)}, {logit_gradients.data()}, &nonfinite});
    }
};

template <typename Run>
std::function<Operation(int64_t)> with_data(int64_t group_size, bool mixed, Run run) {
    return [=](int64_t count) {
        auto data = std::make_shared<Data>(count, group_size, mixed);
        return Operation([=] { run(*data); });
    };
}

std::function<Operation(int64_t)> planes(int bits, bool unpack) {
    return [=](int64_t count) {
        auto values = std::make_shared<std::vector<int16_t>>(static_cast<size_t>(count));
        std::mt19937 generator(5);
        for (int16_t& value : *values) value = static_cast<int16_t>(generator() & ((1u << bits) - 1));
        auto words =
            std::make_shared<std::vector<uint64_t>>(static_cast<size_t>((count / 2048 + 1) * bits * 32));
        const PlaneShape shape{count, bits, 64, 32};
        pack_planes(shape, values->data(), 2, words->data(), 1);
        if (unpack) return Operation([=] { unpack_planes(shape, words->data(), values->data(), 1); });
        return Operation([=] { pack_planes(shape, values->data(), 2, words->data(), 1); });
    };
}

Operations operations() {
    Operations all;
    for (const int64_t size : kGroupSizes) {
        const std::string group = " g=" + std::to_string(size);
        for (const NoiseKind noise_kind : {NoiseKind::uniform, NoiseKind::gaussian}) {
            const std::string name = (noise_kind == NoiseKind::uniform ? " uniform" : " gaussian") + group;
            all["forward" + name] = with_data(size, false, [=](Data& data) { data.forward(noise_kind); });
            all["backward" + name] = with_data(size, false, [=](Data& data) { data.backward(noise_kind); });
        }
    }
    all["range"] = with_data(0, false, [](Data& data) { data.find_range(); });
    for (const bool mixed : {false, true}) {
        const std::string widths = mixed ? " mixed" : " 8 bits";
        all["quantize_pack" + widths] = with_data(8, mixed, [](Data& data) { data.quantize(); });
        all["unpack_dequantize" + widths] = with_data(8, mixed, [](Data& data) { data.dequantize(); });
    }
    for (const int bits : {4, 8, 12}) {
        all["pack_planes " + std::to_string(bits) + " bits"] = planes(bits, false);
        all["unpack_planes " + std::to_string(bits) + " bits"] = planes(bits, true);
    }
    return all;
}

}  // namespace

int main(int argc, char** argv) {
    const Operations all = operations();
    if (argc == 1) {
        for (const auto& each : all) std::printf("%s\n", each.first.c_str());
        return 0;
    }
    if (argc != 5 || !use_kernels(argv[1]) || all.count(argv[2]) == 0) {
        std::fprintf(stderr, "run_operation: expected INSTRUCTION_SET OPERATION COUNT TIMES; %s\n",
                     "the set must be one that this machine runs, the operation one of those listed without "
                     "arguments");
        return 2;
    }
    const Operation operation = all.at(argv[2])(std::atoll(argv[3]));
    for (int time = std::atoi(argv[4]); time > 0; --time) operation();
#ifdef __clang__
    std::printf("%s\n", __VERSION__);
#else
    std::printf("GCC %s\n", __VERSION__);
#endif
    return 0;
}
