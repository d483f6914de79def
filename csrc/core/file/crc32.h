// The CRC-32 of zlib, gzip and PNG.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diffq_fast {

// Of some bytes; or of more, given that of those before them.
uint32_t crc32(const uint8_t* data, size_t bytes, uint32_t before = 0);

}  // namespace diffq_fast
