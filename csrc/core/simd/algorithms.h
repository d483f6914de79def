// All algorithms over vector words, in the order of their use of one another, but for products of packed
// rows, which differ more. Included inside the namespace and target region of an instruction set, after its
// words.
// clang-format off
#include "core/simd/past_cache.h"
#include "core/simd/elementary.h"
#include "core/simd/steps.h"
#include "core/simd/bit_slopes.h"
#include "core/simd/noise.h"
#include "core/simd/training.h"
#include "core/simd/range.h"
#include "core/simd/bit_sums.h"
#include "core/simd/floats.h"
#include "core/simd/quantize.h"
#include "core/simd/widths.h"
#include "core/simd/words.h"
#include "core/simd/coding.h"
#include "core/simd/activations.h"
#include "core/simd/planes.h"
#include "core/scalar/row_levels.h"
#include "core/scalar/packed_rows.h"
#include "core/scalar/row_products.h"
// clang-format on
