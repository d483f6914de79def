// The widths of a weight's groups as a file has them, docs/packed_format.md section 5, run by run: they need
// not be in memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "core/file/container.h"
#include "core/pack/words.h"
#include "core/runtime/dispatch.h"

namespace diffq_fast {

enum class WidthForm : uint8_t { one, fixed, runs };

// ["one", width], ["fixed", lowest, bits] or ["runs"].
struct WidthCoding {
    WidthForm form;
    uint8_t lowest, bits;
};

constexpr int kMostVarintBytes = 9;  // 63 bits: no run can overflow

inline int64_t fixed_width_bytes(int64_t groups, int bits) {
    return 4 * stream_words(groups, bits);
}

template <typename Run>
const char* for_each_fixed_width(const WidthCoding& coding, Bytes table, int64_t groups, Run&& run) {
    if (table.size != fixed_width_bytes(groups, coding.bits))
        return "the widths have another number of bytes";
    for (int64_t begin = 0; begin < groups; begin += kPackBlock) {
        uint32_t words[4 * kBlockLanes], offsets[kPackBlock];
        const int64_t count = std::min(kPackBlock, groups - begin), lanes = lanes_of(count);
        const int64_t word = begin / kBlockRows * coding.bits;
        std::memcpy(words, table.data + 4 * word, static_cast<size_t>(4 * coding.bits * lanes));
        kernels().unpack_words(coding.bits, words, lanes, offsets);
        for (int64_t i = 0; i < count; ++i) {
            const int width = coding.lowest + static_cast<int>(offsets[i]);
            if (width > kMaxWidth) return "a width is above 16";
            run(width, int64_t{1});
        }
    }
    return nullptr;
}

template <typename Run>
const char* for_each_stored_run(Bytes table, int64_t groups, Run&& run) {
    int64_t left = groups;
    for (int64_t place = 0; place < table.size;) {
        uint64_t value = 0;
        for (int byte = 0;; ++byte) {
            if (place == table.size) return "the last run of widths is cut off";
            if (byte == kMostVarintBytes) return "a run of widths takes more than 9 bytes";
            const uint8_t next = table.data[place++];
            value |= uint64_t{next & 127u} << 7 * byte;
            if (next >= 128) continue;
            if (next == 0 && byte > 0) return "a run of widths is written with more bytes than it needs";
            break;
        }
        const auto length = static_cast<int64_t>(value >> 4) + 1;
        if (length > left) return "the runs of widths cover too many groups";
        left -= length;
        run(static_cast<int>(value & 15) + 1, length);
    }
    return left == 0 ? nullptr : "the runs of widths cover too few groups";
}

// Calls run(width, number of groups) for one run of groups after the other. Null, or what is wrong; then some
// may have been called.
template <typename Run>
const char* for_each_run(const WidthCoding& coding, Bytes table, int64_t groups, Run&& run) {
    if (coding.form == WidthForm::fixed) return for_each_fixed_width(coding, table, groups, run);
    if (coding.form == WidthForm::runs) return for_each_stored_run(table, groups, run);
    if (groups > 0) run(int{coding.lowest}, groups);
    return nullptr;
}

}  // namespace diffq_fast
