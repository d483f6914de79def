// The arithmetic of a training step, while the noise is in registers: weights plus scaled noise; gradients
// times noise, and their sums over groups.

template <int kSize, int... kLane>
DIFFQ_INLINE Float spread_groups(const float* values, Indices<kLane...>) {
    const Float groups = load(values);
    return __builtin_shufflevector(groups, groups, (kLane / kSize)...);
}

// The amplitudes of kLanes elements that begin with a group of kSize, or lie in one.
template <int kSize>
DIFFQ_INLINE Float amplitude_lanes(const float* amplitudes) {
    if constexpr (kSize == 1) {
        return load(amplitudes);
    } else if constexpr (kSize >= kLanes) {
        return splat(*amplitudes);
    } else {
        return spread_groups<kSize>(amplitudes, Count<kLanes>());
    }
}

template <int kSize, bool kPastCache>
struct AddToGroups {
    const float *values, *amplitudes;
    float* out;

    DIFFQ_MEMBER void lanes(int64_t i, const NoiseLanes& lanes) const {
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part, i += kLanes) {
            expect_read(values + i + kAhead);
            put<kPastCache>(load(values + i) + amplitude_lanes<kSize>(amplitudes + i / kSize) * lanes.z[part],
                            out + i);
        }
    }
    DIFFQ_MEMBER void one(int64_t i, float z) const { out[i] = values[i] + amplitudes[i / kSize] * z; }
};

template <bool kPastCache>
struct AddToSame {
    const float *values, *amplitude;
    float* out;

    DIFFQ_MEMBER void lanes(int64_t i, const NoiseLanes& lanes) const {
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part, i += kLanes) {
            expect_read(values + i + kAhead);
            put<kPastCache>(load(values + i) + *amplitude * lanes.z[part], out + i);
        }
    }
    DIFFQ_MEMBER void one(int64_t i, float z) const { out[i] = values[i] + *amplitude * z; }
};

template <template <bool> class Use>
DIFFQ_INLINE void hand_out_to(const NoiseRun& run, const float* values, const float* amplitudes,
                              bool past_cache, float* out) {
    if (past_cache && is_aligned(out)) {
        if (run.source.noise_kind == NoiseKind::gaussian)
            return hand_out<true>(run, Use<true>{values, amplitudes, out});
        return hand_out<false>(run, Use<true>{values, amplitudes, out});
    }
    if (run.source.noise_kind == NoiseKind::gaussian)
        return hand_out<true>(run, Use<false>{values, amplitudes, out});
    return hand_out<false>(run, Use<false>{values, amplitudes, out});
}

template <int kSize>
struct Groups {
    template <bool kPastCache>
    using Add = AddToGroups<kSize, kPastCache>;
};

template <template <bool> class Use>
static void add_to(const NoiseRun& run, const float* values, const float* amplitudes, bool past_cache,
                   float* out) {
    hand_out_to<Use>(run, values, amplitudes, past_cache, out);
}

static void add_noise(const NoiseRun& run, const float* values, const float* amplitudes, int64_t group_size,
                      bool past_cache, float* out) {
    switch (group_size) {
        case 0:
            return add_to<AddToSame>(run, values, amplitudes, past_cache, out);
        case 1:
            return add_to<Groups<1>::Add>(run, values, amplitudes, past_cache, out);
        case 2:
            return add_to<Groups<2>::Add>(run, values, amplitudes, past_cache, out);
        case 4:
            return add_to<Groups<4>::Add>(run, values, amplitudes, past_cache, out);
        case 8:
            return add_to<Groups<8>::Add>(run, values, amplitudes, past_cache, out);
        case 16:
            return add_to<Groups<16>::Add>(run, values, amplitudes, past_cache, out);
        default: {
            NoiseRun group = run;
            group.span.count = group_size;
            for (int64_t i = 0; i < run.span.count; i += group_size, group.span.begin += group_size) {
                add_to<AddToSame>(group, values + i, amplitudes++, past_cache, out + i);
            }
        }
    }
}

template <bool kPastCache>
struct Multiply {
    const float* gradients;
    float *copies, *products;

    DIFFQ_MEMBER void lanes(int64_t i, const NoiseLanes& lanes) const {
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part, i += kLanes) {
            expect_read(gradients + i + kAhead);
            const Float gradient = load(gradients + i);
            put<kPastCache>(gradient, copies + i);
            store(gradient * lanes.z[part], products + i);
        }
    }
    DIFFQ_MEMBER void one(int64_t i, float z) const {
        copies[i] = gradients[i];
        products[i] = gradients[i] * z;
    }
};

