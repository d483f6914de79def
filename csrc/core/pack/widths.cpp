#include "core/pack/widths.h"

#include <algorithm>

#include "core/runtime/dispatch.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {

static_assert(kTaskElements % kWidthWindow == 0, "a window lies in one task");

void find_widths(const WidthThresholds& thresholds, const float* logits, int64_t count, uint8_t* widths,
                 uint8_t* doubts, int threads) {
    parallel_for((count + kTaskElements - 1) / kTaskElements, threads, [&](int64_t task) {
        const int64_t begin = task * kTaskElements, size = std::min(kTaskElements, count - begin);
        kernels().find_widths(thresholds, logits + begin, size, widths + begin,
                              doubts + begin / kWidthWindow);
    });
}

}  // namespace diffq_fast
