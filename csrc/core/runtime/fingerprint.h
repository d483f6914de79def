// A number that tells whether memory still holds what it held: for weights that are written without notice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace diffq_fast {

constexpr size_t kFingerprintLine = 64;     // bytes
constexpr size_t kFingerprintLines = 1024;  // that one look reads at most: 64 kB

// How many looks see every byte: look number k reads the lines k, k + looks, k + 2 * looks, ...
size_t fingerprint_looks(size_t bytes);

// Of what look number `look` (below fingerprint_looks) reads. A change of one 8-byte word is always seen, any
// other one but for one in 2^64; the order of the words counts.
uint64_t fingerprint(const unsigned char* data, size_t bytes, size_t look);

// Those of all looks.
std::vector<uint64_t> all_fingerprints(const unsigned char* data, size_t bytes, int threads);

}  // namespace diffq_fast
