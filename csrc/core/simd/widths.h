// logit -> width by thresholds, see core/isa/kernels.h.

// A whole window; returns whether one of its logits is in doubt.
static bool find_window(const WidthSteps& steps, const float* logits, uint8_t* widths) {
    constexpr int kSets = 4;  // independent ones
    uint32_t found[kWidthWindow];
    Word doubt = {};
    const Word one = Word{} + 1u, none = {};
    for (int64_t i = 0; i < kWidthWindow; i += kSets * kLanes) {
        Float x[kSets];
        Word above[kSets];
        for (int set = 0; set < kSets; ++set) {
            x[set] = load(logits + i + set * kLanes);
            above[set] = none;
            const Float zero = x[set] - x[set];  // or NaN
            doubt |= choose(zero == zero, none, one);
        }
        for (int k = 0; k < steps.count; ++k) {
            const Float from = splat(steps.from[k]);
            for (int set = 0; set < kSets; ++set) above[set] += choose(x[set] >= from, one, none);
        }
        // The first step that a logit does not reach is the only one whose doubt can be its own.
        for (int set = 0; set < kSets; ++set)
            doubt |= choose(x[set] >= look_up(steps.below, above[set]), one, none);
        __builtin_memcpy(found + i, above, sizeof above);
    }
    for (int64_t i = 0; i < kWidthWindow; ++i) widths[i] = static_cast<uint8_t>(found[i] + steps.lowest);
    return sum_of(doubt) != 0;
}

static void find_widths(const WidthSteps& steps, const float* logits, int64_t count, uint8_t* widths,
                        uint8_t* doubts) {
    for (; count >= kWidthWindow; count -= kWidthWindow) {
        *doubts++ = find_window(steps, logits, widths);
        logits += kWidthWindow;
        widths += kWidthWindow;
    }
    if (count == 0) return;
    float padded[kWidthWindow];
    uint8_t found[kWidthWindow];
    for (int64_t i = 0; i < kWidthWindow; ++i) padded[i] = logits[i < count ? i : 0];
    *doubts = find_window(steps, padded, found);
    __builtin_memcpy(widths, found, static_cast<size_t>(count));
}
