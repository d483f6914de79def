#include "core/pack/widths.h"

#include <algorithm>

#include "core/runtime/dispatch.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {

void find_widths(const WidthSteps& steps, const float* logits, int64_t count, uint8_t* widths,
                 uint8_t* doubts, int threads) {
    constexpr int64_t kPart = 256 * kWidthWindow;
    parallel_for((count + kPart - 1) / kPart, threads, [&](int64_t task) {
        const int64_t first = task * kPart, size = std::min(kPart, count - first);
        kernels().find_widths(steps, logits + first, size, widths + first, doubts + first / kWidthWindow);
    });
}

}  // namespace diffq_fast
