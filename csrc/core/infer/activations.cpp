#include "core/infer/activations.h"

#include <algorithm>

#include "core/runtime/dispatch.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kElementsPerTask = int64_t{1} << 14;

void round_vector(const float* vector, int64_t columns, float* rounded) {
    for (int64_t begin = 0; begin < columns; begin += kBlockColumns) {
        const int64_t length = std::min(kBlockColumns, columns - begin);
        int8_t whole[kBlockColumns];
        const float unit = kernels().round_block(vector + begin, length, whole);
        for (int64_t i = 0; i < length; ++i) rounded[begin + i] = static_cast<float>(whole[i]) * unit;
    }
}

}  // namespace

void round_activations(const float* vectors, int64_t count, int64_t columns, float* rounded, int threads) {
    if (columns == 0) return;
    const int64_t at_once = std::max<int64_t>(1, kElementsPerTask / columns);
    parallel_for((count + at_once - 1) / at_once, threads, [&](int64_t task) {
        const int64_t end = std::min((task + 1) * at_once, count);
        for (int64_t v = task * at_once; v < end; ++v)
            round_vector(vectors + v * columns, columns, rounded + v * columns);
    });
}

}  // namespace diffq_fast
