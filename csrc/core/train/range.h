// The smallest and largest element of weights, or of each of their groups.
#pragma once

#include <cstdint>
#include <vector>

#include "core/runtime/groups.h"

namespace diffq_fast {

// per_group false: range [weights][2] = (lo, hi); extremes [weights][4] = first index of lo, first index of
// hi, how many elements equal lo, how many equal hi. per_group true: range [groups of all weights][2];
// extremes is not used. A NaN anywhere makes lo = hi = NaN (extremes 0); an empty weight gives zeros.
void weight_range(const std::vector<Floats>& weights, int64_t group_size, bool per_group, float* range,
                  int64_t* extremes, int threads);

}  // namespace diffq_fast
