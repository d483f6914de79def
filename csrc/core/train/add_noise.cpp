#include "core/train/add_noise.h"

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"
#include "core/train/scaled_noise.h"

namespace diffq_fast {
namespace {

// What a weight's tasks share.
struct NoisyWeight {
    const NoiseArguments& arguments;
    Floats weight;
    const float* logits;
    const float* ranges;
    NoiseSource source;
    Floats noisy;
    bool past_cache;
};

// amplitudes[g] = length of its range * its step, for each group that the span touches.
void make_amplitudes(const NoisyWeight& to, Span span, float* amplitudes) {
    const Grouping& grouping = to.arguments.options.grouping;
    const int64_t begin = group_of(span.begin, grouping.group_size);
    const int64_t groups = groups_touched(span, grouping.group_size);
    kernels().make_steps(to.logits + begin, groups, to.arguments.options.rule, amplitudes);
    const float* range = grouping.range_of(to.ranges, begin);
    if (grouping.per_group) {
        for (int64_t g = 0; g < groups; ++g) amplitudes[g] *= range[2 * g + 1] - range[2 * g];
    } else {
        const float length = range[1] - range[0];
        for (int64_t g = 0; g < groups; ++g) amplitudes[g] *= length;
    }
}

void add_noise_to_chunk(const NoisyWeight& to, const Chunk& chunk) {
    const bool direct = to.noisy.dtype == DType::float32;
    float amplitudes[kBlock + kReadBehind], buffer[kBlock], result[kBlock];
    for_each_block_of(chunk, [&](Span span) {
        make_amplitudes(to, span, amplitudes);
        const float* weights = load_floats(to.weight, span, buffer);
        float* noisy = place_for_floats(to.noisy, span, result);
        add_scaled_noise({to.source, span}, weights, amplitudes, to.arguments.options.grouping.group_size,
                         direct && to.past_cache, noisy);
        if (!direct) store_floats(result, to.noisy, span);
    });
    kernels().finish_writes();
}

}  // namespace

void add_noise(const NoiseArguments& arguments, const std::vector<Floats>& noisy) {
    const Grouping& grouping = arguments.options.grouping;
    const int64_t total = total_count(arguments.weights);
    std::vector<NoisyWeight> weights;
    std::vector<Chunks> cuts;
    TaskTable table;
    const float* ranges = arguments.ranges;
    for (size_t i = 0; i < arguments.weights.size(); ++i) {
        const Floats& weight = arguments.weights[i];
        expect_writes(noisy[i].data, noisy[i].bytes());
        weights.push_back({arguments,
                           weight,
                           arguments.logits[i],
                           ranges,
                           {arguments.key, arguments.streams[i], arguments.options.noise_kind},
                           noisy[i],
                           goes_past_cache(total)});
        cuts.emplace_back(weight.count, grouping.group_size);
        table.append(cuts.back().size());
        ranges += 2 * grouping.range_count(weight.count);
    }
    parallel_for(table.tasks(), threads_for(total, arguments.threads), [&](int64_t task) {
        const auto place = table.place_of(task);
        add_noise_to_chunk(weights[place.weight], cuts[place.weight].at(place.piece));
    });
}

}  // namespace diffq_fast
