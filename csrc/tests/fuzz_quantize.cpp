// Any floats, widths and ranges: every instruction set gives the scalar levels and weights, bit for bit,
// inside the words and planes that they are packed to.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/dispatch.h"
#include "core/packed_levels.h"
#include "core/streams.h"

using namespace diffq_fast;

namespace {

struct Result {
    std::vector<uint32_t> words;
    std::vector<float> weights;
};

Result run(const Packing& packing, std::vector<float>& weights, const float* range, bool per_group) {
    Result result{std::vector<uint32_t>(static_cast<size_t>(packing.word_count)),
                  std::vector<float>(weights.size())};
    const Floats from{weights.data(), packing.count, DType::float32};
    const Floats to{result.weights.data(), packing.count, DType::float32};
    if (!quantize_pack(packing, from, range, per_group, result.words.data())) std::abort();
    if (!unpack_dequantize(packing, result.words.data(), range, per_group, to)) std::abort();
    return result;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 12) return 0;
    const int64_t count = 1 + (data[0] | (data[1] & 7) << 8), group_size = data[2] % 20;
    const bool per_group = data[3] & 1;
    const int64_t groups = group_count(count, group_size);
    data += 4;
    size -= 4;
    std::vector<uint8_t> widths(static_cast<size_t>(groups));
    std::vector<float> weights(static_cast<size_t>(count)),
        range(static_cast<size_t>(2 * (per_group ? groups : 1)));
    for (size_t i = 0; i < widths.size(); ++i) widths[i] = static_cast<uint8_t>(1 + data[i % size] % 16);
    for (size_t i = 0; i < weights.size(); ++i) std::memcpy(&weights[i], data + i * 4 % (size - 3), 4);
    for (size_t i = 0; i < range.size(); ++i) std::memcpy(&range[i], data + i * 4 % (size - 3), 4);
    const Streams streams(widths.data(), count, group_size, 1);
    const Packing packing{widths.data(), count, group_size, streams.words(), 1};
    Result expected;
    for (const Kernels* kernels : supported_kernels()) {
        use_kernels(kernels->name);
        const Result got = run(packing, weights, range.data(), per_group);
        if (kernels == supported_kernels().front()) expected = got;
        if (got.words != expected.words) std::abort();
        for (size_t i = 0; i < weights.size(); ++i) {
            const float a = got.weights[i], b = expected.weights[i];
            if (std::memcmp(&a, &b, sizeof a) != 0 && (a == a || b == b))
                std::abort();  // which NaN does not matter
        }
    }
    return 0;
}
