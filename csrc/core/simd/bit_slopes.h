// What sizes need of many logits. Nothing is rounded by it, so instruction sets may differ in the last bits:
// products are added to in one rounding where an instruction does that.

// exp(-x) is 2^n 2^f with the polynomial of exp2_float(). A NaN passes both limits.
DIFFQ_INLINE Float fused_sigmoid(Float logit) {
    constexpr float kOctaves = -1.44269504088896341f;
    const Float x = greater(splat(-87.0f), lesser(splat(87.0f), logit));
    const Float shifted = multiply_add(x, splat(kOctaves), splat(kRoundingMagic));
    const Float f = multiply_add(x, splat(kOctaves), splat(kRoundingMagic) - shifted);
    Float sum = splat(1.535336188319500e-4f);
    sum = multiply_add(sum, f, splat(1.339887440266574e-3f));
    sum = multiply_add(sum, f, splat(9.618437357674640e-3f));
    sum = multiply_add(sum, f, splat(5.550332471162809e-2f));
    sum = multiply_add(sum, f, splat(2.402264791363012e-1f));
    sum = multiply_add(sum, f, splat(6.931472028550421e-1f));
    sum = multiply_add(sum, f, splat(1.0f));
    return splat(1.0f) / multiply_add(sum, power_of_two(shifted), splat(1.0f));
}

// What is added up for a logit: its sigmoid, of which the bits are made when all are added; or its bits.
template <Param param>
struct BitTermOf {
    BitsRule rule;
    DIFFQ_MEMBER Float operator()(Float logits) const {
        const Float t = fused_sigmoid(logits);
        return param == Param::bits ? t : bits_at(t, rule);
    }
};

// The bits of so many logits.
DIFFQ_INLINE double bits_of_terms(double terms, int64_t count, const BitsRule& rule) {
    if (rule.param == Param::noise) return terms;
    const auto lowest = static_cast<double>(rule.min_bits);
    return lowest * static_cast<double>(count) + (static_cast<double>(rule.max_bits) - lowest) * terms;
}

// The bits of the smallest and of the largest logit, as steps are made of them. `sum`: NaN where a logit is.
DIFFQ_INLINE BitSums bit_sums(double sum, Range logits, int64_t count, const BitsRule& rule) {
    if (count == 0) return {0, logits};
    float ends[kLanes] = {logits.lo}, others[kLanes] = {logits.hi};
    store(bits_at(sigmoid(load(ends)), rule), ends);
    store(bits_at(sigmoid(load(others)), rule), others);
    return {bits_of_terms(sum, count, rule), {ends[0], others[0], sum != sum}};
}

struct BitGradientOf {
    BitsRule rule;
    float factor;
    DIFFQ_MEMBER Float operator()(Float logits) const {
        return bit_slope_at(fused_sigmoid(logits), rule) * factor;
    }
};
