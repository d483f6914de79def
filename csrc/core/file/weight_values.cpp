#include "core/file/weight_values.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/pack/coding.h"
#include "core/pack/packed_levels.h"
#include "core/pack/quantize.h"
#include "core/runtime/dispatch.h"

namespace diffq_fast {
namespace {

constexpr int kStepsPerOctave = 16, kLowestStepCode = -1600, kHighestStepCode = 1599, kMostUnits = 127;

// 2^(r / 16), rounded to float32.
constexpr uint32_t kStepBits[kStepsPerOctave] = {
    0x3F800000, 0x3F85AAC3, 0x3F8B95C2, 0x3F91C3D3, 0x3F9837F0, 0x3F9EF532, 0x3FA5FED7, 0x3FAD583F,
    0x3FB504F3, 0x3FBD08A4, 0x3FC5672A, 0x3FCE248C, 0x3FD744FD, 0x3FE0CCDF, 0x3FEAC0C7, 0x3FF5257D};

float step_of(int code) {
    const int octave = code >= 0 ? code / kStepsPerOctave : -((kStepsPerOctave - 1 - code) / kStepsPerOctave);
    const uint32_t fraction = kStepBits[code - octave * kStepsPerOctave];
    return float_of(fraction + (static_cast<uint32_t>(octave) << 23));  // below 2^128 and no subnormal
}

// A file's numbers, which lie where its header ends: in their place, or copied where that is at an odd
// address.
template <typename T>
class Aligned {
  public:
    Aligned(const MemoryHooks& hooks, Bytes bytes)
        : copy_(hooks, is_aligned(bytes) ? 0 : bytes.size / int64_t{sizeof(T)}),
          data_(is_aligned(bytes) ? reinterpret_cast<const T*>(bytes.data) : copy_.data()),
          size_(bytes.size / int64_t{sizeof(T)}) {
        if (copy_.size() > 0) std::memcpy(copy_.data(), bytes.data, static_cast<size_t>(size_) * sizeof(T));
    }

    const T* data() const { return data_; }
    int64_t size() const { return size_; }

  private:
    static bool is_aligned(Bytes bytes) {
        return bytes.size == 0 || reinterpret_cast<uintptr_t>(bytes.data) % alignof(T) == 0;
    }

    Scratch<T> copy_;
    const T* data_;
    int64_t size_;
};

float float_at(const uint8_t* place) {
    float value;
    std::memcpy(&value, place, sizeof value);
    return value;
}

bool sound_range(float lo, float hi) {
    const float length = hi - lo;
    return std::isfinite(length) && length >= 0;
}

// lo and hi of one group: units, then two codes for each group.
struct ShortRanges {
    ShortRanges(Bytes bytes, const Weight& weight)
        : units(bytes.data),
          codes(bytes.data + 4 * weight.unit_count()),
          groups_per_unit(weight.groups_per_unit) {}

    float unit(int64_t group) const { return float_at(units + 4 * (group / groups_per_unit)); }
    int code(int64_t group, int end) const { return static_cast<int8_t>(codes[2 * group + end]); }
    float end(int64_t group, int end) const { return static_cast<float>(code(group, end)) * unit(group); }

    const uint8_t *units, *codes;
    int64_t groups_per_unit;
};

const char* problem_of_short_ranges(const PackedFile& file, const Weight& weight) {
    const ShortRanges ranges(file.data(weight.range), weight);
    for (int64_t unit = 0; unit < weight.unit_count(); ++unit) {
        const float value = float_at(ranges.units + 4 * unit);
        if (!std::isfinite(value) || !(value >= 0)) return "expected units that are finite and not negative";
    }
    for (int64_t group = 0; group < weight.groups; ++group) {
        const int lo = ranges.code(group, 0), hi = ranges.code(group, 1);
        if (lo < -kMostUnits || lo > hi || hi < -kMostUnits)
            return "expected codes lo <= hi from -127 to 127";
        if (!sound_range(ranges.end(group, 0), ranges.end(group, 1)))
            return "expected ranges no further apart than float32 can hold";
    }
    return nullptr;
}

// Streams of a coded weight: the steps' first, where it has such.
class StreamWalk {
  public:
    StreamWalk(const uint16_t* words, int64_t count) : words_(words), left_(count) {}

