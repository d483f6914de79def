#include "core/bitpack.h"

#include <array>
#include <utility>

#include "core/quantize.h"

namespace diffq_fast {
namespace {

// Row kRow of a lane starts in word kRow * kWidth / 32, and runs over into the next one where that is not
// enough.
template <int kWidth, int kRow>
inline void pack_row(const uint32_t* levels, int64_t lanes, int64_t lane, uint32_t* words, uint32_t& word) {
    constexpr uint32_t kMask = (uint32_t{1} << kWidth) - 1;
    constexpr int kWord = kRow * kWidth / 32, kShift = kRow * kWidth % 32;
    const uint32_t level = levels[kRow * lanes + lane] & kMask;
    word |= level << kShift;
    if constexpr (kShift + kWidth >= 32) {
        words[kWord * lanes + lane] = word;
        word = kShift + kWidth > 32 ? level >> (32 - kShift) % 32 : 0;
    }
}

template <int kWidth, int... kRow>
inline void pack_lanes(const uint32_t* __restrict levels, int64_t lanes, uint32_t* __restrict words,
                       std::integer_sequence<int, kRow...>) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
        uint32_t word = 0;
        (pack_row<kWidth, kRow>(levels, lanes, lane, words, word), ...);
    }
}

template <int kWidth, int kRow>
inline void unpack_row(const uint32_t* words, int64_t lanes, int64_t lane, uint32_t* levels) {
    constexpr uint32_t kMask = (uint32_t{1} << kWidth) - 1;
    constexpr int kWord = kRow * kWidth / 32, kShift = kRow * kWidth % 32;
    uint32_t level = words[kWord * lanes + lane] >> kShift;
    if constexpr (kShift + kWidth > 32) level |= words[(kWord + 1) * lanes + lane] << (32 - kShift);
    levels[kRow * lanes + lane] = level & kMask;
}

template <int kWidth, int... kRow>
inline void unpack_lanes(const uint32_t* __restrict words, int64_t lanes, uint32_t* __restrict levels,
                         std::integer_sequence<int, kRow...>) {
    for (int64_t lane = 0; lane < lanes; ++lane) (unpack_row<kWidth, kRow>(words, lanes, lane, levels), ...);
}

constexpr auto kAllRows = std::make_integer_sequence<int, kRows>();

// Whole blocks have a number of lanes that the compiler knows.
template <int kWidth>
void pack_width(const uint32_t* levels, int64_t lanes, uint32_t* words) {
    if (lanes == 32) {
        pack_lanes<kWidth>(levels, 32, words, kAllRows);
    } else {
        pack_lanes<kWidth>(levels, lanes, words, kAllRows);
    }
}

template <int kWidth>
void unpack_width(const uint32_t* words, int64_t lanes, uint32_t* levels) {
    if (lanes == 32) {
        unpack_lanes<kWidth>(words, 32, levels, kAllRows);
    } else {
        unpack_lanes<kWidth>(words, lanes, levels, kAllRows);
    }
}

using Body = void (*)(const uint32_t*, int64_t, uint32_t*);

template <int... kWidthLess1>
constexpr std::array<Body, kMaxWidth> pack_table(std::integer_sequence<int, kWidthLess1...>) {
    return {pack_width<kWidthLess1 + 1>...};
}

template <int... kWidthLess1>
constexpr std::array<Body, kMaxWidth> unpack_table(std::integer_sequence<int, kWidthLess1...>) {
    return {unpack_width<kWidthLess1 + 1>...};
}

constexpr auto kPack = pack_table(std::make_integer_sequence<int, kMaxWidth>());
constexpr auto kUnpack = unpack_table(std::make_integer_sequence<int, kMaxWidth>());

}  // namespace

void pack_block(int width, const uint32_t* levels, int64_t lanes, uint32_t* words) {
    kPack[static_cast<size_t>(width) - 1](levels, lanes, words);
}

void unpack_block(int width, const uint32_t* words, int64_t lanes, uint32_t* levels) {
    kUnpack[static_cast<size_t>(width) - 1](words, lanes, levels);
}

}  // namespace diffq_fast
