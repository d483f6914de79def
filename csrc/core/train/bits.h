// The rule by which a logit gives a step, the fraction of the range that one level spans.
#pragma once

#include <cmath>
#include <cstdint>

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

}  // namespace diffq_fast
