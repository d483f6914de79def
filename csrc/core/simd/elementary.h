// exp and 2^x in float32 as branch-free polynomials (the coefficients of Cephes' single-precision functions,
// S. Moshier): relative errors below 3e-7 (checked in tests); NaN in, NaN out; arguments out of range are
// clamped before any float -> int step. And what Box-Muller needs: the logarithm and half an angle, for the
// draws it gets.

// 1.5 * 2^23: adding it rounds a float of magnitude below 2^22 to the nearest integer, in the low bits of the
// sum.
constexpr float kRoundingMagic = 12582912.0f;
constexpr uint32_t kRoundingMagicBits = 0x4B400000;

// 2^23: adding it rounds a float in [0, 2^22) to the nearest integer, which is what the sum's bits have above
// those of 2^23.
constexpr float kTwoTo23 = 8388608.0f;
constexpr uint32_t kTwoTo23Bits = 0x4B000000;

DIFFQ_INLINE Float clamp_to(Float value, float low, float high) {  // NaN -> low
    return lesser(greater(value, splat(low)), splat(high));
}

// 2^n for n (an integer in the low bits of n + kRoundingMagic) in [-126, 127].
DIFFQ_INLINE Float power_of_two(Float n_plus_magic) {
    return float_of((bits_of(n_plus_magic) - kRoundingMagicBits + 127) << 23);
}

DIFFQ_INLINE Float exp2_float(Float x) {
    const Float clamped = clamp_to(x, -126.0f, 127.0f);
    const Float shifted = clamped + kRoundingMagic;
    const Float f = clamped - (shifted - kRoundingMagic);
    Float sum = splat(1.535336188319500e-4f);
    sum = sum * f + 1.339887440266574e-3f;
    sum = sum * f + 9.618437357674640e-3f;
    sum = sum * f + 5.550332471162809e-2f;
    sum = sum * f + 2.402264791363012e-1f;
    sum = sum * f + 6.931472028550421e-1f;
    const Float result = (sum * f + 1.0f) * power_of_two(shifted);
    return choose(x != x, x, result);
}

DIFFQ_INLINE Float exp_float(Float x) {
    const Float clamped = clamp_to(x, -87.0f, 88.0f);
    const Float shifted = clamped * 1.44269504088896341f + kRoundingMagic;
    const Float n = shifted - kRoundingMagic;
    const Float f = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    Float sum = splat(1.9875691500e-4f);
    sum = sum * f + 1.3981999507e-3f;
    sum = sum * f + 8.3334519073e-3f;
    sum = sum * f + 4.1665795894e-2f;
    sum = sum * f + 1.6666665459e-1f;
    sum = sum * f + 5.0000001201e-1f;
    const Float result = ((sum * f) * f + f + 1.0f) * power_of_two(shifted);
    return choose(x != x, x, result);
}

// -ln(u) / 2 of a normal, positive u. The error of its square root is below 4e-7 for u in [2^-17, 1): the
// polynomial (a minimax fit of (-ln(1 + f) / 2 + f / 2 - f^2 / 4) / f^3) is weighted for that.
DIFFQ_INLINE Float half_negative_log(Float u) {
    const Int offset = (Int)(bits_of(u) - 0x3F3504F3u);  // mantissa into [sqrt(1/2), sqrt(2))
    const Int exponent = offset >> 23;
    const Float f = float_of(bits_of(u) - ((Uint)exponent << 23)) - 1.0f;
    Float sum = splat(-5.915922345e-2f);
    sum = multiply_add(sum, f, splat(9.241318931e-2f));
    sum = multiply_add(sum, f, splat(-1.022718384e-1f));
    sum = multiply_add(sum, f, splat(1.246870240e-1f));
    sum = multiply_add(sum, f, splat(-1.665992635e-1f));
    sum = multiply_add(sum, f, splat(0.25f));
    const Float mantissa_part = multiply_add(sum, f * f, f * -0.5f);
    return multiply_add(float_from_int(exponent), splat(-0.34657359028f), mantissa_part);
}

// log2(x) of a normal, positive x, by the polynomial above; every instruction set rounds alike.
DIFFQ_INLINE Float log2_float(Float x) {
    const Int offset = (Int)(bits_of(x) - 0x3F3504F3u);
    const Int exponent = offset >> 23;
    const Float f = float_of(bits_of(x) - ((Uint)exponent << 23)) - 1.0f;
    Float sum = splat(-5.915922345e-2f);
    sum = sum * f + 9.241318931e-2f;
    sum = sum * f - 1.022718384e-1f;
    sum = sum * f + 1.246870240e-1f;
    sum = sum * f - 1.665992635e-1f;
    sum = sum * f + 0.25f;
    return float_from_int(exponent) + (0.5f * f - sum * (f * f)) * 2.88539008178f;
}

// Sine and cosine of half the angle 2 pi (draw + 1/2) / 65536, where draw is a 16-bit number in the high half
// of a word: taken as signed, half the angle is within pi / 2. Minimax fits, absolute errors below 3e-7.
struct HalfAngle {
    Float sine, cosine;
};

DIFFQ_INLINE HalfAngle half_angle(Uint word) {
    const Float turns = float_from_int((Int)word >> 16);
    const Float x =
        multiply_add(turns, splat(4.79368996e-5f), splat(2.39684498e-5f));  // pi / 65536, half of it
    const Float z = x * x;
    Float s = splat(2.590488520e-6f);
    s = multiply_add(s, z, splat(-1.980089777e-4f));
    s = multiply_add(s, z, splat(8.332899824e-3f));
    s = multiply_add(s, z, splat(-1.666664763e-1f));
    s = multiply_add(s * z, x, x);
    Float c = splat(2.319438657e-5f);
    c = multiply_add(c, z, splat(-1.385592719e-3f));
    c = multiply_add(c, z, splat(4.166398946e-2f));
    c = multiply_add(c, z, splat(-4.999993229e-1f));
    c = multiply_add(c, z, splat(1.0f));
    return {s, c};
}
