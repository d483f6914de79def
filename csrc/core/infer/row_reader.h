// The rows of a weight, one by one, as the kernels take them.
#pragma once

#include <algorithm>

#include "core/infer/packed_rows.h"
#include "core/pack/quantize.h"

namespace diffq_fast {

inline int64_t bytes_of(int64_t elements, int width) {
    return (elements * width + 7) / 8;
}

// Bytes of a row as its widths have it.
inline int64_t row_bytes(const PackedRows& rows, const uint8_t* widths) {
    int64_t bytes = 0, left = rows.columns;
    for (int64_t s = 0; left > 0; ++s, left -= rows.segment)
        bytes += bytes_of(std::min(left, rows.segment), width_of_segment(widths, s));
    return bytes;
}

// What all rows of a weight have in common, made once.
class RowReader {
  public:
    explicit RowReader(const PackedRows& rows)
        : rows_(rows),
          segments_(segments_of(rows)),
          groups_(groups_of_row(rows)),
          widest_(bytes_of(std::min(rows.segment, rows.columns), kMaxWidth) * segments_) {
        for (int width = 1; width <= kMaxWidth; ++width) {
            const LevelMeaning& meaning = rows.meaning;
            steps_[width] = level_step(static_cast<uint8_t>(width));
            if (meaning.level_count > 0)
                steps_[width] = 1.0f / (static_cast<float>(meaning.level_count) - 1.0f);
            if (meaning.centred) steps_[width] = 1.0f;
            halves_[width] = meaning.centred ? static_cast<float>(1 << (width - 1)) : 0.0f;
            if (has_one_scale() && rows.rows > 0) scaled_[width] = steps_[width] * rows.scales[0];
        }
    }

    // False where the row does not lie in the data.
    bool open(int64_t index, PackedRow& row) const {
        const int64_t start = rows_.starts[index] * kRowAlignment, half_bytes = (segments_ + 1) / 2;
        row.widths = rows_.widths + index * half_bytes;
        const int64_t room = rows_.bytes - kReadBehindRows - start;
        if (room < 0 || (room < widest_ && room < row_bytes(rows_, row.widths))) return false;
        row.data = rows_.data + start;
        row.segments = segments_;
        row.segment = rows_.segment;
        row.columns = rows_.columns;
        row.group_size = rows_.group_size;
        int64_t group = index * groups_;
        row.before = 0;
        if (groups_ < 0) {  // divisions take long
            group = index * rows_.columns / rows_.group_size;
            row.before = index * rows_.columns - group * rows_.group_size;
        }
        row.scales = rows_.scales + group;
        row.offsets = rows_.meaning.centred ? nullptr : rows_.offsets + group;
        row.steps = steps_;
        row.halves = halves_;
        row.scaled = has_one_scale() ? scaled_ : nullptr;
        row.own_steps = rows_.meaning.level_count == 0 && !rows_.meaning.centred;
        return true;
    }

  private:
    bool has_one_scale() const { return rows_.group_size == 0 && !rows_.meaning.centred; }

    const PackedRows& rows_;
    // -1 where a row begins within a group.
    static int64_t groups_of_row(const PackedRows& rows) {
        if (rows.group_size <= 0) return 0;
        return rows.columns % rows.group_size == 0 ? rows.columns / rows.group_size : -1;
    }

    int64_t segments_, groups_, widest_;
    float steps_[kMaxWidth + 1]{}, halves_[kMaxWidth + 1]{}, scaled_[kMaxWidth + 1]{};
};

}  // namespace diffq_fast
