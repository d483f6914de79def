// Smallest and largest of a block, and whether there is a NaN: lesser() and greater() keep their second
// argument where a NaN takes part, and a NaN's bits without the sign are larger than infinity's.

struct BoundsLanes {
    Float lo, hi;
    Word magnitude;

    DIFFQ_MEMBER void include(const BoundsLanes& other) {
        lo = lesser(other.lo, lo);
        hi = greater(other.hi, hi);
        magnitude = larger(magnitude, other.magnitude);
    }

    DIFFQ_MEMBER void include(Float values) {
        lo = lesser(values, lo);
        hi = greater(values, hi);
        magnitude = larger(magnitude, bits_of(values) & 0x7FFFFFFFu);
    }
};

static Bounds find_bounds(const float* values, int64_t count) {
    constexpr int kSets = 4;  // independent ones, as each waits for its own last result
    constexpr float kInfinity = __builtin_inff();
    BoundsLanes sets[kSets];
    for (BoundsLanes& set : sets) set = {splat(kInfinity), splat(-kInfinity), Word{}};
    int64_t i = 0;
    for (; i + kSets * kLanes <= count; i += kSets * kLanes) {
#pragma GCC unroll 4
        for (int set = 0; set < kSets; ++set) {
            expect_read(values + i + set * kLanes + kAhead);
            sets[set].include(load(values + i + set * kLanes));
        }
    }
    for (; i + kLanes <= count; i += kLanes) sets[0].include(load(values + i));
    Bounds found{kInfinity, -kInfinity, false};
    for (int set = 1; set < kSets; ++set) sets[0].include(sets[set]);
    for (int lane = 0; lane < kLanes; ++lane) {
        found.lo = sets[0].lo[lane] < found.lo ? sets[0].lo[lane] : found.lo;
        found.hi = sets[0].hi[lane] > found.hi ? sets[0].hi[lane] : found.hi;
        found.nan |= sets[0].magnitude[lane] > 0x7F800000u;
    }
    for (; i < count; ++i) {
        found.lo = values[i] < found.lo ? values[i] : found.lo;
        found.hi = values[i] > found.hi ? values[i] : found.hi;
        found.nan |= values[i] != values[i];
    }
    return found;
}
