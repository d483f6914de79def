// AVX-512 with VNNI and VBMI: packed rows are unpacked with few tables, and the rest is AVX-512's with VNNI.
#include "core/isa/kernels.h"
#include "core/isa/targets.h"

#ifdef DIFFQ_X86_VECTORS
#include <algorithm>
#include <limits>

#include "core/isa/avx512_intrinsics.h"

#ifdef __clang__
DIFFQ_BEGIN_TARGET(DIFFQ_AVX512_VBMI_FEATURES)
#else
DIFFQ_BEGIN_TARGET(DIFFQ_AVX512_VBMI_FEATURES ",prefer-vector-width=512")
#endif

namespace diffq_fast {
namespace avx512_vbmi {

constexpr int kLanes = 16;

#include "core/simd/vectors.h"

// sums += four levels times four whole numbers, in each lane.
DIFFQ_INLINE __m512i dot_fours(__m512i sums, __m512i levels, __m512i whole) {
    return _mm512_dpbusd_epi32(sums, levels, whole);
}

// clang-format off
#include "core/scalar/row_levels.h"
#include "core/scalar/row_products.h"
#include "core/simd/eights.h"
#include "core/simd/eight_products.h"
#include "core/simd/wide_levels.h"
#include "core/simd/byte_levels_vbmi.h"
#include "core/simd/wide_pieces.h"
#include "core/simd/pieces.h"
#include "core/simd/eight_pairs.h"
#include "core/simd/wide_products.h"
#include "core/simd/wide_panel_rows.h"
// clang-format on

static Kernels with_rows(Kernels made) {
    made.name = "avx512_vbmi";
    made.multiply_row = multiply_row;
    made.unpack_bytes = unpack_bytes;
    made.interleave_rows = interleave_rows;
    return made;
}

}  // namespace avx512_vbmi

const Kernels* avx512_vbmi_kernels() {
    static const Kernels kernels = avx512_vbmi::with_rows(*avx512_vnni_kernels());
    return &kernels;
}

}  // namespace diffq_fast

DIFFQ_END_TARGET

#else

namespace diffq_fast {

const Kernels* avx512_vbmi_kernels() {
    return nullptr;
}

}  // namespace diffq_fast

#endif
