// Some rows as the kernels multiply them in whole numbers, see RowPanel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/infer/row_reader.h"
#include "core/runtime/dispatch.h"

namespace diffq_fast {

// Bytes that begin with a line of the cache, and hold nothing yet.
class Bytes {
  public:
    explicit Bytes(int64_t count) : room_(new uint8_t[static_cast<size_t>(count + kLine)]) {}

    uint8_t* data() { return room_.get() + (kLine - reinterpret_cast<uintptr_t>(room_.get()) % kLine); }

  private:
    static constexpr int64_t kLine = 64;
    std::unique_ptr<uint8_t[]> room_;
};

// The largest of some widths, as half bytes.
inline int widest_of(const uint8_t* half_bytes, int64_t bytes) {
    uint8_t even = 0, odd = 0;
    for (int64_t i = 0; i < bytes; ++i) {
        even = std::max(even, static_cast<uint8_t>(half_bytes[i] & 15));
        odd = std::max(odd, static_cast<uint8_t>(half_bytes[i] >> 4));
    }
    return std::max(even, odd) + 1;
}

inline int widest_of(const PackedRow& row) {
    return widest_of(row.widths, (row.segments + 1) / 2);
}

// What the digits of a group's levels are worth, by the levels' width: digit * scale + offset. `below`: the
// bits of lower digits.
struct DigitScales {
    float scales[kMaxWidth + 1], offsets[kMaxWidth + 1];

    void fill(const PackedRow& row, int64_t group, int below) {
        for (int width = 1; width <= kMaxWidth; ++width) {
            scales[width] = row.steps[width] * row.scales[group];
            offsets[width] = row.offsets ? row.offsets[group] : -row.halves[width] * scales[width];
        }
        if (below == 0) return;
        for (int width = 1; width <= kMaxWidth; ++width) {
            scales[width] *= static_cast<float>(1 << below);
            offsets[width] = 0.0f;
        }
    }
};

// Of a row whose values are its levels, by width.
struct LevelUnits {
    float ones[kMaxWidth + 1], zeros[kMaxWidth + 1];

    constexpr LevelUnits() : ones(), zeros() {
        for (float& one : ones) one = 1.0f;
    }
};

// Some rows, unpacked. Levels of more bits than the kernels' panels take are cut into digits of so many, the
// lowest first: a row's product is the sum of those of its digits.
class Panel {
  public:
    Panel(int64_t blocks, int64_t piece)
        : form_(kernels().panels),
          blocks_(blocks),
          piece_(piece),
          levels_(rows() * blocks * kBlockColumns),
          bytes_(kPanelRows * blocks * kBlockColumns + kReadBehind),
          scales_(static_cast<size_t>(rows() * pieces()), 0.0f),
          offsets_(scales_.size(), 0.0f),
          begins_(static_cast<size_t>(rows()), 0.0f),
          widest_(static_cast<size_t>(form_.parts * pieces()), uint8_t{1}) {}

    int64_t rows() const { return form_.parts * kPanelRows; }

    // The lowest digits of the rows `begin` and those behind it, up to `end`, whose products are added to
    // `bias` (of all rows; null: to nothing). False where one does not lie in the data.
    bool fill(const RowReader& reader, int64_t begin, int64_t end, const float* bias) {
        indices_.clear();
        for (int64_t r = begin; r < end; ++r) indices_.push_back(r);
        if (bias) std::copy(bias + begin, bias + end, begins_.begin());
        return fill_digits(reader, 0);
    }

    // The digits of one place of those rows that have it, in the place of the rows that were there. False
    // where none has.
    bool fill_higher(const RowReader& reader, int digit) {
        indices_.swap(wider_);
        std::fill(begins_.begin(), begins_.end(), 0.0f);
        return !indices_.empty() && fill_digits(reader, digit);
    }

    // Of the rows that are there.
    const std::vector<int64_t>& indices() const { return indices_; }

