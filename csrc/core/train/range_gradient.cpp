#include "core/train/range_gradient.h"

#include <algorithm>

#include "core/runtime/float_blocks.h"

namespace diffq_fast {

void RangeGradient::add_to_element(int64_t element, double addend) const {
    float buffer;
    const float value = static_cast<float>(*load_floats(grad, {element, 1}, &buffer) + addend);
    store_floats(&value, grad_weight, {element, 1});
}

// Both places differ, as lo < hi.
bool RangeGradient::share_between_two(const int64_t* extremes, double sum) const {
    const bool single = extremes[2] == 1 && extremes[3] == 1 && extremes[0] != extremes[1];
    const auto inside = [&](int64_t element) { return element >= 0 && element < weight.count; };
    if (!single || !inside(extremes[0]) || !inside(extremes[1])) return false;
    add_to_element(extremes[0], -sum);
    add_to_element(extremes[1], sum);
    return true;
}

void RangeGradient::share_among(const Chunk& chunk, const float* range, double at_lo, double at_hi) const {
    const float lo = range[0], hi = range[1];
    float buffer[kBlock];
    for_each_block_of(chunk, [&](Span span) {
        const float* values = load_floats(weight, span, buffer);
        const Range block = kernels().find_range(values, span.count);
        if (block.lo > lo && block.hi < hi) return;  // most blocks hold neither end
        for (int64_t i = 0; i < span.count; ++i) {
            if (values[i] != lo && values[i] != hi) continue;
            add_to_element(span.begin + i, (values[i] == hi ? at_hi : 0) - (values[i] == lo ? at_lo : 0));
        }
    });
}

int64_t RangeGradient::count_equal(const Chunk& chunk, float value) const {
    float buffer[kBlock];
    int64_t count = 0;
    for_each_block_of(chunk, [&](Span span) {
        const float* values = load_floats(weight, span, buffer);
        count += std::count(values, values + span.count, value);
    });
    return count;
}

void RangeGradient::share_in_group(const Chunk& group, const float* range, double sum) const {
    const int64_t at_lo = count_equal(group, range[0]), at_hi = count_equal(group, range[1]);
    if (at_lo == 0 && at_hi == 0) return;  // a NaN range
    share_among(group, range, sum / static_cast<double>(std::max<int64_t>(at_lo, 1)),
                sum / static_cast<double>(std::max<int64_t>(at_hi, 1)));
}

}  // namespace diffq_fast
