// Activations in eight bits: each block of kBlockColumns of a vector is rounded to whole numbers from -127 to
// 127 times its unit, its largest absolute value over 127. Where a value of a block is not finite, its unit
// is NaN.
#pragma once

#include <cstdint>

namespace diffq_fast {

// rounded [count][columns]: what the whole numbers stand for.
void round_activations(const float* vectors, int64_t count, int64_t columns, float* rounded, int threads);

}  // namespace diffq_fast
