// AVX2 with FMA: what differs from the other instruction sets.
#include "core/isa/kernels.h"
#include "core/runtime/memory.h"

// Vector words are the compiler's own vectors: GCC from 12 on, or clang.
#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12))
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
#endif

namespace diffq_fast {
namespace avx2 {

constexpr const char* kName = "avx2";
constexpr int kLanes = 8;

#include "core/simd/words.h"

// The low halves of 64-bit lanes times a constant.
DIFFQ_WORD Wide mul_wide(Wide a, uint32_t factor) {
    return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
}
DIFFQ_WORD Word widen(Half value) {
    return (Word)_mm256_cvtepu16_epi32((__m128i)value);
}
DIFFQ_WORD Doubles doubles_of(FewFloats value) {
    return (Doubles)_mm256_cvtps_pd((__m128)value);
}
DIFFQ_WORD Float multiply_add(Float a, Float b, Float c) {
    return (Float)_mm256_fmadd_ps(a, b, c);
}
DIFFQ_WORD Float positive_root(Float a) {
    return (Float)_mm256_sqrt_ps(a);
}
// The second one where an argument is NaN.
DIFFQ_WORD Float lesser(Float a, Float b) {
    return (Float)_mm256_min_ps(a, b);
}
DIFFQ_WORD Float greater(Float a, Float b) {
    return (Float)_mm256_max_ps(a, b);
}
DIFFQ_WORD Word larger(Word a, Word b) {
    return (Word)_mm256_max_epu32((__m256i)a, (__m256i)b);
}
// table: 16 floats.
DIFFQ_WORD Float look_up(const float* table, Word index) {
    return (Float)_mm256_i32gather_ps(table, (__m256i)index, 4);
}
DIFFQ_WORD void store_past_cache(Float value, float* to) {
    _mm256_stream_ps(to, value);
}

static void finish_writes() {
    _mm_sfence();
}

#include "core/simd/algorithms.h"

}  // namespace avx2

const Kernels* avx2_kernels() {
    return &avx2::kKernels;
}

}  // namespace diffq_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace diffq_fast {

const Kernels* avx2_kernels() {
    return nullptr;
}

}  // namespace diffq_fast

#endif
