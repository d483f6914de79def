// The floating-point types that weights come in.
#pragma once

#include <cstdint>
#include <cstring>

namespace diffq_fast {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// The bits of infinity in float32, which are its exponent.
constexpr uint32_t kInfinityBits = 0x7F800000;

inline int64_t item_size(DType dtype) {
    return dtype == DType::float32 ? 4 : 2;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// All ones where `condition` holds: a select that compilers vectorise.
inline uint32_t mask_of(bool condition) {
    return condition ? ~uint32_t{0} : 0;
}

inline uint32_t select(uint32_t mask, uint32_t yes, uint32_t no) {
    return (mask & yes) | (~mask & no);
}

inline float float_from_bfloat16(uint16_t half) {
    return float_of(uint32_t{half} << 16);
}

// Round to nearest even; a NaN keeps its sign and becomes quiet.
inline uint16_t bfloat16_from_float(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40;
    return static_cast<uint16_t>(select(mask_of((bits & 0x7FFFFFFF) > kInfinityBits), quiet_nan, rounded));
}

// Exponent and mantissa move up 13 bits; the product with 2^112 corrects the exponent bias, exactly,
// subnormals too.
inline float float_from_float16(uint16_t half) {
    const uint32_t magnitude = uint32_t{half} & 0x7FFF;
    const uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
    const uint32_t special = (magnitude << 13) | kInfinityBits;  // infinity or NaN
    const uint32_t sign = (uint32_t{half} & 0x8000) << 16;
    return float_of(sign | select(mask_of(magnitude >= 0x7C00), special, finite));
}

// Round to nearest even; overflow gives infinity, a NaN becomes quiet and keeps its sign and its upper bits.
inline uint16_t float16_from_float(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t magnitude = bits & 0x7FFFFFFF;
    // Below 2^-14 the result is subnormal: adding 1/2 puts its last bit at the float's last bit, which rounds
    // it.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000;
    const uint32_t normal = (magnitude - (uint32_t{112} << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
    const uint32_t nan = 0x7E00 | ((magnitude >> 13) & 0x3FF);
    uint32_t half = select(mask_of(magnitude < 0x38800000), subnormal, normal);
    half = select(mask_of(magnitude >= 0x47800000), 0x7C00, half);
    half = select(mask_of(magnitude > kInfinityBits), nan, half);
    return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000));
}

}  // namespace diffq_fast
