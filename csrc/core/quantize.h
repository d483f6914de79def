// weight -> level and back, in the float32 order of the specification, one rounding per operation:
// level = round_half_even(((w - lo) / (hi - lo)) / u), w' = ((level * u) * (hi - lo)) + lo, u = 1 / (2^width
// - 1).
#pragma once

#include <cstdint>
#include <vector>

#include "core/groups.h"

namespace diffq_fast {

constexpr int kMaxWidth = 16;

inline float top_level(uint8_t width) {
    return static_cast<float>((uint32_t{1} << (width < kMaxWidth ? width : kMaxWidth)) - 1);
}
inline float level_step(uint8_t width) {
    return 1.0f / top_level(width > 0 ? width : 1);
}

// One value for all elements of a block; a block with a value per element passes a pointer instead.
struct Same {
    float value;
    float operator[](int64_t) const { return value; }
};

// Any input gives a level in [0, top]: NaN, which 0 / 0 of a constant weight is too, gives 0. The rounding is
// the float addition of 2^23, so no float that an int cannot hold is ever converted.
template <typename PerRange, typename PerWidth>
void quantize_block(const float* weights, int64_t count, PerRange lo, PerRange length, PerWidth step,
                    PerWidth top, uint32_t* levels) {
    for (int64_t i = 0; i < count; ++i) {
        float level = ((weights[i] - lo[i]) / length[i]) / step[i];
        level = level > 0.0f ? level : 0.0f;
        level = level < top[i] ? level : top[i];
        const uint32_t rounded = bits_of(level + 8388608.0f) - bits_of(8388608.0f);
        levels[i] = rounded & mask_of(length[i] != 0.0f);
    }
}

template <typename PerRange, typename PerWidth>
void dequantize_block(const uint32_t* levels, int64_t count, PerRange lo, PerRange length, PerWidth step,
                      float* weights) {
    for (int64_t i = 0; i < count; ++i) {
        const float level = static_cast<float>(static_cast<int32_t>(levels[i]));
        weights[i] = ((level * step[i]) * length[i]) + lo[i];
    }
}

// widths[i]: uint8 [groups of weight i]. range: one row (lo, hi) per weight or per group. levels[i]: int32.
void quantize(const std::vector<Floats>& weights, const std::vector<const uint8_t*>& widths,
              const float* range, int64_t group_size, bool per_group, const std::vector<uint32_t*>& levels,
              int threads);

void dequantize(const std::vector<const uint32_t*>& levels, const std::vector<const uint8_t*>& widths,
                const float* range, int64_t group_size, bool per_group, const std::vector<Floats>& weights,
                int threads);

}  // namespace diffq_fast
