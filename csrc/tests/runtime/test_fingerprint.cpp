// Every byte is seen by one look, and order counts.
#include <algorithm>
#include <utility>
#include <vector>

#include "core/runtime/fingerprint.h"
#include "tests/check.h"

using namespace diffq_fast;

static std::vector<uint64_t> all(const std::vector<unsigned char>& data) {
    std::vector<uint64_t> found;
    for (size_t look = 0; look < fingerprint_looks(data.size()); ++look)
        found.push_back(fingerprint(data.data(), data.size(), look));
    for (int threads : {1, 3}) CHECK(all_fingerprints(data.data(), data.size(), threads) == found);
    return found;
}

static void every_byte_is_seen_by_one_look() {
    for (size_t bytes : {0, 1, 7, 8, 63, 64, 65, 4096, 65535, 65536, 65537, 200001, 9000001}) {
        std::vector<unsigned char> data(bytes);
        for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<unsigned char>(i * 131 + i / 251);
        const auto before = all(data);
        CHECK(before.size() == std::max<size_t>(1, (bytes + 65535) / 65536));
        for (size_t i = 0; i < bytes; i += bytes > 500000 ? 900001 : bytes > 5000 ? 997 : 1) {
            data[i] ^= 1;
            const auto after = all(data);
            size_t different = 0;
            for (size_t look = 0; look < before.size(); ++look) different += after[look] != before[look];
            CHECK(different == 1);
            data[i] ^= 1;
        }
        CHECK(all(data) == before);
        if (bytes >= 4096) {  // two lines change places
            for (size_t i = 0; i < 64; ++i) std::swap(data[i], data[64 * before.size() + i]);
            CHECK(all(data) != before);
        }
    }
}

RUN_TESTS(every_byte_is_seen_by_one_look)
