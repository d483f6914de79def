// What the files of AVX-512 include before their target region.
#pragma once

#include <immintrin.h>
#ifdef _MSC_VER  // clang-cl leaves these out where the whole file is not compiled for them
// clang-format off
#include <smmintrin.h>
#include <popcntintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <fmaintrin.h>
#include <avx512fintrin.h>
#include <avx512vlintrin.h>
#include <avx512bwintrin.h>
#include <avx512vlbwintrin.h>
#include <avx512dqintrin.h>
#include <avx512vldqintrin.h>
#include <avx512vnniintrin.h>
#include <avx512vbmiintrin.h>
// clang-format on
#endif

#ifndef __clang__
// GCC 12 warns of its own _mm512_undefined_ps() (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
