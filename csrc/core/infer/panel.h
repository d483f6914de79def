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

// Whether one of some half bytes, widths - 1, is of a width above `most`, which is 7 or 8.
inline bool are_above(const uint8_t* half_bytes, int64_t bytes, int most) {
    const int room = (8 - most) * 0x11;
    uint8_t above = 0;  // the highest bit of each half byte is set where its width is too large
    for (int64_t i = 0; i < bytes; ++i) {
        const int pair = half_bytes[i];
        above = static_cast<uint8_t>(above | pair | ((pair & 0x77) + room));
    }
    return (above & 0x88) != 0;
}

// What levels of a group are worth, by their width: level * scale + offset.
struct GroupScales {
    float scales[kMaxWidth + 1], offsets[kMaxWidth + 1];

    void fill(const PackedRow& row, int64_t group) {
        for (int width = 1; width <= kMaxWidth; ++width) {
            scales[width] = row.steps[width] * row.scales[group];
            offsets[width] = row.offsets ? row.offsets[group] : -row.halves[width] * scales[width];
        }
    }
};

// Some rows, unpacked.
class Panel {
  public:
    // some_are_wide: rows may be too wide.
    Panel(int64_t blocks, int64_t piece, bool some_are_wide)
        : form_(kernels().panels),
          some_are_wide_(some_are_wide),
          blocks_(blocks),
          piece_(piece),
          levels_(rows() * blocks * kBlockColumns),
          bytes_(kPanelRows * blocks * kBlockColumns + kReadBehind),
          scales_(static_cast<size_t>(rows() * pieces()), 0.0f),
          offsets_(scales_.size(), 0.0f),
          widest_(static_cast<size_t>(form_.parts * pieces()), uint8_t{1}) {}

    int64_t rows() const { return form_.parts * kPanelRows; }

    // Those that are too wide, whose products are of no meaning.
    const std::vector<int64_t>& left_out() const { return left_out_; }

    // Rows `begin` and those behind it, up to `end`. False where one does not lie in the data.
    bool fill(const RowReader& reader, int64_t begin, int64_t end) {
        const int64_t columns = blocks_ * kBlockColumns;
        for (int64_t part = 0; part < form_.parts; ++part) {
            const int64_t first = begin + part * kPanelRows, last = std::min(first + kPanelRows, end);
            for (int64_t r = first; r < last; ++r) {
                PackedRow row;
                if (!reader.open(r, row)) return false;
                if (some_are_wide_ && are_above(row.widths, (row.segments + 1) / 2, form_.most_width)) {
                    left_out_.push_back(r);
                    continue;
                }
                fill_scales(row, part, r - first);
                kernels().unpack_bytes(row, bytes_.data() + (r - first) * columns);
            }
            kernels().interleave_rows(bytes_.data(), blocks_, levels_.data() + part * kPanelRows * columns);
        }
        return true;
    }

    RowPanel view() {
        return {levels_.data(), scales_.data(), offsets_.data(), widest_.data(), blocks_, piece_};
    }

  private:
    int64_t pieces() const { return blocks_ * (kBlockColumns / piece_); }

    void fill_scales(const PackedRow& row, int64_t part, int64_t r) {
        GroupCursor at(row);
        GroupScales of_group;
        int64_t group = -1;
        int64_t left = pieces();
        const int64_t of_segment = row.segments == 1 ? left : row.segment / piece_;
        float* scales = scales_.data() + part * left * kPanelRows + r;
        float* offsets = offsets_.data() + part * left * kPanelRows + r;
        uint8_t* widest = widest_.data() + part * left;
        for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
            const int width = width_of_segment(row.widths, s);
            if (at.group != group) of_group.fill(row, group = at.group);
            const float scale = of_group.scales[width], offset = of_group.offsets[width];
            for (int64_t i = std::min(of_segment, left); i > 0; --i, --left) {
                *scales = scale, *offsets = offset;
                scales += kPanelRows, offsets += kPanelRows;
                if (!form_.asks_for_widest) continue;
                *widest = std::max(*widest, static_cast<uint8_t>(width));
                ++widest;
            }
        }
    }

    PanelForm form_;
    bool some_are_wide_;
    int64_t blocks_, piece_;
    Bytes levels_, bytes_;  // bytes: of a part's rows as they follow one another
    std::vector<float> scales_, offsets_;
    std::vector<uint8_t> widest_;
    std::vector<int64_t> left_out_;
};

}  // namespace diffq_fast
