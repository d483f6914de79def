#include "core/train/noise.h"

#include <algorithm>

#include "core/runtime/dispatch.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {

void fill_noise(const NoiseSource& source, Span span, float* z, int threads) {
    expect_writes(z, span.count * int64_t{sizeof(float)});
    parallel_for((span.count + kTaskElements - 1) / kTaskElements, threads, [&](int64_t task) {
        const int64_t begin = task * kTaskElements, count = std::min(kTaskElements, span.count - begin);
        kernels().make_noise({source, {span.begin + begin, count}}, z + begin);
    });
}

}  // namespace diffq_fast
