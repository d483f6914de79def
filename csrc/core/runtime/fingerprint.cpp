#include "core/runtime/fingerprint.h"

#include <algorithm>
#include <cstring>

#include "core/runtime/memory.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr size_t kLanes = kFingerprintLine / sizeof(uint64_t);
constexpr size_t kLooksTogether = 64;  // which read a page in a row
constexpr size_t kAhead = 16;          // lines: far apart ones are not fetched by the processor itself

// Sums, and sums of the sums so far: the second ones tell the order. One pair for each word of a line.
struct Sums {
    uint64_t plain[kLanes] = {};
    uint64_t ordered[kLanes] = {};

    void add(const unsigned char* line) {
        uint64_t words[kLanes];
        std::memcpy(words, line, kFingerprintLine);
        for (size_t lane = 0; lane < kLanes; ++lane) {
            plain[lane] += words[lane];
            ordered[lane] += plain[lane];
        }
    }

    uint64_t mixed() const {
        constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u;
        uint64_t result = 0;
        for (size_t lane = 0; lane < kLanes; ++lane) {
            result = (result ^ plain[lane]) * kOdd;
            result = (result ^ (result >> 29) ^ ordered[lane]) * kOdd;
        }
        return result ^ (result >> 32);
    }
};

// The last line of a piece of memory, zeros behind its end.
void add_part_of_line(const unsigned char* data, size_t bytes, Sums& sums) {
    const size_t whole = bytes / kFingerprintLine;
    unsigned char last[kFingerprintLine] = {};
    std::memcpy(last, data + whole * kFingerprintLine, bytes % kFingerprintLine);
    sums.add(last);
}

}  // namespace

size_t fingerprint_looks(size_t bytes) {
    const size_t lines = (bytes + kFingerprintLine - 1) / kFingerprintLine;
    return std::max<size_t>(1, (lines + kFingerprintLines - 1) / kFingerprintLines);
}

uint64_t fingerprint(const unsigned char* data, size_t bytes, size_t look) {
    const size_t looks = fingerprint_looks(bytes), whole = bytes / kFingerprintLine;
    Sums sums;
    size_t line = look;
    for (; line < whole; line += looks) {
        expect_read(data + (line + kAhead * looks < whole ? line + kAhead * looks : line) * kFingerprintLine);
        sums.add(data + line * kFingerprintLine);
    }
    if (line == whole && bytes % kFingerprintLine) {
        add_part_of_line(data, bytes, sums);
    }
    return sums.mixed();
}

std::vector<uint64_t> all_fingerprints(const unsigned char* data, size_t bytes, int threads) {
    const size_t looks = fingerprint_looks(bytes), whole = bytes / kFingerprintLine;
    std::vector<uint64_t> found(looks);
    const size_t tasks = (looks + kLooksTogether - 1) / kLooksTogether;
    parallel_for(static_cast<int64_t>(tasks), threads, [&](int64_t task) {
        const size_t first = static_cast<size_t>(task) * kLooksTogether,
                     number = std::min(kLooksTogether, looks - first);
        Sums sums[kLooksTogether];
        for (size_t row = first; row < whole; row += looks) {
            const size_t in_row = std::min(number, whole - row);
            for (size_t i = 0; i < in_row; ++i) sums[i].add(data + (row + i) * kFingerprintLine);
        }
        const size_t last = whole % looks;  // the look that reads what is left
        if (bytes % kFingerprintLine && last >= first && last < first + number)
            add_part_of_line(data, bytes, sums[last - first]);
        for (size_t i = 0; i < number; ++i) found[first + i] = sums[i].mixed();
    });
    return found;
}

}  // namespace diffq_fast
