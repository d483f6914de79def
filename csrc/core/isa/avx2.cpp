// AVX2 with FMA: what differs from the other instruction sets.
#include "core/isa/kernels.h"
#include "core/isa/targets.h"
#include "core/isa/word_orders.h"
#include "core/runtime/memory.h"

#ifdef DIFFQ_X86_VECTORS
#include <immintrin.h>
#ifdef _MSC_VER  // clang-cl leaves these out where the whole file is not compiled for them
// clang-format off
#include <popcntintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <fmaintrin.h>
// clang-format on
#endif

#include <algorithm>
#include <limits>

DIFFQ_BEGIN_TARGET(DIFFQ_AVX2_FEATURES)

namespace diffq_fast {
namespace avx2 {

constexpr const char* kName = "avx2";
constexpr int kLanes = 8;

#include "core/simd/vectors.h"

// The low halves of 64-bit lanes times a constant.
DIFFQ_INLINE Wide mul_wide(Wide a, uint32_t factor) {
    return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
}
DIFFQ_INLINE Uint widen(Half value) {
    return (Uint)_mm256_cvtepu16_epi32((__m128i)value);
}
DIFFQ_INLINE Doubles doubles_of(FewFloats value) {
    return (Doubles)_mm256_cvtps_pd((__m128)value);
}
DIFFQ_INLINE Float multiply_add(Float a, Float b, Float c) {
    return (Float)_mm256_fmadd_ps(a, b, c);
}
DIFFQ_INLINE Float positive_root(Float a) {
    return (Float)_mm256_sqrt_ps(a);
}
// The second one where an argument is NaN.
DIFFQ_INLINE Float lesser(Float a, Float b) {
    return (Float)_mm256_min_ps(a, b);
}
DIFFQ_INLINE Float greater(Float a, Float b) {
    return (Float)_mm256_max_ps(a, b);
}
DIFFQ_INLINE Uint larger(Uint a, Uint b) {
    return (Uint)_mm256_max_epu32((__m256i)a, (__m256i)b);
}
// table: 16 floats.
DIFFQ_INLINE Float look_up(const float* table, Uint index) {
    return (Float)_mm256_i32gather_ps(table, (__m256i)index, 4);
}
DIFFQ_INLINE bool any_bit(Uint value) {
    return _mm256_testz_si256((__m256i)value, (__m256i)value) == 0;
}
// table: 4096 slots.
DIFFQ_INLINE Uint look_up_slots(const uint32_t* table, Uint index) {
    return (Uint)_mm256_i32gather_epi32(reinterpret_cast<const int*>(table), (__m256i)index, 4);
}
// Each state below 2^16 takes the next word: words go to the lanes that want one, in order.
DIFFQ_INLINE Uint take_words(Uint state, const uint16_t*& words) {
    const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32((__m256i)state, 16), _mm256_setzero_si256());
    const auto wanted = static_cast<uint32_t>(_mm256_movemask_ps((__m256)low));
    const __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
    const __m256i order =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kWordOrders8.orders[wanted])));
    const __m256i taken =
        _mm256_or_si256(_mm256_slli_epi32((__m256i)state, 16), _mm256_permutevar8x32_epi32(next, order));
    words += _mm_popcnt_u32(wanted);
    return (Uint)_mm256_blendv_epi8((__m256i)state, taken, low);
}
DIFFQ_INLINE void store_past_cache(Float value, float* to) {
    _mm256_stream_ps(to, value);
}

static void finish_writes() {
    _mm_sfence();
}

#include "core/simd/algorithms.h"

// clang-format off
#include "core/simd/eights.h"
#include "core/simd/eight_products.h"
#include "core/simd/packed_rows.h"
#include "core/scalar/pieces.h"
#include "core/simd/pieces.h"
#include "core/simd/sixteens.h"
#include "core/simd/packed_products.h"
#include "core/simd/four_vectors.h"
#include "core/simd/row_panels.h"
// clang-format on

constexpr int kTileVectors = 3;
DIFFQ_INLINE FourFloats sums_of_four(const Float (&sums)[4]) {
    const __m256 first = _mm256_hadd_ps((__m256)sums[0], (__m256)sums[1]);
    const __m256 second = _mm256_hadd_ps((__m256)sums[2], (__m256)sums[3]);
    const __m256 halves = _mm256_hadd_ps(first, second);
    return (FourFloats)_mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}
#include "core/simd/float_products.h"

static void unpack_row(const PackedRow& row, float* values) {
    unpack_eights(row, values);
}

#include "core/simd/table.h"

}  // namespace avx2

const Kernels* avx2_kernels() {
    return &avx2::kKernels;
}

}  // namespace diffq_fast

DIFFQ_END_TARGET

#else

namespace diffq_fast {

const Kernels* avx2_kernels() {
    return nullptr;
}

}  // namespace diffq_fast

#endif