static void multiply_noise(const NoiseRun& run, const float* gradients, bool past_cache, float* copies,
                           float* products) {
    const bool gaussian = run.source.noise_kind == NoiseKind::gaussian;
    if (past_cache && is_aligned(copies)) {
        const Multiply<true> use{gradients, copies, products};
        gaussian ? hand_out<true>(run, use) : hand_out<false>(run, use);
    } else {
        const Multiply<false> use{gradients, copies, products};
        gaussian ? hand_out<true>(run, use) : hand_out<false>(run, use);
    }
}

// Lanes a and b hold groups of 2 * kHalf partial sums; the result holds groups of kHalf, a's and then b's.
template <int kHalf, int... kLane>
DIFFQ_INLINE Float fold(Float a, Float b, Indices<kLane...>) {
    const Float low = __builtin_shufflevector(a, b, (kLane / kHalf * 2 * kHalf + kLane % kHalf)...);
    const Float high = __builtin_shufflevector(a, b, (kLane / kHalf * 2 * kHalf + kHalf + kLane % kHalf)...);
    return low + high;
}

// Vector kIndex of groups of kSize products, each folded to kWidth partial sums.
template <int kSize, int kWidth, int kIndex>
DIFFQ_INLINE Float partial_sums(const float* products) {
    if constexpr (kWidth == kSize) {
        return load(products + kIndex * kLanes);
    } else if constexpr (kWidth >= kLanes) {
        constexpr int kVectors = kWidth / kLanes,
                      kFirst = kIndex / kVectors * 2 * kVectors + kIndex % kVectors;
        return partial_sums<kSize, 2 * kWidth, kFirst>(products) +
               partial_sums<kSize, 2 * kWidth, kFirst + kVectors>(products);
    } else {
        return fold<kWidth>(partial_sums<kSize, 2 * kWidth, 2 * kIndex>(products),
                            partial_sums<kSize, 2 * kWidth, 2 * kIndex + 1>(products), Count<kLanes>());
    }
}

template <int kSize>
static void sum_fixed(const float* products, int64_t groups, float* sums) {
    int64_t g = 0;
    for (; g + kLanes <= groups; g += kLanes) {
        store(partial_sums<kSize, 1, 0>(products + g * kSize), sums + g);
    }
    for (; g < groups; ++g) {
        float parts[kSize];
        for (int j = 0; j < kSize; ++j) parts[j] = products[g * kSize + j];
        for (int half = kSize / 2; half > 0; half /= 2) {
            for (int j = 0; j < half; ++j) parts[j] += parts[j + half];
        }
        sums[g] = parts[0];
    }
}

static void sum_groups(const float* products, int64_t groups, int64_t group_size, float* sums) {
    switch (group_size) {
        case 1:
            return sum_fixed<1>(products, groups, sums);
        case 2:
            return sum_fixed<2>(products, groups, sums);
        case 4:
            return sum_fixed<4>(products, groups, sums);
        case 8:
            return sum_fixed<8>(products, groups, sums);
        default:
            return sum_fixed<16>(products, groups, sums);
    }
}

// Eight lanes of doubles, whatever kLanes is.
constexpr int kDoubles = kLanes / 2;

// a[i] * b[i], or a[i] alone, summed by i % 8 and then pairwise.
template <bool kProducts>
static double sum_lanes(const float* a, const float* b, int64_t count) {
    Doubles sums[8 / kDoubles] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (int part = 0; part < 8 / kDoubles; ++part) {
            Doubles value = doubles_of(load_as<FewFloats>(a + i + part * kDoubles));
            if (kProducts) value *= doubles_of(load_as<FewFloats>(b + i + part * kDoubles));
            sums[part] += value;
        }
    }
    double lanes[8];
    std::memcpy(lanes, sums, sizeof lanes);
    for (; i < count; ++i)
        lanes[i % 8] += kProducts ? static_cast<double>(a[i]) * static_cast<double>(b[i]) : a[i];
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

static double sum(const float* values, int64_t count) {
    return sum_lanes<false>(values, values, count);
}

static double dot(const float* a, const float* b, int64_t count) {
    return sum_lanes<true>(a, b, count);
}
