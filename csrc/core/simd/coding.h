// Rows of coded levels, see core/pack/coding.h: vectors hold kLanes lanes of one row. The states stay in
// registers for all rows; the vectors of a row do not wait for one another, except for the place of their
// words, which a count of bits says.

constexpr int kRowVectors = kCodedLanes / kLanes;

template <bool kEscapes>
static const uint16_t* decode_coded_rows(const CodedSlots& code, uint32_t* states, const uint16_t* words,
                                         int64_t rows, int32_t* levels, uint32_t* escaped) {
    Uint x[kRowVectors];
    for (int v = 0; v < kRowVectors; ++v) x[v] = load(states + v * kLanes);
    const Uint origin = Uint{} + static_cast<uint32_t>(code.origin);
    const uint32_t low_bits = static_cast<uint32_t>(code.low_bits);
    *escaped = 0;
    for (int64_t row = 0; row < rows; ++row, levels += kCodedLanes) {
        Uint any{};
        for (int v = 0; v < kRowVectors; ++v) {
            const Uint slot = look_up_slots(code.slots, x[v] & (kSlots - 1));
            const Uint symbol = slot >> 24;
            if (kEscapes) any |= (Uint)(symbol == code.escape);
            store(origin + (symbol << low_bits), levels + v * kLanes);
            x[v] = (slot >> 12 & (kSlots - 1)) * (x[v] >> kProbabilityBits) + (slot & (kSlots - 1));
        }
        if (kEscapes) *escaped |= (any_bit(any) ? 1u : 0u) << row;
        for (int v = 0; v < kRowVectors; ++v) x[v] = take_words(x[v], words);
    }
    for (int v = 0; v < kRowVectors; ++v) store(x[v], states + v * kLanes);
    return words;
}

static const uint16_t* decode_rows(const CodedSlots& code, uint32_t* states, const uint16_t* words,
                                   int64_t rows, int32_t* levels, uint32_t* escaped) {
    return code.escape == kNoSymbol ? decode_coded_rows<false>(code, states, words, rows, levels, escaped)
                                    : decode_coded_rows<true>(code, states, words, rows, levels, escaped);
}
