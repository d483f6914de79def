#include "core/file/crc32.h"

namespace diffq_fast {
namespace {

constexpr int kAtOnce = 16;

// of[k][b]: what byte b, with k bytes behind it, adds to the sum.
struct Tables {
    uint32_t of[kAtOnce][256];

    constexpr Tables() : of() {
        for (uint32_t byte = 0; byte < 256; ++byte) {
            uint32_t sum = byte;
            for (int bit = 0; bit < 8; ++bit) sum = sum >> 1 ^ (sum & 1 ? 0xEDB88320u : 0);
            of[0][byte] = sum;
        }
        for (int behind = 1; behind < kAtOnce; ++behind) {
            for (uint32_t byte = 0; byte < 256; ++byte) {
                const uint32_t sum = of[behind - 1][byte];
                of[behind][byte] = sum >> 8 ^ of[0][sum & 255];
            }
        }
    }
};
constexpr Tables kTables{};

}  // namespace

uint32_t crc32(const uint8_t* data, size_t bytes, uint32_t before) {
    uint32_t sum = ~before;
    for (; bytes >= kAtOnce; bytes -= kAtOnce, data += kAtOnce) {
        uint32_t next = 0;
        for (int i = 0; i < 4; ++i) next ^= kTables.of[kAtOnce - 1 - i][data[i] ^ (sum >> 8 * i & 255)];
        for (int i = 4; i < kAtOnce; ++i) next ^= kTables.of[kAtOnce - 1 - i][data[i]];
        sum = next;
    }
    for (; bytes > 0; --bytes, ++data) sum = sum >> 8 ^ kTables.of[0][(sum ^ *data) & 255];
    return ~sum;
}

}  // namespace diffq_fast
