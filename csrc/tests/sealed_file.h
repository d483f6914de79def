// Packed files for tests and fuzzers: the golden ones, and any bytes given right checksums, so that what lies
// behind these is reached.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file/container.h"
#include "core/file/crc32.h"

namespace diffq_fast {

using FileBytes = std::vector<uint8_t>;

inline FileBytes read_bytes(const std::string& path) {
    FileBytes bytes;
    std::FILE* const file = std::fopen(path.c_str(), "rb");
    if (file == nullptr) return bytes;
    for (int byte = std::fgetc(file); byte != EOF; byte = std::fgetc(file))
        bytes.push_back(static_cast<uint8_t>(byte));
    std::fclose(file);
    return bytes;
}

inline void put_digits(uint8_t* place, uint32_t value) {
    char digits[9];
    std::snprintf(digits, sizeof digits, "%08x", static_cast<unsigned>(value));
    std::memcpy(place, digits, 8);
}

// Places of all tensors whose offsets lie in the file, in file order.
inline std::vector<std::pair<int64_t, int64_t>> places_of_tensors(std::string_view header,
                                                                  int64_t data_bytes) {
    const MemoryHooks hooks = malloc_hooks();
    JsonReader reader(header, true, hooks);
    JsonString name, field;
    std::vector<std::pair<int64_t, int64_t>> places;
    if (!reader.begin_object()) return places;
    while (reader.next_key(name)) {
        if (name.is("__metadata__") || reader.kind() != JsonReader::Kind::object) {
            reader.skip();
            continue;
        }
        int64_t begin = 0, end = -1;
        for (reader.begin_object(); reader.next_key(field);) {
            if (!field.is("data_offsets") || !reader.begin_list()) {
                reader.skip();
                continue;
            }
            if (reader.next_item()) reader.whole(begin);
            if (reader.next_item()) reader.whole(end);
            while (reader.next_item()) reader.skip();
        }
        if (begin <= end && end <= data_bytes) places.emplace_back(begin, end);
    }
    std::sort(places.begin(), places.end());
    return places;
}

// Puts the right sums where a file has room for them; does what it can with bytes that are no file.
inline void seal(FileBytes& file) {
    Failure failure;
    std::string_view header;
    const auto size = static_cast<int64_t>(file.size());
    if (!find_header({file.data(), size}, header, failure)) return;
    uint8_t* const text = file.data() + 8;
    const auto data_start = static_cast<int64_t>(8 + header.size());
    size_t at = header.find("\"crc32\":\"[");
    for (const auto& [begin, end] : places_of_tensors(header, size - data_start)) {
        if (at != std::string_view::npos) at = header.find("\\\"", at);
        if (at == std::string_view::npos || at + 12 > header.size() || header.substr(at + 10, 2) != "\\\"")
            break;
        put_digits(text + at + 2, crc32(file.data() + data_start + begin, static_cast<size_t>(end - begin)));
        at += 12;
    }
    const size_t key = header.find("\"header_crc32\":\"") + 16;
    if (key < 16 || key + 8 > header.size()) return;
    std::memset(text + key, '0', 8);
    put_digits(text + key, crc32(file.data(), static_cast<size_t>(data_start)));
}

}  // namespace diffq_fast
