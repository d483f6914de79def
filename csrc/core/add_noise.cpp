#include "core/add_noise.h"

#include "core/memory.h"
#include "core/thread_pool.h"

namespace diffq_fast {
namespace {

// amplitudes[g] = range of group first_group + g * its step, for one block's groups.
void make_amplitudes(const NoiseArguments& arguments, const float* logits, const float* range,
                     int64_t first_group, int64_t groups, float* amplitudes) {
    steps_from_logits(logits + first_group, groups, arguments.rule, amplitudes);
    if (arguments.per_group) {
        const float* rows = range + 2 * first_group;
        for (int64_t g = 0; g < groups; ++g) amplitudes[g] *= rows[2 * g + 1] - rows[2 * g];
    } else {
        const float length = range[1] - range[0];
        for (int64_t g = 0; g < groups; ++g) amplitudes[g] *= length;
    }
}

void add_noise_to_chunk(const NoiseArguments& arguments, size_t index, const float* range, const Chunk& chunk,
                        void* noisy) {
    const Floats& weight = arguments.weights[index];
    float amplitudes[kNoiseBlock], amplitude[kNoiseBlock], z[kNoiseBlock], buffer[kNoiseBlock],
        result[kNoiseBlock];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kNoiseBlock) {
        const int64_t size = std::min(kNoiseBlock, chunk.end - begin);
        make_amplitudes(arguments, arguments.logits[index], range, group_of(begin, arguments.group_size),
                        groups_touched(begin, size, arguments.group_size), amplitudes);
        spread(amplitudes, begin, size, arguments.group_size, amplitude);
        noise_block(arguments.key, arguments.streams[index], begin, size, arguments.kind, z);
        const float* values = load_floats(weight.data, weight.dtype, begin, size, buffer);
        float* out = weight.dtype == DType::float32 ? static_cast<float*>(noisy) + begin : result;
        for (int64_t i = 0; i < size; ++i) out[i] = values[i] + amplitude[i] * z[i];
        if (out == result) store_floats(result, noisy, weight.dtype, begin, size);
    }
}

}  // namespace

void add_noise(const NoiseArguments& arguments, const std::vector<void*>& noisy) {
    std::vector<ChunkGrid> grids;
    std::vector<const float*> ranges;
    TaskTable table;
    const float* range = arguments.range;
    for (const Floats& weight : arguments.weights) {
        expect_writes(noisy[grids.size()], weight.count * item_size(weight.dtype));
        grids.emplace_back(weight.count, arguments.group_size);
        table.append(grids.back().chunks());
        ranges.push_back(range);
        range += 2 * (arguments.per_group ? group_count(weight.count, arguments.group_size) : 1);
    }
    const int threads = threads_for(total_count(arguments.weights), arguments.threads);
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.find(task);
        add_noise_to_chunk(arguments, place.list, ranges[place.list], grids[place.list].at(place.piece),
                           noisy[place.list]);
    });
}

}  // namespace diffq_fast
