// weight -> level and back, in the float32 order of the specification, one rounding per operation:
// level = round_half_even(((w - lo) / (hi - lo)) / u), w' = ((level * u) * (hi - lo)) + lo, u = 1 / (2^width
// - 1).
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa/kernels.h"
#include "core/runtime/groups.h"

namespace diffq_fast {

inline float top_level(uint8_t width) {
    return static_cast<float>((uint32_t{1} << (width < kMaxWidth ? width : kMaxWidth)) - 1);
}
inline float level_step(uint8_t width) {
    return 1.0f / top_level(width > 0 ? width : 1);
}

// The levels of a block whose groups all have `width` bits, in one range. LevelGrid's pointers are null then.
inline LevelGrid level_grid(const float* range, uint8_t width) {
    LevelGrid grid{};
    grid.lo = range[0];
    grid.length = range[1] - range[0];
    grid.step = level_step(width);
    grid.inverse = 1.0f / grid.step;
    grid.top = top_level(width);
    return grid;
}

// Widths, uint8 [groups], and ranges (lo, hi) of one weight.
struct WidthsAndRanges {
    const uint8_t* widths;
    const float* ranges;
    Grouping grouping;
};

// The same of several weights: widths[i] of weight i; ranges of all of them, one after the other.
struct AllWidthsAndRanges {
    std::vector<const uint8_t*> widths;
    const float* ranges;
    Grouping grouping;
};

// levels[i]: int32, as many as weight i has elements.
void quantize(const std::vector<Floats>& weights, const AllWidthsAndRanges& given,
              const std::vector<uint32_t*>& levels, int threads);

void dequantize(const std::vector<const uint32_t*>& levels, const AllWidthsAndRanges& given,
                const std::vector<Floats>& weights, int threads);

// dequantize(quantize(weights)) in one pass, the levels of a block at a time in the first-level cache.
void fake_quantize(const std::vector<Floats>& weights, const AllWidthsAndRanges& given,
                   const std::vector<Floats>& results, int threads);

// Of the first two, the elements of a span of one weight, on the caller's thread; `levels` are those of all
// of its elements, and may lie where float32 weights go.
void quantize_part(const Floats& weight, Span part, const WidthsAndRanges& given, uint32_t* levels);
void dequantize_part(const uint32_t* levels, Span part, const WidthsAndRanges& given, const Floats& weight);

}  // namespace diffq_fast
