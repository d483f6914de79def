// Activations in whole numbers, see core/infer/activations.h.

constexpr float kMostInt8 = 127.0f;
constexpr float kLeastBlock = 0x1p-100f;  // a block of smaller values is zero: 127 over them may be infinite
constexpr float kToWhole = 0x1.8p23f;     // added to what is smaller than 2^22, it rounds to whole numbers
constexpr uint32_t kToWholeBits = 0x4B400000, kMagnitude = 0x7FFFFFFF, kInfinityBits = 0x7F800000;

// The largest magnitude, as bits: those of what is not finite are kInfinityBits or more.
DIFFQ_INLINE uint32_t most_bits(const float* block) {
    Int most{};
    for (int64_t i = 0; i < kBlockColumns; i += kLanes) {
        const Int bits = (Int)(bits_of(load(block + i)) & kMagnitude);
        most = bits > most ? bits : most;
    }
    int32_t lanes[kLanes];
    std::memcpy(lanes, &most, sizeof lanes);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] = std::max(lanes[lane], lanes[lane + half]);
    return static_cast<uint32_t>(lanes[0]);
}

static float round_block(const float* values, int64_t count, int8_t* whole) {
    float padded[kBlockColumns] = {};
    if (count < kBlockColumns) {
        std::copy(values, values + count, padded);
        values = padded;
    }
    const uint32_t bits = most_bits(values);
    const float most = diffq_fast::float_of(bits);
    if (bits >= kInfinityBits || most < kLeastBlock) {
        std::fill(whole, whole + count, int8_t{0});
        return bits >= kInfinityBits ? std::numeric_limits<float>::quiet_NaN() : most / kMostInt8;
    }
    int32_t made[kBlockColumns];
    const Float inverse = splat(kMostInt8 / most), to_whole = splat(kToWhole);
    for (int64_t i = 0; i < kBlockColumns; i += kLanes) {
        const Uint rounded = bits_of(load(values + i) * inverse + to_whole) - kToWholeBits;
        std::memcpy(made + i, &rounded, sizeof rounded);
    }
    int8_t bytes[kBlockColumns];
    for (int64_t i = 0; i < kBlockColumns; ++i) bytes[i] = static_cast<int8_t>(made[i]);
    if (count == kBlockColumns)
        std::memcpy(whole, bytes, kBlockColumns);
    else
        std::copy(bytes, bytes + count, whole);
    return most / kMostInt8;
}
