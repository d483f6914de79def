// Philox4x32-10 over kCalls counters at once, one in the low half of each 64-bit lane; what is left in the
// high halves is never looked at: mul_wide reads low halves only.

constexpr int kCalls = kLanes / 2;

// The counters' order among the lanes: lane 2i holds call i, lane 2i + 1 call i + kCalls / 2 (see draw()).
template <int... kLane>
DIFFQ_INLINE Wide lane_calls(Indices<kLane...>) {
    return Wide{static_cast<uint64_t>(kLane / 2 + kLane % 2 * (kCalls / 2))...};
}

struct RoundKeys {
    Wide k0[kPhiloxRounds], k1[kPhiloxRounds];

    explicit RoundKeys(PhiloxKey key) {
        for (int round = 0; round < kPhiloxRounds; ++round) {
            k0[round] = splat_wide(key.k0 + static_cast<uint32_t>(round) * kPhiloxAddend0);
            k1[round] = splat_wide(key.k1 + static_cast<uint32_t>(round) * kPhiloxAddend1);
        }
    }
};

struct Draws {
    Uint first, second;
};

template <int... kLane>
DIFFQ_INLINE Wide low_of_pairs(Wide a, Wide b, Indices<kLane...>) {
    return __builtin_shufflevector(a, b, (kLane % 2 ? kLane - 1 + kCalls : kLane)...);
}

template <int... kLane>
DIFFQ_INLINE Wide high_of_pairs(Wide a, Wide b, Indices<kLane...>) {
    return __builtin_shufflevector(a, b, (kLane % 2 ? kLane + kCalls : kLane + 1)...);
}

// The words of calls first_call ... + kCalls - 1, in order:
//   a, b (64-bit lanes)   |w0 w1 of call 0|w0 w1 of call n|w0 w1 of call 1| ...   n = kCalls / 2
//                         |w2 w3 of call 0|w2 w3 of call n|w2 w3 of call 1| ...
//   even lanes of both    |w0 w1 w2 w3 of call 0|w0 w1 w2 w3 of call 1| ...
DIFFQ_INLINE Draws draw(const RoundKeys& keys, uint32_t stream, uint64_t first_call) {
    const Wide counter = splat_wide(first_call) + lane_calls(Count<kCalls>());
    Wide c0 = counter, c1 = counter >> 32, c2 = splat_wide(stream), c3 = {};
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const Wide product0 = mul_wide(c0, kPhiloxFactor0), product1 = mul_wide(c2, kPhiloxFactor1);
        c0 = (product1 >> 32) ^ c1 ^ keys.k0[round];
        c2 = (product0 >> 32) ^ c3 ^ keys.k1[round];
        c1 = product1;
        c3 = product0;
    }
    const Wide low = splat_wide(0xFFFFFFFF);
    const Wide a = (c0 & low) | (c1 << 32), b = (c2 & low) | (c3 << 32);
    return {(Uint)low_of_pairs(a, b, Count<kCalls>()), (Uint)high_of_pairs(a, b, Count<kCalls>())};
}

// Noise of the elements of kCalls calls, in order.
struct NoiseLanes {
    Float z[4];
};

// Half-word i of the word is element i. (h + 1/2) / 65536 - 1/2 is exact, so one fused operation gives it
// too.
DIFFQ_INLINE void uniform_lanes(Uint words, Float* z) {
    Half halves[2];
    std::memcpy(halves, &words, sizeof words);
    for (int part = 0; part < 2; ++part) {
        const Float h = float_from_int((Int)widen(halves[part]));
        z[part] = multiply_add(h, splat(0x1p-16f), splat(0x1p-17f - 0.5f));
    }
}

template <int... kLane>
DIFFQ_INLINE void interleave(Float even, Float odd, Float* z, Indices<kLane...>) {
    z[0] = __builtin_shufflevector(even, odd, (kLane / 2 + kLane % 2 * kLanes)...);
    z[1] = __builtin_shufflevector(even, odd, (kLanes / 2 + kLane / 2 + kLane % 2 * kLanes)...);
}

// Box-Muller, halved: one word holds the draws of two elements, the even one in its low half. With s, c of
// half the angle, cos = 1 - 2 s^2 and sin = 2 s c.
DIFFQ_INLINE void gaussian_lanes(Uint words, Float* z) {
    const Float h = float_from_int((Int)(words & 0xFFFFu));
    const Float fraction = multiply_add(h, splat(0x1p-16f), splat(0x1p-17f));
    const Float radius = positive_root(half_negative_log(fraction));  // half of sqrt(-2 ln u)
    const HalfAngle half = half_angle(words);
    const Float twice = radius * (half.sine + half.sine);
    interleave(multiply_add(-twice, half.sine, radius), twice * half.cosine, z, Count<kLanes>());
}

template <bool kGaussian>
DIFFQ_INLINE NoiseLanes noise_lanes(const RoundKeys& keys, uint32_t stream, uint64_t first_call) {
    const Draws draws = draw(keys, stream, first_call);
    NoiseLanes lanes;
    if constexpr (kGaussian) {
        gaussian_lanes(draws.first, lanes.z);
        gaussian_lanes(draws.second, lanes.z + 2);
    } else {
        uniform_lanes(draws.first, lanes.z);
        uniform_lanes(draws.second, lanes.z + 2);
    }
    return lanes;
}

// Hands the run's noise to `use`: use.lanes(i, lanes) for 4 * kLanes elements from the run's element i on,
// while there are so many and they begin with a call; use.one(i, z) for the others.
template <bool kGaussian, typename Use>
DIFFQ_INLINE void hand_out(const NoiseRun& run, const Use& use) {
    const RoundKeys keys(run.source.key);
    constexpr int64_t kElements = kCallElements * kCalls;
    int64_t i = 0;
    if (run.span.begin % kCallElements == 0) {
        const auto first_call = static_cast<uint64_t>(run.span.begin / kCallElements);
        for (; i + kElements <= run.span.count; i += kElements) {
            use.lanes(i, noise_lanes<kGaussian>(keys, run.source.stream,
                                                first_call + static_cast<uint64_t>(i / kCallElements)));
        }
    }
    while (i < run.span.count) {
        const auto call = static_cast<uint64_t>((run.span.begin + i) / kCallElements);
        const NoiseLanes lanes = noise_lanes<kGaussian>(keys, run.source.stream, call);
        float z[kElements];
        std::memcpy(z, &lanes, sizeof z);
        for (int64_t j = (run.span.begin + i) % kCallElements; j < kElements && i < run.span.count; ++j, ++i)
            use.one(i, z[j]);
    }
}

struct StoreNoise {
    float* to;
    DIFFQ_MEMBER void lanes(int64_t i, const NoiseLanes& lanes) const {
        std::memcpy(to + i, &lanes, sizeof lanes);
    }
    DIFFQ_MEMBER void one(int64_t i, float z) const { to[i] = z; }
};

static void make_noise(const NoiseRun& run, float* z) {
    if (run.source.noise_kind == NoiseKind::gaussian) {
        hand_out<true>(run, StoreNoise{z});
    } else {
        hand_out<false>(run, StoreNoise{z});
    }
}
