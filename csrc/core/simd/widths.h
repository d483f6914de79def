// logit -> width by thresholds, see core/isa/kernels.h.

// A whole window; returns whether one of its logits is in doubt.
static bool find_window(const WidthThresholds& thresholds, const float* logits, uint8_t* widths) {
    constexpr int kSets = 4;  // independent ones
    uint32_t counts[kWidthWindow];
    Uint doubt = {};
    const Uint one = Uint{} + 1u, none = {};
    for (int64_t i = 0; i < kWidthWindow; i += kSets * kLanes) {
        Float logit[kSets];
        Uint reached[kSets];
        for (int set = 0; set < kSets; ++set) {
            logit[set] = load(logits + i + set * kLanes);
            reached[set] = none;
            const Float zero = logit[set] - logit[set];  // or NaN
            doubt |= choose(zero == zero, none, one);
        }
        for (int k = 0; k < thresholds.count; ++k) {
            const Float threshold = splat(thresholds.reached[k]);
            for (int set = 0; set < kSets; ++set) reached[set] += choose(logit[set] >= threshold, one, none);
        }
        // The lowest threshold that a logit does not reach is the only one whose doubt can be its own.
        for (int set = 0; set < kSets; ++set)
            doubt |= choose(logit[set] >= look_up(thresholds.below, reached[set]), one, none);
        std::memcpy(counts + i, reached, sizeof reached);
    }
    for (int64_t i = 0; i < kWidthWindow; ++i)
        widths[i] = static_cast<uint8_t>(counts[i] + thresholds.lowest);
    return sum_of(doubt) != 0;
}

static void find_widths(const WidthThresholds& thresholds, const float* logits, int64_t count,
                        uint8_t* widths, uint8_t* doubts) {
    for (; count >= kWidthWindow; count -= kWidthWindow) {
        *doubts++ = find_window(thresholds, logits, widths);
        logits += kWidthWindow;
        widths += kWidthWindow;
    }
    if (count == 0) return;
    float padded[kWidthWindow];
    uint8_t made[kWidthWindow];
    for (int64_t i = 0; i < kWidthWindow; ++i) padded[i] = logits[i < count ? i : 0];
    *doubts = find_window(thresholds, padded, made);
    std::memcpy(widths, made, static_cast<size_t>(count));
}
