// Rows of coded levels, see core/pack/coding.h: the definition, a lane at a time.

static const uint16_t* decode_rows(const CodedSlots& code, uint32_t* states, const uint16_t* words,
                                   int64_t rows, int32_t* levels) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int lane = 0; lane < kCodedLanes; ++lane) {
            uint32_t x = states[lane];
            const uint32_t slot = code.slots[x % kSlots];
            x = (slot >> 12) % kSlots * (x >> kProbabilityBits) + slot % kSlots;
            const uint32_t next = x << 16 | *words;
            const bool low = x < kLowestState;
            states[lane] = low ? next : x;
            words += low ? 1 : 0;
            *levels++ = code.origin + static_cast<int32_t>((slot >> 24) << code.low_bits);
        }
    }
    return words;
}
