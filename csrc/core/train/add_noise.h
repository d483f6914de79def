// The training forward and backward: noisy = weight + (range * step) * z, with z made from the key both
// times.
#pragma once

#include <cstdint>
#include <vector>

#include "core/runtime/groups.h"
#include "core/train/bits.h"
#include "core/train/noise.h"

namespace diffq_fast {

// What forward and backward have in common. logits[i]: float32 [groups of weight i]. range: see range.h.
struct NoiseArguments {
    std::vector<Floats> weights;
    std::vector<const float*> logits;
    std::vector<uint32_t> streams;
    const float* range;
    PhiloxKey key;
    NoiseKind kind;
    BitsRule rule;
    int64_t group_size;
    bool per_group;
    int threads;
};

// noisy[i]: as many elements as weights[i], of any dtype: the float32 result rounded to it.
void add_noise(const NoiseArguments& arguments, const std::vector<Floats>& noisy);

// With G the gradient of the noisy weight and A = sum of G z over a group: the weight's gradient is G, plus
// S = sum of A * step shared among the elements at hi, minus S shared among those at lo; the logit's gradient
// is range * A * (d step / d logit), non-finite ones replaced by 0 and counted in nonfinite[i]. grads[i]: of
// any dtype; grad_weights[i]: of the weight's. extremes: see range.h; not used per group.
void add_noise_backward(const NoiseArguments& arguments, const int64_t* extremes,
                        const std::vector<Floats>& grads, const std::vector<void*>& grad_weights,
                        const std::vector<float*>& grad_logits, float* nonfinite);

}  // namespace diffq_fast
