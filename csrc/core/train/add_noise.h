// The training forward and backward: noisy = weight + (length of range * step) * z, with z made from the key
// both times.
#pragma once

#include <cstdint>
#include <vector>

#include "core/runtime/groups.h"
#include "core/train/bits.h"
#include "core/train/noise.h"

namespace diffq_fast {

// How weights are made noisy.
struct NoiseOptions {
    Grouping grouping;
    BitsRule rule;
    NoiseKind noise_kind;
};

// What forward and backward have in common. logits[i]: float32 [groups of weight i]. ranges: see range.h.
struct NoiseArguments {
    std::vector<Floats> weights;
    std::vector<const float*> logits;
    PhiloxKey key;
    std::vector<uint32_t> streams;
    const float* ranges;
    NoiseOptions options;
    int threads;
};

// noisy[i]: as many elements as weights[i], of any dtype: the float32 result rounded to it.
void add_noise(const NoiseArguments& arguments, const std::vector<Floats>& noisy);

// Where the gradients go. weights[i]: of weight i's dtype; logits[i]: float32 [groups of weight i];
// nonfinite[i]: how many gradients of its logits were not finite.
struct NoiseGradients {
    std::vector<Floats> weights;
    std::vector<float*> logits;
    float* nonfinite;
};

// With G the gradient of the noisy weight and A = sum of G z over a group: the weight's gradient is G, plus
// S = sum of A * step shared among the elements at hi, minus S shared among those at lo; the logit's gradient
// is length of range * A * (d step / d logit), non-finite ones replaced by 0 and counted. grads[i]: G of
// weight i, of any dtype. extremes: see range.h; not used per group.
void add_noise_backward(const NoiseArguments& arguments, const int64_t* extremes,
                        const std::vector<Floats>& grads, const NoiseGradients& gradients);

}  // namespace diffq_fast
