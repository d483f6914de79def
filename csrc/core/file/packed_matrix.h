// A weight as a matrix that is multiplied, and looked up, while it stays packed: its first dimension are the
// rows. See core/infer/packed_rows.h.
#pragma once

#include <cstdint>

#include "core/file/packed_file.h"
#include "core/infer/packed_rows.h"

namespace diffq_fast {

class PackedMatrix {
  public:
    // `hooks` outlive it.
    explicit PackedMatrix(const MemoryHooks& hooks)
        : hooks_(hooks),
          data_(empty_vector<uint8_t>(hooks)),
          widths_(empty_vector<uint8_t>(hooks)),
          starts_(empty_vector<uint32_t>(hooks)),
          scales_(empty_vector<float>(hooks)),
          offsets_(empty_vector<float>(hooks)) {}

    // To be called once, with a weight that was verified, of two dimensions or more and with elements.
    bool make(const PackedFile& file, const Weight& weight, Failure& failure);

    int64_t rows() const { return rows_.rows; }
    int64_t columns() const { return rows_.columns; }
    int64_t bytes() const;

    // vectors [count][columns], results [count][rows].
    bool multiply(const float* vectors, int64_t count, float* results) const {
        return multiply_rows(rows_, vectors, count, Activations::exact, results, 1);
    }
    // values [count][columns], rounded to the weight's own type; false where an index is out of bounds.
    bool unpack(const int64_t* indices, int64_t count, float* values) const;

  private:
    void choose_segments(const Weight& weight);
    bool choose_widths(const PackedFile& file, const Weight& weight, const int32_t* levels, Failure& failure);
    bool place_rows(Failure& failure);
    void pack_levels(const int32_t* levels);
    bool fill_scales(const PackedFile& file, const Weight& weight, Failure& failure);

    int64_t half_bytes() const { return (segments_of(rows_) + 1) / 2; }
    int64_t length_of(int64_t segment) const;
    const uint8_t* widths_of(int64_t row) const { return widths_.data() + row * half_bytes(); }
    void set_width(int64_t row, int64_t segment, int width);

    const MemoryHooks& hooks_;
    Vector<uint8_t> data_, widths_;
    Vector<uint32_t> starts_;
    Vector<float> scales_, offsets_;
    PackedRows rows_{};
    ItemType type_ = ItemType::f32;
};

}  // namespace diffq_fast
