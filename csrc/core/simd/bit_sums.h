// The bits of many logits added up, and the gradient of that sum; no bits are kept.

template <int kHalf, int... kLane>
DIFFQ_INLINE Doubles half_as_doubles(Float value, Indices<kLane...>) {
    return doubles_of(__builtin_shufflevector(value, value, (kHalf * kDoubles + kLane)...));
}

template <Param param>
static BitSums sum_bits_of(const float* logits, int64_t count, const BitsRule& rule) {
    constexpr int kTerms = 4;  // which are added as floats
    const BitTermOf<param> term{rule};
    Doubles sums[2] = {};
    RangeLanes range = no_range();
    int64_t i = 0;
    for (; i + kTerms * kLanes <= count; i += kTerms * kLanes) {
        Float terms[kTerms];
#pragma GCC unroll 4
        for (int k = 0; k < kTerms; ++k) {
            const Float values = load(logits + i + k * kLanes);
            expect_read(logits + i + k * kLanes + kAhead);
            range.lo = lesser(values, range.lo);
            range.hi = greater(values, range.hi);
            terms[k] = term(values);
        }
        const Float four = (terms[0] + terms[1]) + (terms[2] + terms[3]);
        sums[0] += half_as_doubles<0>(four, Count<kDoubles>());
        sums[1] += half_as_doubles<1>(four, Count<kDoubles>());
    }
    const Doubles both = sums[0] + sums[1];
    double sum = 0;
    for (int lane = 0; lane < kDoubles; ++lane) sum += both[lane];
    Range limits = range_of(range);
    float terms[kLanes];
    for (; i < count; i += kLanes) {
        const int64_t here = std::min<int64_t>(kLanes, count - i);
        make_rest(logits + i, here, term, terms);
        for (int64_t j = 0; j < here; ++j) {
            sum += static_cast<double>(terms[j]);
            include_value(limits, logits[i + j]);
        }
    }
    return bit_sums(sum, limits, count, rule);
}

static BitSums sum_bits(const float* logits, int64_t count, const BitsRule& rule) {
    if (rule.param == Param::bits) return sum_bits_of<Param::bits>(logits, count, rule);
    return sum_bits_of<Param::noise>(logits, count, rule);
}

template <bool kPastCache>
static void make_bit_gradients_to(const float* logits, int64_t count, const BitGradientOf& each,
                                  float* gradients) {
    const BitGradientOf own = each;  // which no gradient that is written can change
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        expect_read(logits + i + kAhead);
        put<kPastCache>(own(load(logits + i)), gradients + i);
    }
    make_rest(logits + i, count - i, own, gradients + i);
}

static void make_bit_gradients(const float* logits, int64_t count, const BitsRule& rule, float factor,
                               bool past_cache, float* gradients) {
    const BitGradientOf each{rule, factor};
    if (past_cache && is_aligned(gradients))
        return make_bit_gradients_to<true>(logits, count, each, gradients);
    make_bit_gradients_to<false>(logits, count, each, gradients);
}
