// Smallest and largest of a block. Comparisons with a NaN are false, so it never gets into lo or hi, but is
// remembered.

constexpr int kRangeLanes = 16;  // so that compilers make vectors of them

static void include_value(Range& range, float lo, float hi, bool nan) {
    range.lo = lo < range.lo ? lo : range.lo;
    range.hi = hi > range.hi ? hi : range.hi;
    range.nan |= nan;
}

static Range find_range(const float* values, int64_t count) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Range range{kInfinity, -kInfinity, false};
    float lo[kRangeLanes], hi[kRangeLanes];
    uint32_t nan[kRangeLanes] = {};
    std::fill(lo, lo + kRangeLanes, kInfinity);
    std::fill(hi, hi + kRangeLanes, -kInfinity);
    int64_t i = 0;
    for (; i + kRangeLanes <= count; i += kRangeLanes) {
        for (int lane = 0; lane < kRangeLanes; ++lane) {
            const float value = values[i + lane];
            lo[lane] = value < lo[lane] ? value : lo[lane];
            hi[lane] = value > hi[lane] ? value : hi[lane];
            nan[lane] |= mask_of(value != value);
        }
    }
    for (int lane = 0; lane < kRangeLanes; ++lane) include_value(range, lo[lane], hi[lane], nan[lane] != 0);
    for (; i < count; ++i) include_value(range, values[i], values[i], values[i] != values[i]);
    return range;
}
