// Rows of coded levels, see core/pack/coding.h: vectors hold kLanes lanes of one row. The states stay in
// registers for all rows; the vectors of a row do not wait for one another, except for the place of their
// words, which a count of bits says.

constexpr int kRowVectors = kCodedLanes / kLanes;

static const uint16_t* decode_rows(const CodedSlots& code, uint32_t* states, const uint16_t* words,
                                   int64_t rows, int32_t* levels) {
    Uint x[kRowVectors];
    for (int v = 0; v < kRowVectors; ++v) x[v] = load(states + v * kLanes);
    const Uint origin = Uint{} + static_cast<uint32_t>(code.origin);
    const uint32_t low_bits = static_cast<uint32_t>(code.low_bits);
    for (int64_t row = 0; row < rows; ++row, levels += kCodedLanes) {
        for (int v = 0; v < kRowVectors; ++v) {
            const Uint slot = look_up_slots(code.slots, x[v] & (kSlots - 1));
            store(origin + ((slot >> 24) << low_bits), levels + v * kLanes);
            x[v] = (slot >> 12 & (kSlots - 1)) * (x[v] >> kProbabilityBits) + (slot & (kSlots - 1));
        }
        for (int v = 0; v < kRowVectors; ++v) x[v] = take_words(x[v], words);
    }
    for (int v = 0; v < kRowVectors; ++v) store(x[v], states + v * kLanes);
    return words;
}
