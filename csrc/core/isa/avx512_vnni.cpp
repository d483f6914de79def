// AVX-512 with VNNI, whose products of bytes the rows of packed levels are made with: the rest is AVX-512's.
#include "core/isa/kernels.h"
#include "core/isa/targets.h"

#ifdef DIFFQ_X86_VECTORS
#include <algorithm>
#include <limits>

#include "core/isa/avx512_intrinsics.h"

#ifdef __clang__
DIFFQ_BEGIN_TARGET(DIFFQ_AVX512_VNNI_FEATURES)
#else
DIFFQ_BEGIN_TARGET(DIFFQ_AVX512_VNNI_FEATURES ",prefer-vector-width=512")
#endif

namespace diffq_fast {
namespace avx512_vnni {

constexpr int kLanes = 16;

#include "core/simd/vectors.h"

// sums += four levels times four whole numbers, in each lane.
DIFFQ_INLINE __m512i dot_fours(__m512i sums, __m512i levels, __m512i whole) {
    return _mm512_dpbusd_epi32(sums, levels, whole);
}
constexpr PanelForm kPanelForm = {kMostPanelParts, kMostPanelVectors, 8, false, 2.5};
// In loops over twelve sums, GCC 12 moves each one twice around the intrinsic.
DIFFQ_INLINE void dot_panel_fours(__m512i& sums, __m512i levels, __m512i whole) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(levels), "v"(whole));
}

// clang-format off
#include "core/scalar/row_levels.h"
#include "core/scalar/row_products.h"
#include "core/simd/eights.h"
#include "core/simd/eight_products.h"
#include "core/simd/wide_levels.h"
#include "core/simd/byte_levels.h"
#include "core/simd/wide_pieces.h"
#include "core/simd/pieces.h"
#include "core/simd/eight_pairs.h"
#include "core/simd/wide_products.h"
#include "core/simd/wide_panels.h"
// clang-format on

static Kernels with_rows(Kernels made) {
    made.name = "avx512_vnni";
    made.multiply_row = multiply_row;
    made.multiply_panel = multiply_panel;
    made.panels = kPanelForm;
    return made;
}

}  // namespace avx512_vnni

const Kernels* avx512_vnni_kernels() {
    static const Kernels kernels = avx512_vnni::with_rows(*avx512_kernels());
    return &kernels;
}

}  // namespace diffq_fast

DIFFQ_END_TARGET

#else

namespace diffq_fast {

const Kernels* avx512_vnni_kernels() {
    return nullptr;
}

}  // namespace diffq_fast

#endif
