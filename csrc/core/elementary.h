// exp, 2^x, log and the sine and cosine of a fraction of a turn in float32, as branch-free polynomials (the
// coefficients of Cephes' single-precision functions, S. Moshier) that compilers vectorise. Relative errors
// are below 3e-7 (checked in tests); NaN in, NaN out; arguments out of range are clamped before any float ->
// int step.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace diffq_fast {

// 1.5 * 2^23: adding it rounds a float of magnitude below 2^22 to the nearest integer, in the low bits of the
// sum.
constexpr float kRoundingMagic = 12582912.0f;

inline float clamp_to(float value, float low, float high) {  // NaN -> low
    value = value > low ? value : low;
    return value < high ? value : high;
}

// 2^n for n (an integer in the low bits of n + kRoundingMagic) in [-126, 127].
inline float power_of_two(float n_plus_magic) {
    return float_of((bits_of(n_plus_magic) - bits_of(kRoundingMagic) + 127) << 23);
}

inline float exp2_float(float x) {
    const float clamped = clamp_to(x, -126.0f, 127.0f);
    const float shifted = clamped + kRoundingMagic;
    const float f = clamped - (shifted - kRoundingMagic);
    float p = 1.535336188319500e-4f;
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    const float result = (p * f + 1.0f) * power_of_two(shifted);
    return x != x ? x : result;
}

inline float exp_float(float x) {
    const float clamped = clamp_to(x, -87.0f, 88.0f);
    const float shifted = clamped * 1.44269504088896341f + kRoundingMagic;
    const float n = shifted - kRoundingMagic;
    const float f = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    const float result = ((p * f) * f + f + 1.0f) * power_of_two(shifted);
    return x != x ? x : result;
}

// Natural logarithm of a normal, positive float.
inline float log_float(float x) {
    const int32_t offset =
        static_cast<int32_t>(bits_of(x) - 0x3F3504F3);  // mantissa into [sqrt(1/2), sqrt(2))
    const int32_t exponent = offset >> 23;
    const float f = float_of(bits_of(x) - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
    const float z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    const float n = static_cast<float>(exponent);
    const float tail = (p * f) * z - n * 2.12194440e-4f - 0.5f * z;
    return (f + tail) + n * 0.693359375f;
}

struct CosineSine {
    float cosine, sine;
};

// Cosine and sine of 2 pi (draw + 1/2) / 65536 for a 16-bit draw. The angle is cut to within pi/4 of a
// multiple of pi/2 in integers, so exactly.
inline CosineSine cosine_sine_of_turn(uint32_t draw) {
    const uint32_t quarter = (draw + 0x2000) >> 14;
    const int32_t rest = static_cast<int32_t>(draw) - static_cast<int32_t>(quarter << 14);
    const float x = (static_cast<float>(rest) + 0.5f) * 9.58737992428526e-5f;  // 2 pi / 65536
    const float z = x * x;
    const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
    const float c =
        ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z +
        1.0f;
    const uint32_t odd = mask_of((quarter & 1) != 0);
    const uint32_t cosine_sign = ((quarter + 1) & 2) << 30;
    const uint32_t sine_sign = (quarter & 2) << 30;
    return {float_of(select(odd, bits_of(s), bits_of(c)) ^ cosine_sign),
            float_of(select(odd, bits_of(c), bits_of(s)) ^ sine_sign)};
}

}  // namespace diffq_fast
