// Uniform noise of a step that each group brings along: noisy = weight + step * z, with z made from the key
// in the forward and again in the backward. No ranges.
#pragma once

#include <cstdint>
#include <vector>

#include "core/runtime/groups.h"
#include "core/train/noise.h"

namespace diffq_fast {

// What forward and backward have in common; one entry for each weight. group_sizes: 0 is one group.
struct UniformNoise {
    PhiloxKey key;
    std::vector<uint32_t> streams;
    std::vector<int64_t> group_sizes;
    int threads;
};

// noisy[i] = weights[i] + steps[i] of the element's group * z, rounded to its dtype. steps[i]: float32
// [groups].
void add_uniform_noise(const UniformNoise& noise, const std::vector<Floats>& weights,
                       const std::vector<const float*>& steps, const std::vector<Floats>& noisy);

// grad_steps[i]: float32 [groups]: the sums of grads[i] * z over each group.
void add_uniform_noise_backward(const UniformNoise& noise, const std::vector<Floats>& grads,
                                const std::vector<float*>& grad_steps);

}  // namespace diffq_fast
