// The noise of a weight: element e of stream s takes half-word e % 8 of the Philox call with counter (e / 8,
// s, 0).
#pragma once

#include <cstdint>

#include "core/runtime/groups.h"
#include "core/train/philox.h"

namespace diffq_fast {

enum class NoiseKind : int { uniform = 0, gaussian = 1 };

// Elements that one Philox call serves: 16 bits each.
constexpr int64_t kCallElements = 8;

// Where noise comes from, and which distribution it has.
struct NoiseSource {
    PhiloxKey key;
    uint32_t stream;
    NoiseKind noise_kind;
};

// z[i] = the noise of the span's element i. Uniform: (h + 1/2) / 65536 - 1/2, exact. Gaussian: Box-Muller on
// the pair (e even, e + 1), halved; within 2e-6 of the real value.
void fill_noise(const NoiseSource& source, Span span, float* z, int threads);

}  // namespace diffq_fast
