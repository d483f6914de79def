// The noise of a weight: element e of stream s takes half-word e % 8 of the Philox call with counter (e / 8,
// s, 0).
#pragma once

#include <cstdint>

#include "core/train/philox.h"

namespace diffq_fast {

enum class NoiseKind : int { uniform = 0, gaussian = 1 };

// Elements whose noise is made and used at once.
constexpr int64_t kNoiseBlock = 1024;

// z[i] = the noise of element first + i, for i < count. Uniform: (h + 1/2) / 65536 - 1/2, exact. Gaussian:
// Box-Muller on the pair (e even, e + 1), halved; within 2e-6 of the real value.
void fill_noise(PhiloxKey key, uint32_t stream, int64_t first, int64_t count, NoiseKind kind, float* z,
                int threads);

}  // namespace diffq_fast
