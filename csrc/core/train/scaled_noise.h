// Weights plus noise that is scaled by one amplitude for each group, block by block.
#pragma once

#include "core/runtime/dispatch.h"
#include "core/runtime/groups.h"

namespace diffq_fast {

// amplitudes[0] belongs to the run's first group; kReadBehind floats behind them are readable. Where the
// block's groups are whole, or all of it lies in one, they are spread on the way; else before it.
inline void add_scaled_noise(const NoiseRun& run, const float* weights, const float* amplitudes,
                             int64_t group_size, bool past_cache, float* noisy) {
    const Span span = run.span;
    if (group_size == 0 || groups_touched(span, group_size) == 1) {
        kernels().add_noise(run, weights, amplitudes, 0, past_cache, noisy);
    } else if (span.begin % group_size == 0 && span.count % group_size == 0 &&
               span.begin % kCallElements == 0) {
        kernels().add_noise(run, weights, amplitudes, group_size, past_cache, noisy);
    } else {
        float amplitude[kBlock];
        spread(amplitudes, span, group_size, amplitude);
        kernels().add_noise(run, weights, amplitude, 1, past_cache, noisy);
    }
}

}  // namespace diffq_fast
