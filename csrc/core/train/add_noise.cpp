#include "core/train/add_noise.h"

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

// amplitudes[g] = range of group first_group + g * its step, for one block's groups.
void make_amplitudes(const NoiseArguments& arguments, const float* logits, const float* range,
                     int64_t first_group, int64_t groups, float* amplitudes) {
    kernels().make_steps(logits + first_group, groups, arguments.rule, amplitudes);
    if (arguments.per_group) {
        const float* rows = range + 2 * first_group;
        for (int64_t g = 0; g < groups; ++g) amplitudes[g] *= rows[2 * g + 1] - rows[2 * g];
    } else {
        const float length = range[1] - range[0];
        for (int64_t g = 0; g < groups; ++g) amplitudes[g] *= length;
    }
}

// Where the block's groups are whole, or all of it lies in one, their amplitudes are spread on the way; else
// before it.
void add_scaled_noise(const NoiseRun& run, const float* values, const float* amplitudes, int64_t group_size,
                      bool past_cache, float* out) {
    if (group_size == 0 || groups_touched(run.first, run.count, group_size) == 1) {
        kernels().add_noise(run, values, amplitudes, 0, past_cache, out);
    } else if (run.first % group_size == 0 && run.count % group_size == 0 && run.first % 8 == 0) {
        kernels().add_noise(run, values, amplitudes, group_size, past_cache, out);
    } else {
        float amplitude[kNoiseBlock];
        spread(amplitudes, run.first, run.count, group_size, amplitude);
        kernels().add_noise(run, values, amplitude, 1, past_cache, out);
    }
}

void add_noise_to_chunk(const NoiseArguments& arguments, size_t index, const float* range, const Chunk& chunk,
                        bool past_cache, const Floats& noisy) {
    const Floats& weight = arguments.weights[index];
    float amplitudes[kNoiseBlock + kReadBehind], buffer[kNoiseBlock], result[kNoiseBlock];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kNoiseBlock) {
        const int64_t size = std::min(kNoiseBlock, chunk.end - begin);
        make_amplitudes(arguments, arguments.logits[index], range, group_of(begin, arguments.group_size),
                        groups_touched(begin, size, arguments.group_size), amplitudes);
        const NoiseRun run{arguments.key, arguments.streams[index], begin, size, arguments.kind};
        const float* values = load_floats(weight.data, weight.dtype, begin, size, buffer);
        const bool direct = noisy.dtype == DType::float32;
        float* out = direct ? static_cast<float*>(noisy.data) + begin : result;
        add_scaled_noise(run, values, amplitudes, arguments.group_size, direct && past_cache, out);
        if (!direct) store_floats(result, noisy.data, noisy.dtype, begin, size);
    }
    kernels().finish_writes();
}

}  // namespace

void add_noise(const NoiseArguments& arguments, const std::vector<Floats>& noisy) {
    std::vector<ChunkGrid> grids;
    std::vector<const float*> ranges;
    TaskTable table;
    const float* range = arguments.range;
    for (const Floats& weight : arguments.weights) {
        const Floats& result = noisy[grids.size()];
        expect_writes(result.data, result.count * item_size(result.dtype));
        grids.emplace_back(weight.count, arguments.group_size);
        table.append(grids.back().chunks());
        ranges.push_back(range);
        range += 2 * (arguments.per_group ? group_count(weight.count, arguments.group_size) : 1);
    }
    const int64_t total = total_count(arguments.weights);
    const int threads = threads_for(total, arguments.threads);
    const bool past_cache = goes_past_cache(total);
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.find(task);
        add_noise_to_chunk(arguments, place.list, ranges[place.list], grids[place.list].at(place.piece),
                           past_cache, noisy[place.list]);
    });
}

}  // namespace diffq_fast