    // The next stream; null, or what is wrong.
    const char* next(int64_t count, const uint16_t*& words, int64_t& size) {
        StreamHead head;
        const char* const problem = read_head(words_, left_, count, head);
        if (problem != nullptr) return problem;
        size = stream_size(head, count);
        words = words_;
        words_ += size;
        left_ -= size;
        return nullptr;
    }

    int64_t left() const { return left_; }
    bool only_zeros_left() const {
        return std::all_of(words_, words_ + left_, [](uint16_t word) { return word == 0; });
    }

  private:
    const uint16_t* words_;
    int64_t left_;
};

bool bad_stream(const PackedFile& file, const Weight& weight, const char* problem, Failure& failure) {
    return failure.bad_file(file.tensor(weight.levels).name, "%s; the file is damaged", problem);
}

// Levels of one width as they are stored -> from 0 on; false where one is beyond the width.
bool shift_levels(int32_t* levels, int64_t count, int width) {
    const int32_t half = 1 << (width - 1);
    uint32_t all = 0;
    for (int64_t i = 0; i < count; ++i) {
        levels[i] += half;
        all |= static_cast<uint32_t>(levels[i]);
    }
    return all < uint32_t{1} << width;
}

bool decode_stream(const PackedFile& file, const Weight& weight, StreamWalk& walk, int width, int32_t* levels,
                   Failure& failure) {
    const int64_t count = weight.level_counts[static_cast<size_t>(width)];
    const uint16_t* words = nullptr;
    int64_t size = 0;
    const char* problem = walk.next(count, words, size);
    if (problem == nullptr) problem = decode_levels(words, size, count, levels, 1);
    if (problem == nullptr && weight.scope != Scope::steps && !shift_levels(levels, count, width))
        problem = "a level is beyond the bits of its group";
    return problem == nullptr || bad_stream(file, weight, problem, failure);
}

// Puts the levels of one width, in group order, among those of the weight; false where they do not suffice.
bool scatter(const Weight& weight, const uint8_t* widths, int width, const Scratch<int32_t>& from,
             int32_t* levels) {
    const int64_t count = weight.shape.count;
    int64_t place = 0;
    for (int64_t group = 0; group < weight.groups; ++group) {
        if (widths[group] != width) continue;
        const int64_t begin = group * weight.group_size, size = std::min(weight.group_size, count - begin);
        if (from.size() - place < size) return false;
        std::copy(from.data() + place, from.data() + place + size, levels + begin);
        place += size;
    }
    return true;
}

bool changed(const Weight& weight, Failure& failure) {
    return failure.bad_file(weight.name, "its widths are not those that were verified; the file has changed");
}

// The codes of the steps stand before the levels. Null, or what is wrong with them.
const char* pass_step_codes(const Weight& weight, StreamWalk& walk) {
    const uint16_t* words = nullptr;
    int64_t size = 0;
    if (weight.scope != Scope::steps || weight.groups == 0) return nullptr;
    return walk.next(weight.groups, words, size);
}

bool decode_levels_of(const PackedFile& file, const Weight& weight, int32_t* levels, Failure& failure) {
    const Aligned<uint16_t> coded(file.hooks(), file.data(weight.levels));
    StreamWalk walk(coded.data(), coded.size());
    const char* const before = pass_step_codes(weight, walk);
    if (before != nullptr) return bad_stream(file, weight, before, failure);
    const auto& counts = weight.level_counts;
    if (std::count(counts.begin(), counts.end(), 0) == kMaxWidth) {  // one width: the weight's own order
        const auto only =
            std::find_if(counts.begin(), counts.end(), [](int64_t count) { return count != 0; });
        return decode_stream(file, weight, walk, static_cast<int>(only - counts.begin()), levels, failure);
    }
    Scratch<uint8_t> widths(file.hooks(), weight.groups);
    if (!fill_widths(file, weight, widths.data(), failure)) return false;
    for (int width = 1; width <= kMaxWidth; ++width) {
        const int64_t count = counts[static_cast<size_t>(width)];
        if (count == 0) continue;
        Scratch<int32_t> of_width(file.hooks(), count);
        if (!decode_stream(file, weight, walk, width, of_width.data(), failure)) return false;
        if (!scatter(weight, widths.data(), width, of_width, levels)) return changed(weight, failure);
    }
    return true;
}

Packing packing_of(const PackedFile& file, const Weight& weight, const uint8_t* widths) {
    return {widths, weight.shape.count, weight.group_size, file.data(weight.levels).size / 4, 1};
}

bool unpack_levels(const PackedFile& file, const Weight& weight, int32_t* levels, Failure& failure) {
    const Aligned<uint32_t> words(file.hooks(), file.data(weight.levels));
    Scratch<uint8_t> widths(file.hooks(), weight.groups);
    if (!fill_widths(file, weight, widths.data(), failure)) return false;
    return unpack(packing_of(file, weight, widths.data()), words.data(),
                  reinterpret_cast<uint32_t*>(levels)) ||
           changed(weight, failure);
}

// Of levels in the memory of the values.
void dequantize_in_place(const Weight& weight, const uint8_t* widths, const float* ranges, float* values) {
    const Span all{0, weight.shape.count};
    const Grouping grouping{weight.group_size, weight.scope == Scope::group};
    const auto* const levels = static_cast<const uint32_t*>(static_cast<const void*>(values));
    dequantize_part(levels, all, {widths, ranges, grouping}, {values, all.count, DType::float32});
}

// The same for a count of levels that is no power of two.
void dequantize_counted(const Weight& weight, const float* range, float* values) {
    LevelGrid grid = level_grid(range, weight.coding.lowest);
    grid.step = 1.0f / (static_cast<float>(weight.level_count) - 1.0f);
    for (int64_t begin = 0; begin < weight.shape.count; begin += kBlock) {
        uint32_t levels[kBlock];
        const int64_t size = std::min(kBlock, weight.shape.count - begin);
        std::memcpy(levels, values + begin, static_cast<size_t>(size) * sizeof levels[0]);
        kernels().dequantize(levels, size, grid, false, values + begin);
    }
}

// float32(level - half) * scale of one group after the other.
void multiply_in_place(const Weight& weight, const float* scales, int32_t half, float* values) {
    const int64_t count = weight.shape.count, size = weight.group_size > 0 ? weight.group_size : count;
    for (int64_t begin = 0; begin < count; begin += size, ++scales) {
        const int64_t end = std::min(begin + size, count);
        for (int64_t i = begin; i < end; ++i) {
            int32_t level;
            std::memcpy(&level, values + i, sizeof level);
            values[i] = static_cast<float>(level - half) * *scales;
        }
    }
}

bool dequantize_steps(const PackedFile& file, const Weight& weight, float* values, Failure& failure) {
    Scratch<float> steps(file.hooks(), weight.groups);
    if (!read_steps(file, weight, steps.data(), failure)) return false;
    if (!read_levels(file, weight, reinterpret_cast<int32_t*>(values), failure)) return false;
    multiply_in_place(weight, steps.data(), 0, values);
    return true;
}

bool dequantize_scaled(const PackedFile& file, const Weight& weight, float* values, Failure& failure) {
    if (!read_levels(file, weight, reinterpret_cast<int32_t*>(values), failure)) return false;
    const float scale = float_at(file.data(weight.range).data);
    multiply_in_place(weight, &scale, 1 << (weight.coding.lowest - 1), values);
    return true;
}

bool dequantize_ranged(const PackedFile& file, const Weight& weight, float* values, Failure& failure) {
    const Ranges ranges(file, weight);
    Scratch<uint8_t> widths(file.hooks(), weight.groups);
    if (!fill_widths(file, weight, widths.data(), failure)) return false;
    if (weight.coded || weight.level_count > 0) {
        if (!read_levels(file, weight, reinterpret_cast<int32_t*>(values), failure)) return false;
        if (weight.level_count > 0) {
            dequantize_counted(weight, ranges.data(), values);
        } else {
            dequantize_in_place(weight, widths.data(), ranges.data(), values);
        }
        return true;
    }
    const Aligned<uint32_t> words(file.hooks(), file.data(weight.levels));
    const Floats to{values, weight.shape.count, DType::float32};
    return unpack_dequantize(packing_of(file, weight, widths.data()), words.data(), ranges.data(),
                             weight.scope == Scope::group, to) ||
           changed(weight, failure);
}

// The 4-bit exponent has a bias of 7; only all ones is no number.
float float_from_e4m3(uint8_t byte) {
    const uint32_t exponent = byte >> 3 & 15, mantissa = byte & 7, sign = uint32_t{byte & 128u} << 24;
    if ((byte & 127) == 127) return float_of(sign | 0x7FC00000);
    const float small = static_cast<float>(mantissa) * 0x1p-9f;
    const float magnitude = exponent == 0 ? small : float_of((exponent + 120) << 23 | mantissa << 20);
    return float_of(sign | bits_of(magnitude));
}

// The T at `place`, which may have any address.
template <typename T>
T item_at(const uint8_t* place) {
    T item;
    std::memcpy(&item, place, sizeof item);
    return item;
}

}  // namespace

bool fill_widths(const PackedFile& file, const Weight& weight, uint8_t* widths, Failure& failure) {
    const Bytes table = weight.widths != kNone ? file.data(weight.widths) : Bytes{nullptr, 0};
    const char* const problem =
        for_each_run(weight.coding, table, weight.groups, [&](int width, int64_t groups) {
            std::memset(widths, width, static_cast<size_t>(groups));
            widths += groups;
        });
    return problem == nullptr || changed(weight, failure);
}

bool read_levels(const PackedFile& file, const Weight& weight, int32_t* levels, Failure& failure) {
    if (weight.shape.count == 0) return true;
    return weight.coded ? decode_levels_of(file, weight, levels, failure)
                        : unpack_levels(file, weight, levels, failure);
}

Ranges::Ranges(const PackedFile& file, const Weight& weight)
    : made_(file.hooks(), weight.short_ranges() ? 2 * weight.groups : file.data(weight.range).size / 4) {
    const Bytes bytes = file.data(weight.range);
    if (!weight.short_ranges()) {
        if (bytes.size > 0) std::memcpy(made_.data(), bytes.data, static_cast<size_t>(bytes.size));
        return;
    }
    const ShortRanges ranges(bytes, weight);
    for (int64_t group = 0; group < weight.groups; ++group) {
        for (int end = 0; end < 2; ++end) made_[2 * group + end] = ranges.end(group, end);
    }
}

bool read_steps(const PackedFile& file, const Weight& weight, float* steps, Failure& failure) {
    if (weight.groups == 0) return true;
    const Aligned<uint16_t> coded(file.hooks(), file.data(weight.levels));
    Scratch<int32_t> codes(file.hooks(), weight.groups);
    const char* problem = decode_levels(coded.data(), coded.size(), weight.groups, codes.data(), 1);
    for (int64_t group = 0; problem == nullptr && group < weight.groups; ++group) {
        if (codes[group] < kLowestStepCode || codes[group] > kHighestStepCode) {
            problem = "a step code is not between -1600 and 1599";
        } else {
            steps[group] = step_of(codes[group]);
        }
    }
    return problem == nullptr || bad_stream(file, weight, problem, failure);
}

const char* problem_of_ranges(const PackedFile& file, const Weight& weight) {
    if (weight.scope == Scope::steps) return nullptr;
    if (weight.short_ranges()) return problem_of_short_ranges(file, weight);
    const Bytes bytes = file.data(weight.range);
    if (weight.scope == Scope::scale)
        return std::isfinite(float_at(bytes.data)) ? nullptr : "expected a finite scale";
    for (int64_t place = 0; place < bytes.size; place += 8) {
        if (!sound_range(float_at(bytes.data + place), float_at(bytes.data + place + 4)))
            return "expected ranges lo <= hi, finite and no further apart than float32 can hold";
    }
    return nullptr;
}

const char* problem_of_streams(const PackedFile& file, const Weight& weight) {
    static constexpr char kWrongSize[] = "another number of coded words than its levels have";
    const Aligned<uint16_t> coded(file.hooks(), file.data(weight.levels));
    StreamWalk walk(coded.data(), coded.size());
    const uint16_t* words = nullptr;
    int64_t size = 0;
    const char* const before = pass_step_codes(weight, walk);
    if (before != nullptr) return before;
    for (const int64_t count : weight.level_counts) {
        const char* const problem = count > 0 ? walk.next(count, words, size) : nullptr;
        if (problem != nullptr) return problem;
    }
    const int64_t end = coded.size() - walk.left(), count = weight.shape.count;
    const int64_t least = count / kElementsPerWord + (count % kElementsPerWord != 0);
    return coded.size() == std::max(end, least) && walk.only_zeros_left() ? nullptr : kWrongSize;
}

bool dequantize_weight(const PackedFile& file, const Weight& weight, float* values, Failure& failure) {
    const int64_t count = weight.shape.count;
    if (count == 0) return true;
    const bool done = weight.scope == Scope::steps   ? dequantize_steps(file, weight, values, failure)
                      : weight.scope == Scope::scale ? dequantize_scaled(file, weight, values, failure)
                                                     : dequantize_ranged(file, weight, values, failure);
    if (done) round_to_type(weight.type, values, count);
    return done;
}

void round_to_type(ItemType type, float* values, int64_t count) {
    if (type != ItemType::f16 && type != ItemType::bf16) return;
    const DType half = type == ItemType::f16 ? DType::float16 : DType::bfloat16;
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        uint16_t halves[kBlock];
        const int64_t size = std::min(kBlock, count - begin);
        kernels().halves_from_floats(values + begin, half, size, halves);
        kernels().floats_from_halves(halves, half, size, values + begin);
    }
}

