// The ranges of weights or of their groups: the smallest and the largest element.
#pragma once

#include <cstdint>
#include <vector>

#include "core/runtime/groups.h"

namespace diffq_fast {

// One range per weight: ranges [weights][2] = (lo, hi); extremes [weights][4] = first index of lo, first
// index of hi, how many elements equal lo, how many equal hi. One per group: ranges [groups of all
// weights][2]; extremes is not used. A NaN anywhere makes lo = hi = NaN (extremes 0); an empty weight gives
// zeros.
void weight_range(const std::vector<Floats>& weights, const Grouping& grouping, float* ranges,
                  int64_t* extremes, int threads);

}  // namespace diffq_fast
