// The noise of whole Philox calls, one call after the other.

constexpr int64_t kCallsAtOnce = 128;

// The words of Philox calls first_call ... + calls - 1, four each.
static void make_words(PhiloxKey key, uint32_t stream, uint64_t first_call, int64_t calls, uint32_t* words) {
    const uint32_t low = static_cast<uint32_t>(first_call);
    const uint32_t high = static_cast<uint32_t>(first_call >> 32);
    for (int64_t i = 0; i < calls; ++i) {
        const uint32_t c0 = low + static_cast<uint32_t>(i);
        const uint32_t c1 = high + (c0 < low ? 1 : 0);
        const PhiloxWords made = philox4x32_10({c0, c1, stream, 0}, key);
        words[4 * i] = made.w0;
        words[4 * i + 1] = made.w1;
        words[4 * i + 2] = made.w2;
        words[4 * i + 3] = made.w3;
    }
}

// One word holds the draws of two elements, the even one in its low half.
static void uniform_from_words(const uint32_t* words, int64_t count, float* z) {
    for (int64_t i = 0; i < count; ++i) {
        const float even = static_cast<float>(static_cast<int32_t>(words[i] & 0xFFFF));
        const float odd = static_cast<float>(static_cast<int32_t>(words[i] >> 16));
        z[2 * i] = (even + 0.5f) * 0x1p-16f - 0.5f;
        z[2 * i + 1] = (odd + 0.5f) * 0x1p-16f - 0.5f;
    }
}

static void gaussian_from_words(const uint32_t* words, int64_t count, float* z) {
    for (int64_t i = 0; i < count; ++i) {
        const float fraction =
            (static_cast<float>(static_cast<int32_t>(words[i] & 0xFFFF)) + 0.5f) * 0x1p-16f;
        const float radius = std::sqrt(half_negative_log(fraction));  // half of sqrt(-2 ln u)
        const HalfAngle half = half_angle(words[i]);
        const float twice = radius * (half.sine + half.sine);
        z[2 * i] = radius - twice * half.sine;
        z[2 * i + 1] = twice * half.cosine;
    }
}

static void make_noise(const NoiseRun& run, float* z) {
    uint32_t words[4 * kCallsAtOnce];
    float made[kCallElements * kCallsAtOnce];
    for (int64_t done = 0; done < run.span.count;) {
        const int64_t skipped = (run.span.begin + done) % kCallElements,
                      left = skipped + run.span.count - done;
        const int64_t calls =
            left < kCallElements * kCallsAtOnce ? (left + kCallElements - 1) / kCallElements : kCallsAtOnce;
        make_words(run.source.key, run.source.stream,
                   static_cast<uint64_t>((run.span.begin + done) / kCallElements), calls, words);
        if (run.source.noise_kind == NoiseKind::uniform) {
            uniform_from_words(words, 4 * calls, made);
        } else {
            gaussian_from_words(words, 4 * calls, made);
        }
        const int64_t now = (left < kCallElements * calls ? left : kCallElements * calls) - skipped;
        std::memcpy(z + done, made + skipped, static_cast<size_t>(now) * sizeof(float));
        done += now;
    }
}
