// logit -> width, by the logit's place among thresholds that the caller knows: no width is computed here, so
// that it does not depend on whose sigmoid is used.
#pragma once

#include <cstdint>

#include "core/isa/kernels.h"

namespace diffq_fast {

// widths[i] as WidthThresholds says; doubts[w] = 1 where logits 64 w ... 64 w + 63 hold one that it does not
// decide.
void find_widths(const WidthThresholds& thresholds, const float* logits, int64_t count, uint8_t* widths,
                 uint8_t* doubts, int threads);

}  // namespace diffq_fast
