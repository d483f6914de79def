// weight -> level and back, see core/pack/quantize.h.

static float pick(const float* each, int64_t i, float same) {
    return each != nullptr ? each[i] : same;
}

// Any input gives a level in [0, top]: NaN, which 0 / 0 of a constant weight is too, gives 0. The rounding is
// the float addition of 2^23, so no float that an int cannot hold is ever converted.
static void quantize(const float* weights, int64_t count, const LevelGrid& grid, uint32_t* levels) {
    for (int64_t i = 0; i < count; ++i) {
        const float lo = pick(grid.los, i, grid.lo), length = pick(grid.lengths, i, grid.length);
        const float top = pick(grid.tops, i, grid.top);
        float level = ((weights[i] - lo) / length) / pick(grid.steps, i, grid.step);
        level = level > 0.0f ? level : 0.0f;
        level = level < top ? level : top;
        const uint32_t rounded = diffq_fast::bits_of(level + kTwoTo23) - kTwoTo23Bits;
        levels[i] = rounded & mask_of(length != 0.0f);
    }
}

static void dequantize(const uint32_t* levels, int64_t count, const LevelGrid& grid, bool /*past_cache*/,
                       float* weights) {
    for (int64_t i = 0; i < count; ++i) {
        const float lo = pick(grid.los, i, grid.lo), length = pick(grid.lengths, i, grid.length);
        const float level = static_cast<float>(static_cast<int32_t>(levels[i]));
        weights[i] = ((level * pick(grid.steps, i, grid.step)) * length) + lo;
    }
}
