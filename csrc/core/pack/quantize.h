// weight -> level and back, in the float32 order of the specification, one rounding per operation:
// level = round_half_even(((w - lo) / (hi - lo)) / u), w' = ((level * u) * (hi - lo)) + lo, u = 1 / (2^width
// - 1).
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa/kernels.h"
#include "core/runtime/groups.h"

namespace diffq_fast {

constexpr int kMaxWidth = 16;

inline float top_level(uint8_t width) {
    return static_cast<float>((uint32_t{1} << (width < kMaxWidth ? width : kMaxWidth)) - 1);
}
inline float level_step(uint8_t width) {
    return 1.0f / top_level(width > 0 ? width : 1);
}

// The levels of a block whose groups all have `width` bits, in one range. LevelRule's pointers are null then.
inline LevelRule level_rule(const float* range, uint8_t width) {
    LevelRule rule{};
    rule.lo = range[0];
    rule.length = range[1] - range[0];
    rule.step = level_step(width);
    rule.inverse = 1.0f / rule.step;
    rule.top = top_level(width);
    return rule;
}

// widths[i]: uint8 [groups of weight i]. range: one row (lo, hi) per weight or per group. levels[i]: int32.
void quantize(const std::vector<Floats>& weights, const std::vector<const uint8_t*>& widths,
              const float* range, int64_t group_size, bool per_group, const std::vector<uint32_t*>& levels,
              int threads);

void dequantize(const std::vector<const uint32_t*>& levels, const std::vector<const uint8_t*>& widths,
                const float* range, int64_t group_size, bool per_group, const std::vector<Floats>& weights,
                int threads);

// dequantize(quantize(weights)) in one pass, the levels of a block at a time in the first-level cache.
void fake_quantize(const std::vector<Floats>& weights, const std::vector<const uint8_t*>& widths,
                   const float* range, int64_t group_size, bool per_group, const std::vector<Floats>& results,
                   int threads);

// Of the first two, elements first ... first + count - 1 of one weight, on the caller's thread; `levels`
// are those of all of its elements, and may lie where float32 weights go.
void quantize_part(const Floats& weight, int64_t first, int64_t count, const uint8_t* widths,
                   const float* range, int64_t group_size, bool per_group, uint32_t* levels);
void dequantize_part(const uint32_t* levels, int64_t first, int64_t count, const uint8_t* widths,
                     const float* range, int64_t group_size, bool per_group, const Floats& weight);

}  // namespace diffq_fast
