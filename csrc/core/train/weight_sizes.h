// What weights take in a file with the bits that their groups have learned.
#pragma once

#include <cstdint>
#include <vector>

#include "core/train/bits.h"

namespace diffq_fast {

// One entry for each weight: its logits [groups], and how many elements it has. group_size 0 is one group.
struct LearnedBits {
    std::vector<const float*> logits;
    std::vector<int64_t> counts;
    int64_t group_size;
    BitsRule rule;
    float extra_bits;
    int threads;
};

// sizes[i]: bits of weight i: those of its elements, extra_bits + bits each, and of its table of widths. NaN
// where a logit is NaN.
void weight_sizes(const LearnedBits& learned, float* sizes);

// grad_logits[i]: the gradient of weight i's logits; tables of widths have none. grads[i]: that of sizes[i].
void weight_sizes_backward(const LearnedBits& learned, const float* grads,
                           const std::vector<float*>& grad_logits);

}  // namespace diffq_fast