    RowPanel view() {
        return {levels_.data(), scales_.data(), offsets_.data(), begins_.data(),
                widest_.data(), blocks_,        piece_};
    }

  private:
    int64_t pieces() const { return blocks_ * (kBlockColumns / piece_); }

    bool fill_digits(const RowReader& reader, int digit) {
        const int64_t columns = blocks_ * kBlockColumns, count = static_cast<int64_t>(indices_.size());
        wider_.clear();
        std::fill(widest_.begin(), widest_.end(), uint8_t{1});
        for (int64_t begin = 0; begin < count; begin += kPanelRows) {
            for (int64_t r = begin; r < std::min(begin + kPanelRows, count); ++r) {
                PackedRow row;
                if (!reader.open(indices_[static_cast<size_t>(r)], row)) return false;
                const int widest = widest_of(row);
                if (widest > (digit + 1) * form_.most_width)
                    wider_.push_back(indices_[static_cast<size_t>(r)]);
                fill_scales(row, digit, r);
                uint8_t* const bytes = bytes_.data() + (r - begin) * columns;
                if (widest > form_.most_width)
                    unpack_digits(row, digit, bytes);
                else
                    kernels().unpack_bytes(row, bytes);
            }
            kernels().interleave_rows(bytes_.data(), blocks_, levels_.data() + begin * columns);
        }
        return true;
    }

    // By way of floats, which hold every level.
    void unpack_digits(const PackedRow& row, int digit, uint8_t* bytes) {
        static constexpr LevelUnits kUnits{};
        floats_.resize(static_cast<size_t>(row.columns + kReadBehind));
        PackedRow levels = row;
        levels.group_size = levels.before = 0;
        levels.scales = kUnits.ones, levels.steps = kUnits.ones, levels.halves = kUnits.zeros;
        levels.offsets = levels.scaled = nullptr;
        levels.own_steps = false;
        kernels().unpack_row(levels, floats_.data());
        take_digits(floats_.data(), row.columns, digit * form_.most_width, bytes);
    }

    void take_digits(const float* __restrict levels, int64_t count, int shift,
                     uint8_t* __restrict digits) const {
        const int kept = (1 << form_.most_width) - 1;
        for (int64_t i = 0; i < count; ++i)
            digits[i] = static_cast<uint8_t>(static_cast<int32_t>(levels[i]) >> shift & kept);
    }

    void fill_scales(const PackedRow& row, int digit, int64_t r) {
        const int64_t all = pieces(), part = r / kPanelRows;
        const int64_t of_segment = row.segments == 1 ? all : row.segment / piece_;
        const int below = digit * form_.most_width;
        GroupCursor at(row);
        DigitScales of_group;
        int64_t group = -1;
        int64_t left = all;
        float* scales = scales_.data() + part * all * kPanelRows + r % kPanelRows;
        float* offsets = offsets_.data() + part * all * kPanelRows + r % kPanelRows;
        uint8_t* widest = widest_.data() + part * all;
        for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
            const int width = width_of_segment(row.widths, s);
            if (at.group != group) of_group.fill(row, group = at.group, below);
            const float scale = of_group.scales[width], offset = of_group.offsets[width];
            for (int64_t i = std::min(of_segment, left); i > 0; --i, --left) {
                *scales = scale, *offsets = offset;
                scales += kPanelRows, offsets += kPanelRows;
                if (!form_.asks_for_widest) continue;
                *widest =
                    std::max(*widest, static_cast<uint8_t>(std::clamp(width - below, 1, form_.most_width)));
                ++widest;
            }
        }
    }

    PanelForm form_;
    int64_t blocks_, piece_;
    Bytes levels_, bytes_;  // bytes: of a part's rows as they follow one another
    std::vector<float> scales_, offsets_, begins_, floats_;
    std::vector<uint8_t> widest_;
    std::vector<int64_t> indices_, wider_;  // wider: those that have a higher digit
};

}  // namespace diffq_fast
