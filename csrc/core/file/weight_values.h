// One weight of a packed file: its levels, ranges and steps, and the values that they stand for.
#pragma once

#include <cstdint>

#include "core/file/packed_file.h"

namespace diffq_fast {

// uint8 [groups]
bool fill_widths(const PackedFile& file, const Weight& weight, uint8_t* widths, Failure& failure);

// int32 [count]: signed for Scope::steps, from 0 on for the others.
bool read_levels(const PackedFile& file, const Weight& weight, int32_t* levels, Failure& failure);

// The numbers of a weight's range: lo and hi, of each group where each has its own; or the scale.
class Ranges {
  public:
    Ranges(const PackedFile& file, const Weight& weight);

    const float* data() const { return made_.data(); }

  private:
    Scratch<float> made_;
};

// float32 [groups], for Scope::steps.
bool read_steps(const PackedFile& file, const Weight& weight, float* steps, Failure& failure);

// Null, or what is wrong with the weight's ranges, which may have any values.
const char* problem_of_ranges(const PackedFile& file, const Weight& weight);

// Null, or what is wrong with the streams of a coded weight, which are not decoded.
const char* problem_of_streams(const PackedFile& file, const Weight& weight);

// float32 [count]: the weight, rounded to its own type.
bool dequantize_weight(const PackedFile& file, const Weight& weight, float* values, Failure& failure);

// What a weight of that type holds of these values.
void round_to_type(ItemType type, float* values, int64_t count);

// float32 [count] of a plain tensor of a floating type. False for others.
bool read_plain(const PackedFile& file, const Plain& plain, float* values);

}  // namespace diffq_fast
