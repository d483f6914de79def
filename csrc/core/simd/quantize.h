// weight -> level and back, see core/pack/quantize.h.

// One value for a whole block, or a pointer to one per element.
struct Same {
    float value;
    DIFFQ_MEMBER Float at(int64_t) const { return splat(value); }
    DIFFQ_MEMBER float one(int64_t) const { return value; }
};
struct Each {
    const float* values;
    DIFFQ_MEMBER Float at(int64_t i) const { return load(values + i); }
    DIFFQ_MEMBER float one(int64_t i) const { return values[i]; }
};

// A step of Newton's with the exact remainder towards the quotient a / b, from y = 1 / b correctly rounded.
// What starts within an ulp of it ends at the nearest float (P. Markstein, "Computation of elementary
// functions on the IBM RISC System/6000 processor", 1990). Holds while the remainder is not subnormal; what
// is smaller than that here is far below half a level.
DIFFQ_INLINE Float nearer_quotient(Float q, Float a, Float b, Float y) {
    return multiply_add(multiply_add(-q, b, a), y, q);
}

// a / b, correctly rounded, from y = 1 / b correctly rounded: a * y may be more than an ulp off, the first
// step is not.
DIFFQ_INLINE Float divide_by_known(Float a, Float b, Float y) {
    return nearer_quotient(nearer_quotient(a * y, a, b, y), a, b, y);
}

// The same for one of the 16 steps and shares up to 1, for which one step is enough: each of them was
// compared with the division for every float in [2^-31, 1]. Beyond 1 a level is the highest one anyway.
DIFFQ_INLINE Float divide_by_step(Float share, Float step, Float inverse) {
    return nearer_quotient(share * inverse, share, step, inverse);
}

// The rounding is the float addition of 2^23, so no float that an int cannot hold is ever converted.
DIFFQ_INLINE Uint round_level(Float level, Float top) {
    const Float clamped = lesser(greater(level, splat(0.0f)), top);  // NaN -> 0
    return bits_of(clamped + kTwoTo23) - kTwoTo23Bits;
}

static uint32_t level_of(float weight, float lo, float length, float step, float top) {
    float level = ((weight - lo) / length) / step;
    level = level > 0.0f ? level : 0.0f;
    level = level < top ? level : top;
    return length != 0.0f ? diffq_fast::bits_of(level + kTwoTo23) - kTwoTo23Bits : 0;
}

template <typename Ends, typename Width>
static void quantize_divided(const float* weights, int64_t count, Ends lo, Ends length, Width step, Width top,
                             uint32_t* levels) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Float range_length = length.at(i);
        const Uint level =
            round_level(((load(weights + i) - lo.at(i)) / range_length) / step.at(i), top.at(i));
        store(choose(range_length != 0.0f, level, Uint{}), levels + i);
    }
    for (; i < count; ++i)
        levels[i] = level_of(weights[i], lo.one(i), length.one(i), step.one(i), top.one(i));
}

// Weights outside the range get the level at its end, so they may be cut to it, with a margin, beforehand:
// that keeps infinities out of the remainders.
template <typename Width>
static void quantize_multiplied(const float* weights, int64_t count, const LevelGrid& grid, Width step,
                                Width inverse, Width top, uint32_t* levels) {
    const Float lo = splat(grid.lo), length = splat(grid.length), beyond = splat(4.0f * grid.length);
    const Float inverse_length = splat(1.0f / grid.length);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        expect_read(weights + i + kAhead);
        const Float offset = lesser(greater(load(weights + i) - lo, splat(0.0f)), beyond);
        const Float share = divide_by_known(offset, length, inverse_length);
        store(round_level(divide_by_step(share, step.at(i), inverse.at(i)), top.at(i)), levels + i);
    }
    for (; i < count; ++i) levels[i] = level_of(weights[i], grid.lo, grid.length, step.one(i), top.one(i));
}

static void quantize(const float* weights, int64_t count, const LevelGrid& grid, uint32_t* levels) {
    if (grid.lengths != nullptr && grid.steps != nullptr) {
        quantize_divided(weights, count, Each{grid.los}, Each{grid.lengths}, Each{grid.steps},
                         Each{grid.tops}, levels);
    } else if (grid.lengths != nullptr) {
        quantize_divided(weights, count, Each{grid.los}, Each{grid.lengths}, Same{grid.step}, Same{grid.top},
                         levels);
    } else if (!(grid.length > 0x1p-60f && grid.length < 0x1p60f)) {
        const Same lo{grid.lo}, length{grid.length};
        for (int64_t i = 0; i < count; ++i) {
            const float step = grid.steps != nullptr ? grid.steps[i] : grid.step;
            const float top = grid.steps != nullptr ? grid.tops[i] : grid.top;
            levels[i] = level_of(weights[i], lo.value, length.value, step, top);
        }
    } else if (grid.steps != nullptr) {
        quantize_multiplied(weights, count, grid, Each{grid.steps}, Each{grid.inverses}, Each{grid.tops},
                            levels);
    } else {
        quantize_multiplied(weights, count, grid, Same{grid.step}, Same{grid.inverse}, Same{grid.top},
                            levels);
    }
}

template <bool kPastCache, typename Ends, typename Width>
static void dequantize_with(const uint32_t* levels, int64_t count, Ends lo, Ends length, Width step,
                            float* weights) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Float level = float_from_int((Int)load(levels + i));
        put<kPastCache>(((level * step.at(i)) * length.at(i)) + lo.at(i), weights + i);
    }
    for (; i < count; ++i) {
        const float level = static_cast<float>(static_cast<int32_t>(levels[i]));
        weights[i] = ((level * step.one(i)) * length.one(i)) + lo.one(i);
    }
}

template <bool kPastCache>
static void dequantize_by(const uint32_t* levels, int64_t count, const LevelGrid& grid, float* weights) {
    const Same lo{grid.lo}, length{grid.length}, step{grid.step};
    const Each los{grid.los}, lengths{grid.lengths}, steps{grid.steps};
    if (grid.lengths != nullptr && grid.steps != nullptr) {
        dequantize_with<kPastCache>(levels, count, los, lengths, steps, weights);
    } else if (grid.lengths != nullptr) {
        dequantize_with<kPastCache>(levels, count, los, lengths, step, weights);
    } else if (grid.steps != nullptr) {
        dequantize_with<kPastCache>(levels, count, lo, length, steps, weights);
    } else {
        dequantize_with<kPastCache>(levels, count, lo, length, step, weights);
    }
}

static void dequantize(const uint32_t* levels, int64_t count, const LevelGrid& grid, bool past_cache,
                       float* weights) {
    if (past_cache && is_aligned(weights)) {
        dequantize_by<true>(levels, count, grid, weights);
    } else {
        dequantize_by<false>(levels, count, grid, weights);
    }
}
