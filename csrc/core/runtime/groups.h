// How weights are cut into groups, whose elements share a width.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/runtime/dtype.h"

namespace diffq_fast {

// Elements that are handled at once: they stay in the first-level cache.
constexpr int64_t kBlock = 1024;

// One weight (or gradient, or noisy weight): `count` elements of `dtype` in row-major order.
struct Floats {
    void* data;
    int64_t count;
    DType dtype;

    int64_t bytes() const { return count * item_size(dtype); }
};

// Elements begin ... begin + count - 1 of a weight.
struct Span {
    int64_t begin, count;
};

// group_size 0: the whole weight is one group.
inline int64_t group_count(int64_t count, int64_t group_size) {
    if (group_size == 0) return count > 0 ? 1 : 0;
    return count / group_size + (count % group_size != 0);
}

inline int64_t group_of(int64_t element, int64_t group_size) {
    return group_size == 0 ? 0 : element / group_size;
}

// Groups that a span of at least one element touches.
inline int64_t groups_touched(Span span, int64_t group_size) {
    return group_of(span.begin + span.count - 1, group_size) - group_of(span.begin, group_size) + 1;
}

// What the elements of a weight share: each group has a width, and with `per_group` a range (lo, hi) of its
// own; without it the weight has one range.
struct Grouping {
    int64_t group_size;
    bool per_group;

    // Ranges of a weight of `count` elements.
    int64_t range_count(int64_t count) const { return per_group ? group_count(count, group_size) : 1; }

    // The range of one of a weight's groups.
    const float* range_of(const float* ranges, int64_t group) const {
        return ranges + (per_group ? 2 * group : 0);
    }
};

// Calls body(group, begin, end) for each group's part of a span; all three count from where the span begins.
template <typename Body>
void for_each_segment(Span span, int64_t group_size, Body&& body) {
    int64_t begin = 0, left = group_size == 0 ? span.count : group_size - span.begin % group_size;
    for (int64_t group = 0; begin < span.count; ++group, left = group_size) {
        const int64_t end = std::min(span.count, begin + left);
        body(group, begin, end);
        begin = end;
    }
}

template <int64_t kSize>
void spread_fixed(const float* values, int64_t count, float* elements) {
    for (int64_t group = 0; group < count / kSize; ++group) {
        for (int64_t j = 0; j < kSize; ++j) elements[group * kSize + j] = values[group];
    }
    for (int64_t i = count / kSize * kSize; i < count; ++i) elements[i] = values[i / kSize];
}

// elements[i] = the value of the group of the span's element i; values[0] belongs to the span's first group.
inline void spread(const float* values, Span span, int64_t group_size, float* elements) {
    if (group_size == 1) {
        std::memcpy(elements, values, static_cast<size_t>(span.count) * sizeof(float));
    } else if (group_size == 2 && span.begin % 2 == 0) {
        spread_fixed<2>(values, span.count, elements);
    } else if (group_size == 4 && span.begin % 4 == 0) {
        spread_fixed<4>(values, span.count, elements);
    } else if (group_size == 8 && span.begin % 8 == 0) {
        spread_fixed<8>(values, span.count, elements);
    } else {
        for_each_segment(span, group_size, [&](int64_t group, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) elements[i] = values[group];
        });
    }
}

}  // namespace diffq_fast
