// What the vector files of this folder are compiled for. dispatch.cpp asks the processor for exactly the
// features that stand here, under their compilers' names; which others they imply is written out.
#pragma once

#define DIFFQ_AVX2_FEATURES "sse4.2,popcnt,avx,avx2,fma,bmi2"
#define DIFFQ_AVX512_FEATURES "sse4.2,popcnt,avx,avx2,f16c,fma,bmi2,avx512f,avx512bw,avx512dq,avx512vl"
#define DIFFQ_AVX512_VNNI_FEATURES DIFFQ_AVX512_FEATURES ",avx512vnni"
#define DIFFQ_AVX512_VBMI_FEATURES DIFFQ_AVX512_VNNI_FEATURES ",avx512vbmi"

// Vectors are the compiler's own: GCC from 12 on, or clang, under Windows too.
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
#if defined(__x86_64__)
#define DIFFQ_X86_VECTORS 1
#define DIFFQ_IN_REGISTER "+x"  // as __asm__ has it
#elif defined(__aarch64__)
#define DIFFQ_NEON_VECTORS 1
#define DIFFQ_IN_REGISTER "+w"
#endif
#endif

// Functions between these two lines are compiled for the features.
#define DIFFQ_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define DIFFQ_BEGIN_TARGET(features) \
    DIFFQ_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define DIFFQ_END_TARGET DIFFQ_PRAGMA(clang attribute pop)
#else
#define DIFFQ_BEGIN_TARGET(features) DIFFQ_PRAGMA(GCC push_options) DIFFQ_PRAGMA(GCC target(features))
#define DIFFQ_END_TARGET DIFFQ_PRAGMA(GCC pop_options)
#endif
