// CRC-32 as zlib, PNG and Ethernet have it: polynomial 0x04C11DB7, lowest bit first.
#pragma once

#include <cstdint>

namespace diffq_fast {

// The checksum of what `start` is the checksum of, 0 for nothing, with these bytes behind it.
uint32_t crc32(uint32_t start, const uint8_t* bytes, int64_t count);

// Whether the processor multiplies polynomials. Where it does not, zlib's own code is faster than this one.
bool crc32_is_fast();

// The same, byte by byte from a table: what crc32() must equal.
uint32_t crc32_by_table(uint32_t start, const uint8_t* bytes, int64_t count);

}  // namespace diffq_fast
