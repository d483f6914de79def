#include "core/pack/checksum.h"

#include <array>

#include "core/runtime/cpu_features.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define DIFFQ_FAST_X86 1
#endif

namespace diffq_fast {
namespace {

// A polynomial over two elements, the highest power in the lowest bit, times x modulo the checksum's.
constexpr uint32_t times_x(uint32_t polynomial) {
    return (polynomial >> 1) ^ (polynomial & 1 ? 0xEDB88320u : 0u);
}

struct Table {
    std::array<uint32_t, 256> of_byte{};

    constexpr Table() {
        for (uint32_t byte = 0; byte < 256; ++byte) {
            uint32_t rest = byte;
            for (int bit = 0; bit < 8; ++bit) rest = times_x(rest);
            of_byte[byte] = rest;
        }
    }
};

constexpr Table kTable;

// `rest` is the checksum's complement: what is left of the bytes so far, divided by the polynomial.
uint32_t divide(uint32_t rest, const uint8_t* bytes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) rest = (rest >> 8) ^ kTable.of_byte[(rest ^ bytes[i]) & 0xFF];
    return rest;
}

#ifdef DIFFQ_FAST_X86
constexpr int64_t kFold = 64;  // bytes

// x^power modulo the polynomial. A product of two numbers with the highest power in the lowest bit comes out
// a bit too low, which the shift makes up for.
constexpr int64_t power_of_x(int power) {
    uint32_t rest = 0x80000000u;
    for (int i = 0; i < power; ++i) rest = times_x(rest);
    return static_cast<int64_t>(rest) << 1;
}

// Bytes are a polynomial, and one of 64 more is the same modulo the checksum's as what is left when its first
// 64 are multiplied by x^512, modulo it too, and added to the next 64 (V. Gopal et al., "Fast CRC computation
// for generic polynomials using PCLMULQDQ", Intel, 2009). Four vectors at a time, because each waits for its
// own last product:
//
//   |first 8|last 8|  ->  first 8 * x^(512 + 32)  +  last 8 * x^(512 - 32)  +  |the 16 that are 64 further
//   on|
//
// The last 64 go through the table. count: a multiple of 64, not 0.
__attribute__((target("pclmul,sse4.1"))) uint32_t fold(uint32_t rest, const uint8_t* bytes, int64_t count) {
    const __m128i powers = _mm_set_epi64x(power_of_x(512 - 32), power_of_x(512 + 32));
    const auto* from = reinterpret_cast<const __m128i*>(bytes);
    __m128i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = _mm_loadu_si128(from + i);
    sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128(static_cast<int>(rest)));
    for (int64_t done = kFold; done < count; done += kFold) {
        from += 4;
        for (int i = 0; i < 4; ++i) {
            const __m128i first = _mm_clmulepi64_si128(sums[i], powers, 0x00);
            const __m128i last = _mm_clmulepi64_si128(sums[i], powers, 0x11);
            sums[i] = _mm_xor_si128(_mm_xor_si128(first, last), _mm_loadu_si128(from + i));
        }
    }
    uint8_t left[kFold];
    for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(left) + i, sums[i]);
    return divide(0, left, kFold);
}
#endif

}  // namespace

bool crc32_is_fast() {
    return cpu_features().pclmul;
}

uint32_t crc32(uint32_t start, const uint8_t* bytes, int64_t count) {
    uint32_t rest = ~start;
#ifdef DIFFQ_FAST_X86
    const int64_t whole = count / kFold * kFold;
    if (whole > 0 && crc32_is_fast()) {
        rest = fold(rest, bytes, whole);
        bytes += whole;
        count -= whole;
    }
#endif
    return ~divide(rest, bytes, count);
}

uint32_t crc32_by_table(uint32_t start, const uint8_t* bytes, int64_t count) {
    return ~divide(~start, bytes, count);
}

}  // namespace diffq_fast
