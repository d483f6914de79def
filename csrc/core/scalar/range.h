// Smallest and largest of a block. Comparisons with a NaN are false, so it never gets into lo or hi, but is
// remembered.

constexpr int kBoundsLanes = 16;  // so that compilers make vectors of them

static void include_bound(Bounds& found, float lo, float hi, bool nan) {
    found.lo = lo < found.lo ? lo : found.lo;
    found.hi = hi > found.hi ? hi : found.hi;
    found.nan |= nan;
}

static Bounds find_bounds(const float* values, int64_t count) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Bounds found{kInfinity, -kInfinity, false};
    float lo[kBoundsLanes], hi[kBoundsLanes];
    uint32_t nan[kBoundsLanes] = {};
    std::fill(lo, lo + kBoundsLanes, kInfinity);
    std::fill(hi, hi + kBoundsLanes, -kInfinity);
    int64_t i = 0;
    for (; i + kBoundsLanes <= count; i += kBoundsLanes) {
        for (int lane = 0; lane < kBoundsLanes; ++lane) {
            const float value = values[i + lane];
            lo[lane] = value < lo[lane] ? value : lo[lane];
            hi[lane] = value > hi[lane] ? value : hi[lane];
            nan[lane] |= mask_of(value != value);
        }
    }
    for (int lane = 0; lane < kBoundsLanes; ++lane) include_bound(found, lo[lane], hi[lane], nan[lane] != 0);
    for (; i < count; ++i) include_bound(found, values[i], values[i], values[i] != values[i]);
    return found;
}
