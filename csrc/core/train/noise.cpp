#include "core/train/noise.h"

#include <algorithm>

#include "core/runtime/dispatch.h"
#include "core/runtime/memory.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {

void fill_noise(PhiloxKey key, uint32_t stream, int64_t first, int64_t count, NoiseKind kind, float* z,
                int threads) {
    constexpr int64_t kTask = 16 * kNoiseBlock;
    expect_writes(z, count * int64_t{sizeof(float)});
    parallel_for((count + kTask - 1) / kTask, threads, [&](int64_t task) {
        const int64_t begin = task * kTask, size = std::min(kTask, count - begin);
        kernels().make_noise({key, stream, first + begin, size, kind}, z + begin);
    });
}

}  // namespace diffq_fast
