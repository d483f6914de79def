// AVX-512 (F, BW, DQ, VL): what differs from the other instruction sets.
#include "core/isa/kernels.h"
#include "core/runtime/memory.h"

// Vector words are the compiler's own vectors: GCC from 12 on, or clang.
#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12))
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2"))), \
                             apply_to = function)
#else
// GCC 12 warns of its own _mm512_undefined_ps() (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")
#endif

namespace diffq_fast {
namespace avx512 {

constexpr const char* kName = "avx512";
constexpr int kLanes = 16;

#include "core/simd/words.h"

// The low halves of 64-bit lanes times a constant.
DIFFQ_WORD Wide mul_wide(Wide a, uint32_t factor) {
    return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(factor));
}
DIFFQ_WORD Word widen(Half value) {
    return (Word)_mm512_cvtepu16_epi32((__m256i)value);
}
DIFFQ_WORD Doubles doubles_of(FewFloats value) {
    return (Doubles)_mm512_cvtps_pd((__m256)value);
}
DIFFQ_WORD Float multiply_add(Float a, Float b, Float c) {
    return (Float)_mm512_fmadd_ps(a, b, c);
}
// Square root of a positive, normal number within 3e-7 of it: an estimate to 14 bits and a step of Newton's,
// which leave the divider free.
DIFFQ_WORD Float positive_root(Float a) {
    const Float inverse = (Float)_mm512_rsqrt14_ps(a), root = a * inverse;
    return root * multiply_add(root * inverse, splat(-0.5f), splat(1.5f));
}
// The second one where an argument is NaN.
DIFFQ_WORD Float lesser(Float a, Float b) {
    return (Float)_mm512_min_ps(a, b);
}
DIFFQ_WORD Float greater(Float a, Float b) {
    return (Float)_mm512_max_ps(a, b);
}
DIFFQ_WORD Word larger(Word a, Word b) {
    return (Word)_mm512_max_epu32((__m512i)a, (__m512i)b);
}
// table: 16 floats.
DIFFQ_WORD Float look_up(const float* table, Word index) {
    return (Float)_mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(table));
}
DIFFQ_WORD void store_past_cache(Float value, float* to) {
    _mm512_stream_ps(to, value);
}

static void finish_writes() {
    _mm_sfence();
}

#include "core/simd/algorithms.h"

}  // namespace avx512

const Kernels* avx512_kernels() {
    return &avx512::kKernels;
}

}  // namespace diffq_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace diffq_fast {

const Kernels* avx512_kernels() {
    return nullptr;
}

}  // namespace diffq_fast

#endif
