// The bits of many logits added up, and the gradient of that sum; no bits are kept.

static BitSums sum_bits(const float* logits, int64_t count, const BitsRule& rule) {
    const BitTermOf<Param::bits> sigmoid_of{rule};
    const BitTermOf<Param::noise> bits_of_logit{rule};
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
        const bool bits = rule.param == Param::bits;
        sum += static_cast<double>(bits ? sigmoid_of(logits[i]) : bits_of_logit(logits[i]));
    }
    return bit_sums(sum, find_range(logits, count), count, rule);
}

static void make_bit_gradients(const float* logits, int64_t count, const BitsRule& rule, float factor,
                               bool /*past_cache*/, float* gradients) {
    const BitGradientOf each{rule, factor};
    for (int64_t i = 0; i < count; ++i) gradients[i] = each(logits[i]);
}