bool read_plain(const PackedFile& file, const Plain& plain, float* values) {
    const ItemType stored = file.tensor(plain.tensor).type;
    const Bytes bytes = file.data(plain.tensor);
    const int64_t step = item_bytes(stored), count = bytes.size / step;
    const auto convert = [&](auto&& value_at) {
        for (int64_t i = 0; i < count; ++i) values[i] = value_at(bytes.data + i * step);
    };
    switch (stored) {
        case ItemType::f32:
            if (bytes.size > 0) std::memcpy(values, bytes.data, static_cast<size_t>(bytes.size));
            break;
        case ItemType::f64:
            convert([](const uint8_t* place) { return static_cast<float>(item_at<double>(place)); });
            break;
        case ItemType::f16:
            convert([](const uint8_t* place) { return float_from_float16(item_at<uint16_t>(place)); });
            break;
        case ItemType::bf16:
            convert([](const uint8_t* place) { return float_from_bfloat16(item_at<uint16_t>(place)); });
            break;
        case ItemType::f8_e4m3:
            convert([](const uint8_t* place) { return float_from_e4m3(*place); });
            break;
        case ItemType::f8_e5m2:  // the upper half of a float16
            convert(
                [](const uint8_t* place) { return float_from_float16(static_cast<uint16_t>(*place << 8)); });
            break;
        default:
            return false;
    }
    round_to_type(plain.type, values, count);
    return true;
}

}  // namespace diffq_fast
