// logit -> step, the fraction of the range that one level spans: the float32 arithmetic of
// diffq_fast/bits.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/elementary.h"

namespace diffq_fast {

enum class Param : int { bits = 0, noise = 1 };

struct BitsRule {
    Param param;
    float min_bits, max_bits;
    float log_smallest, log_largest;  // natural logarithms of the steps at max_bits and min_bits

    BitsRule(Param param_, double min_bits_, double max_bits_)
        : param(param_),
          min_bits(static_cast<float>(min_bits_)),
          max_bits(static_cast<float>(max_bits_)),
          log_smallest(static_cast<float>(-std::log(std::exp2(max_bits_) - 1))),
          log_largest(static_cast<float>(-std::log(std::exp2(min_bits_) - 1))) {}
};

inline float sigmoid(float logit) {
    return 1.0f / (1.0f + exp_float(-logit));
}

// steps[i] = 1 / (2^b - 1) of logits[i].
inline void steps_from_logits(const float* logits, int64_t count, const BitsRule& rule, float* steps) {
    if (rule.param == Param::bits) {
        for (int64_t i = 0; i < count; ++i) {
            const float t = sigmoid(logits[i]);
            const float bits = rule.max_bits * t + (1.0f - t) * rule.min_bits;
            steps[i] = 1.0f / (exp2_float(bits) - 1.0f);
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            const float t = sigmoid(logits[i]);
            steps[i] = exp_float(t * rule.log_smallest + (1.0f - t) * rule.log_largest);
        }
    }
}

// slopes[i] = d steps[i] / d logits[i]. With s the step, d/db 1/(2^b - 1) = -ln 2 (s + s^2), and for "noise"
// d s / d t = s (ln smallest - ln largest); d t / d logit = t (1 - t).
inline void slopes_from_logits(const float* logits, const float* steps, int64_t count, const BitsRule& rule,
                               float* slopes) {
    const float per_t = rule.param == Param::bits ? -0.693147180559945f * (rule.max_bits - rule.min_bits)
                                                  : rule.log_smallest - rule.log_largest;
    const float square = rule.param == Param::bits ? 1.0f : 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        const float t = sigmoid(logits[i]);
        slopes[i] = per_t * (steps[i] + square * steps[i] * steps[i]) * (t * (1.0f - t));
    }
}

}  // namespace diffq_fast
