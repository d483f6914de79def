// The part of a weight's gradient that comes through the ends of its range: what the noise adds to a group
// grows with hi and falls with lo, so the elements at these ends share the sum of A * step (see add_noise.h).
#pragma once

#include <cstdint>

#include "core/runtime/tasks.h"

namespace diffq_fast {

// A weight, the gradient of what was made of it, and the gradient of its own that is to be completed.
struct RangeGradient {
    Floats weight, grad, grad_weight;

    // One element at each end, at known places: no need to read the weight again. False, and nothing done,
    // where that is not so. extremes: see range.h.
    bool share_between_two(const int64_t* extremes, double sum) const;

    // Adds `at_hi` to each element of the chunk that equals hi, and takes `at_lo` off each that equals lo.
    // range: (lo, hi).
    void share_among(const Chunk& chunk, const float* range, double at_lo, double at_hi) const;

    // Shares `sum` among the elements of a group that lie at the ends of its range.
    void share_in_group(const Chunk& group, const float* range, double sum) const;

  private:
    void add_to_element(int64_t element, double addend) const;
    int64_t count_equal(const Chunk& chunk, float value) const;
};

}  // namespace diffq_fast
