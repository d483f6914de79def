// Portable C++: what every instruction set must equal, and what runs where there is no other.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/isa/kernels.h"

namespace diffq_fast {
namespace scalar {

constexpr const char* kName = "scalar";
constexpr int kLanes = 1;

// In the order of their use of one another.
// clang-format off
#include "core/scalar/vectors.h"
#include "core/simd/elementary.h"
#include "core/simd/steps.h"
#include "core/simd/bit_slopes.h"
#include "core/scalar/noise.h"
#include "core/scalar/training.h"
#include "core/scalar/range.h"
#include "core/scalar/bit_sums.h"
#include "core/simd/floats.h"
#include "core/scalar/quantize.h"
#include "core/simd/widths.h"
#include "core/scalar/words.h"
#include "core/scalar/coding.h"
#include "core/simd/activations.h"
#include "core/scalar/row_levels.h"
#include "core/scalar/packed_rows.h"
#include "core/scalar/row_products.h"
#include "core/scalar/whole_rows.h"
#include "core/scalar/row_panels.h"
#include "core/simd/planes.h"
#include "core/simd/table.h"
// clang-format on

}  // namespace scalar

const Kernels* scalar_kernels() {
    return &scalar::kKernels;
}

}  // namespace diffq_fast
