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

static Range find_range(const float* values, int64_t count) {
    constexpr int kSets = 4;  // independent ones, as each waits for its own last result
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    RangeLanes sets[kSets];
    for (RangeLanes& set : sets) set = {splat(kInfinity), splat(-kInfinity), Uint{}};
    int64_t i = 0;
    for (; i + kSets * kLanes <= count; i += kSets * kLanes) {
#pragma GCC unroll 4
        for (int set = 0; set < kSets; ++set) {
            expect_read(values + i + set * kLanes + kAhead);
            sets[set].include(load(values + i + set * kLanes));
        }
    }
    for (; i + kLanes <= count; i += kLanes) sets[0].include(load(values + i));
    Range range{kInfinity, -kInfinity, false};
    for (int set = 1; set < kSets; ++set) sets[0].include(sets[set]);
    for (int lane = 0; lane < kLanes; ++lane) {
        range.lo = sets[0].lo[lane] < range.lo ? sets[0].lo[lane] : range.lo;
        range.hi = sets[0].hi[lane] > range.hi ? sets[0].hi[lane] : range.hi;
        range.nan |= sets[0].magnitude[lane] > kInfinityBits;
    }
    for (; i < count; ++i) {
        range.lo = values[i] < range.lo ? values[i] : range.lo;
        range.hi = values[i] > range.hi ? values[i] : range.hi;
        range.nan |= values[i] != values[i];
    }
    return range;
}
