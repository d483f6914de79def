// AVX-512 (F, BW, DQ, VL): what differs from the other instruction sets.
#include "core/isa/kernels.h"
#include "core/isa/targets.h"
#include "core/runtime/memory.h"

#ifdef DIFFQ_X86_VECTORS
#include <algorithm>
#include <limits>

#include "core/isa/avx512_intrinsics.h"

#ifdef __clang__
DIFFQ_BEGIN_TARGET(DIFFQ_AVX512_FEATURES)
#else
DIFFQ_BEGIN_TARGET(DIFFQ_AVX512_FEATURES ",prefer-vector-width=512")
#endif

namespace diffq_fast {
namespace avx512 {

constexpr const char* kName = "avx512";
constexpr int kLanes = 16;

#include "core/simd/vectors.h"

// The low halves of 64-bit lanes times a constant.
DIFFQ_INLINE Wide mul_wide(Wide a, uint32_t factor) {
    return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(factor));
}
DIFFQ_INLINE Uint widen(Half value) {
    return (Uint)_mm512_cvtepu16_epi32((__m256i)value);
}
DIFFQ_INLINE Doubles doubles_of(FewFloats value) {
    return (Doubles)_mm512_cvtps_pd((__m256)value);
}
DIFFQ_INLINE Float multiply_add(Float a, Float b, Float c) {
    return (Float)_mm512_fmadd_ps(a, b, c);
}
// Square root of a positive, normal number within 3e-7 of it: an estimate to 14 bits and a step of Newton's,
// which leave the divider free.
DIFFQ_INLINE Float positive_root(Float a) {
    const Float inverse = (Float)_mm512_rsqrt14_ps(a), root = a * inverse;
    return root * multiply_add(root * inverse, splat(-0.5f), splat(1.5f));
}
// The second one where an argument is NaN.
DIFFQ_INLINE Float lesser(Float a, Float b) {
    return (Float)_mm512_min_ps(a, b);
}
DIFFQ_INLINE Float greater(Float a, Float b) {
    return (Float)_mm512_max_ps(a, b);
}
DIFFQ_INLINE Uint larger(Uint a, Uint b) {
    return (Uint)_mm512_max_epu32((__m512i)a, (__m512i)b);
}
// table: 16 floats.
DIFFQ_INLINE Float look_up(const float* table, Uint index) {
    return (Float)_mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(table));
}
DIFFQ_INLINE bool any_bit(Uint value) {
    return _mm512_test_epi32_mask((__m512i)value, (__m512i)value) != 0;
}
// table: 4096 slots.
DIFFQ_INLINE Uint look_up_slots(const uint32_t* table, Uint index) {
    return (Uint)_mm512_i32gather_epi32((__m512i)index, table, 4);
}
// Each state below 2^16 takes the next word: words go to the lanes that want one, in order.
DIFFQ_INLINE Uint take_words(Uint state, const uint16_t*& words) {
    const __mmask16 wanted = _mm512_cmplt_epu32_mask((__m512i)state, _mm512_set1_epi32(1 << 16));
    const __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
    const __m512i shifted = _mm512_slli_epi32((__m512i)state, 16);
    const __m512i taken = _mm512_or_si512(shifted, _mm512_maskz_expand_epi32(wanted, next));
    words += _mm_popcnt_u32(wanted);
    return (Uint)_mm512_mask_mov_epi32((__m512i)state, wanted, taken);
}
DIFFQ_INLINE void store_past_cache(Float value, float* to) {
    _mm512_stream_ps(to, value);
}

static void finish_writes() {
    _mm_sfence();
}

// sums += four levels times four whole numbers, in each lane.
DIFFQ_INLINE __m512i dot_fours(__m512i sums, __m512i levels, __m512i whole) {
    const __m512i even = _mm512_and_si512(levels, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(levels, 8);
    const __m512i with_even = _mm512_srai_epi16(_mm512_slli_epi16(whole, 8), 8);
    const __m512i pairs = _mm512_madd_epi16(odd, _mm512_srai_epi16(whole, 8));
    return _mm512_add_epi32(sums, _mm512_add_epi32(_mm512_madd_epi16(even, with_even), pairs));
}
// The same for levels of up to seven bits: pairs of products with 127 still fit in 16.
constexpr PanelForm kPanelForm = {kMostPanelParts, kMostPanelVectors, 7, false, 1.5};
DIFFQ_INLINE void dot_panel_fours(__m512i& sums, __m512i levels, __m512i whole) {
    const __m512i pairs = _mm512_maddubs_epi16(levels, whole);
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

constexpr int kTileVectors = 6;
DIFFQ_INLINE __m512 add_pairs(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
DIFFQ_INLINE FourFloats sums_of_four(const Float (&sums)[4]) {
    const __m512d first = _mm512_castps_pd(add_pairs((__m512)sums[0], (__m512)sums[1]));
    const __m512d second = _mm512_castps_pd(add_pairs((__m512)sums[2], (__m512)sums[3]));
    const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)),
                                          _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
    const __m256 halves =
        _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
    return (FourFloats)_mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

#include "core/simd/algorithms.h"
// clang-format off
#include "core/simd/eights.h"
#include "core/simd/eight_products.h"
#include "core/simd/packed_rows.h"
#include "core/simd/wide_levels.h"
#include "core/simd/byte_levels.h"
#include "core/simd/wide_rows.h"
#include "core/simd/wide_pieces.h"
#include "core/simd/pieces.h"
#include "core/simd/eight_pairs.h"
#include "core/simd/wide_products.h"
#include "core/simd/wide_panel_rows.h"
#include "core/simd/wide_panels.h"
#include "core/simd/float_products.h"
#include "core/simd/table.h"
// clang-format on

}  // namespace avx512

const Kernels* avx512_kernels() {
    return &avx512::kKernels;
}

}  // namespace diffq_fast

DIFFQ_END_TARGET

#else

namespace diffq_fast {

const Kernels* avx512_kernels() {
    return nullptr;
}

}  // namespace diffq_fast

#endif
