// Smallest and largest of a block, and whether there is a NaN: lesser() and greater() keep their second
// argument where a NaN takes part, and a NaN's bits without the sign are larger than infinity's.

struct RangeLanes {
    Float lo, hi;
    Uint magnitude;

    DIFFQ_MEMBER void include(const RangeLanes& lanes) {
        lo = lesser(lanes.lo, lo);
        hi = greater(lanes.hi, hi);
        magnitude = larger(magnitude, lanes.magnitude);
    }

    DIFFQ_MEMBER void include(Float values) {
        lo = lesser(values, lo);
        hi = greater(values, hi);
        magnitude = larger(magnitude, bits_of(values) & 0x7FFFFFFFu);
    }
};

DIFFQ_INLINE RangeLanes no_range() {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    return {splat(kInfinity), splat(-kInfinity), Uint{}};
}

DIFFQ_INLINE void include_value(Range& range, float value) {
    range.lo = value < range.lo ? value : range.lo;
    range.hi = value > range.hi ? value : range.hi;
    range.nan |= value != value;
}

DIFFQ_INLINE Range range_of(const RangeLanes& lanes) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Range range{kInfinity, -kInfinity, false};
    for (int lane = 0; lane < kLanes; ++lane) {
        range.lo = lanes.lo[lane] < range.lo ? lanes.lo[lane] : range.lo;
        range.hi = lanes.hi[lane] > range.hi ? lanes.hi[lane] : range.hi;
        range.nan |= lanes.magnitude[lane] > kInfinityBits;
    }
    return range;
}

static Range find_range(const float* values, int64_t count) {
    constexpr int kSets = 4;  // independent ones, as each waits for its own last result
    RangeLanes sets[kSets];
    for (RangeLanes& set : sets) set = no_range();
    int64_t i = 0;
    for (; i + kSets * kLanes <= count; i += kSets * kLanes) {
#pragma GCC unroll 4
        for (int set = 0; set < kSets; ++set) {
            expect_read(values + i + set * kLanes + kAhead);
            sets[set].include(load(values + i + set * kLanes));
        }
    }
    for (; i + kLanes <= count; i += kLanes) sets[0].include(load(values + i));
    for (int set = 1; set < kSets; ++set) sets[0].include(sets[set]);
    Range range = range_of(sets[0]);
    for (; i < count; ++i) include_value(range, values[i]);
    return range;
}
