// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

namespace diffq_fast {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxFactor0 = 0xD2511F53, kPhiloxFactor1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxAddend0 = 0x9E3779B9, kPhiloxAddend1 = 0xBB67AE85;  // to the key, per round

struct PhiloxKey {
    uint32_t k0, k1;

    // k0 = low, k1 = high 32 bits.
    static PhiloxKey from_bits(uint64_t bits) {
        return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
    }
};

struct PhiloxWords {
    uint32_t w0, w1, w2, w3;
};

inline PhiloxWords philox4x32_10(PhiloxWords counter, PhiloxKey key) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t product0 = uint64_t{kPhiloxFactor0} * counter.w0;
        const uint64_t product1 = uint64_t{kPhiloxFactor1} * counter.w2;
        counter = {
            static_cast<uint32_t>(product1 >> 32) ^ counter.w1 ^ key.k0, static_cast<uint32_t>(product1),
            static_cast<uint32_t>(product0 >> 32) ^ counter.w3 ^ key.k1, static_cast<uint32_t>(product0)};
        key.k0 += kPhiloxAddend0;
        key.k1 += kPhiloxAddend1;
    }
    return counter;
}

}  // namespace diffq_fast
