// logit -> step and its slope, see core/train/bits.h: the float32 arithmetic of diffq_fast/reference/bits.py.

DIFFQ_INLINE Float sigmoid(Float logit) {
    return splat(1.0f) / (splat(1.0f) + exp_float(-logit));
}

// t = sigmoid(logit).
DIFFQ_INLINE Float step_at(Float t, const BitsRule& rule) {
    if (rule.param == Param::bits) {
        const Float bits = rule.max_bits * t + (1.0f - t) * rule.min_bits;
        return splat(1.0f) / (exp2_float(bits) - 1.0f);
    }
    return exp_float(t * rule.log_smallest + (1.0f - t) * rule.log_largest);
}

// d step / d logit. With s the step, d/db 1/(2^b - 1) = -ln 2 (s + s^2), and for "noise" d s / d t = s (ln
// smallest - ln largest); d t / d logit = t (1 - t).
DIFFQ_INLINE Float slope_at(Float t, Float step, const BitsRule& rule) {
    const bool bits = rule.param == Param::bits;
    const float per_t =
        bits ? -0.693147180559945f * (rule.max_bits - rule.min_bits) : rule.log_smallest - rule.log_largest;
    const float square = bits ? 1.0f : 0.0f;
    return per_t * (step + square * step * step) * (t * (1.0f - t));
}

// The bits; for "noise" log2(1 + 1 / step).
DIFFQ_INLINE Float bits_at(Float t, const BitsRule& rule) {
    if (rule.param == Param::bits) return rule.max_bits * t + (1.0f - t) * rule.min_bits;
    const Float log_step = t * rule.log_smallest + (1.0f - t) * rule.log_largest;
    return log_step * -1.44269504088896341f + log2_float(exp_float(log_step) + 1.0f);
}

// d bits / d logit. For "noise" d log2(1 + 1/s) / d ln s = -1 / (ln 2 (1 + s)).
DIFFQ_INLINE Float bit_slope_at(Float t, const BitsRule& rule) {
    const Float t_slope = t * (1.0f - t);
    if (rule.param == Param::bits) return t_slope * (rule.max_bits - rule.min_bits);
    const float octaves = (rule.log_largest - rule.log_smallest) * 1.44269504088896341f;
    return t_slope * octaves / (step_at(t, rule) + 1.0f);
}

// results[i] = each(logit i). The last vector is padded: its lanes past the end are computed and dropped.
template <typename Each>
DIFFQ_INLINE void make_rest(const float* logits, int64_t count, const Each& each, float* results) {
    if (count == 0) return;
    float padded[kLanes] = {};
    for (int64_t j = 0; j < count; ++j) padded[j] = logits[j];
    store(each(load(padded)), padded);
    for (int64_t j = 0; j < count; ++j) results[j] = padded[j];
}

struct StepOf {
    BitsRule rule;
    DIFFQ_MEMBER Float operator()(Float logits) const { return step_at(sigmoid(logits), rule); }
};

static void make_steps(const float* logits, int64_t count, const BitsRule& rule, float* steps) {
    const StepOf each{rule};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(each(load(logits + i)), steps + i);
    make_rest(logits + i, count - i, each, steps + i);
}

struct LogitGradients {
    Float steps, gradients;
    Uint nonfinite;  // 1 where the gradient was not finite, and is now 0
};

DIFFQ_INLINE LogitGradients logit_gradients(Float logits, Float sums, Float lengths, const BitsRule& rule) {
    const Float t = sigmoid(logits), steps = step_at(t, rule);
    const Float gradients = (sums * slope_at(t, steps, rule)) * lengths;
    const Int finite = (Int)(bits_of(gradients) & kInfinityBits) != static_cast<int32_t>(kInfinityBits);
    return {steps, choose(finite, gradients, splat(0.0f)), choose(finite, Uint{}, Uint{} + 1u)};
}

static int64_t make_logit_gradients(const GroupSums& groups, const BitsRule& rule, float* steps,
                                    float* gradients) {
    const float *logits = groups.logits, *sums = groups.sums, *lengths = groups.lengths;
    const float length = groups.length;
    const int64_t count = groups.count;
    Uint nonfinite = {};
    int64_t g = 0;
    for (; g + kLanes <= count; g += kLanes) {
        const Float each = lengths != nullptr ? load(lengths + g) : splat(length);
        const LogitGradients made = logit_gradients(load(logits + g), load(sums + g), each, rule);
        store(made.steps, steps + g);
        store(made.gradients, gradients + g);
        nonfinite += made.nonfinite;
    }
    if (g == count) return sum_of(nonfinite);
    float padded[3][kLanes] = {};
    for (int64_t j = g; j < count; ++j) {
        padded[0][j - g] = logits[j];
        padded[1][j - g] = sums[j];
        padded[2][j - g] = lengths != nullptr ? lengths[j] : length;
    }
    const LogitGradients made = logit_gradients(load(padded[0]), load(padded[1]), load(padded[2]), rule);
    store(made.steps, padded[0]);
    store(made.gradients, padded[1]);
    for (int64_t j = g; j < count; ++j) {
        steps[j] = padded[0][j - g];
        gradients[j] = padded[1][j - g];
    }
    return sum_of(nonfinite + made.nonfinite);
}
