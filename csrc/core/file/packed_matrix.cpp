#include "core/file/packed_matrix.h"

#include <algorithm>
#include <numeric>

#include "core/file/weight_values.h"

namespace diffq_fast {
namespace {

// Levels around zero may have other widths than the file's: as many bits as the largest of so many needs.
constexpr int64_t kShortSegment = 64, kLeastSegment = 32;
constexpr int64_t kMostColumns = int64_t{1} << 31;

bool is_centred(const Weight& weight) {
    return weight.scope == Scope::scale || weight.scope == Scope::steps;
}

int64_t bytes_of(int64_t elements, int width) {
    return (elements * width + 7) / 8;
}

// Bits of the largest of some levels around zero: w bits hold -2^(w - 1) ... 2^(w - 1) - 1.
int width_of_levels(const int32_t* levels, int64_t count) {
    const auto [lowest, highest] = std::minmax_element(levels, levels + count);
    const int32_t most = std::max(-*lowest, *highest + 1);
    int width = 1;
    while (width < kMaxWidth && 1 << (width - 1) < most) ++width;
    return width;
}

}  // namespace

int64_t PackedMatrix::bytes() const {
    const size_t floats = scales_.size() + offsets_.size();
    return static_cast<int64_t>(data_.size() + widths_.size() + 4 * starts_.size() + 4 * floats);
}

bool PackedMatrix::unpack(const int64_t* indices, int64_t count, float* values) const {
    if (!unpack_rows(rows_, indices, count, values, 1)) return false;
    round_to_type(type_, values, count * columns());
    return true;
}

bool PackedMatrix::make(const PackedFile& file, const Weight& weight, Failure& failure) {
    const int64_t rows = file.layout().sizes[weight.shape.first], columns = weight.shape.count / rows;
    if (columns >= kMostColumns)
        return failure.fail(Status::unsupported, "a row has %lld elements, at most 2^31 - 1 are possible",
                            static_cast<Number>(columns));
    type_ = weight.type;
    rows_.rows = rows;
    rows_.columns = columns;
    rows_.meaning = {is_centred(weight), weight.level_count};
    choose_segments(weight);
    Scratch<int32_t> levels(hooks_, weight.shape.count);
    if (!read_levels(file, weight, levels.data(), failure)) return false;
    if (weight.scope == Scope::scale) {
        const int32_t half = 1 << (weight.coding.lowest - 1);
        std::for_each(levels.data(), levels.data() + levels.size(), [&](int32_t& level) { level -= half; });
    }
    if (!choose_widths(file, weight, levels.data(), failure) || !place_rows(failure)) return false;
    pack_levels(levels.data());
    return fill_scales(file, weight, failure);
}

// The most elements of a row that lie in one group wherever the row begins.
void PackedMatrix::choose_segments(const Weight& weight) {
    rows_.group_size = weight.scope == Scope::tensor ? 0 : weight.group_size;
    rows_.segment = weight.group_size > 0 ? std::gcd(rows_.columns, weight.group_size) : rows_.columns;
    const int64_t shorter = std::gcd(rows_.segment, kShortSegment);
    if (is_centred(weight) && shorter >= kLeastSegment) rows_.segment = shorter;
}

int64_t PackedMatrix::length_of(int64_t segment) const {
    return std::min(rows_.segment, rows_.columns - segment * rows_.segment);
}

void PackedMatrix::set_width(int64_t row, int64_t segment, int width) {
    uint8_t& pair = widths_[static_cast<size_t>(row * half_bytes() + segment / 2)];
    pair = static_cast<uint8_t>(pair | (width - 1) << (segment % 2 * 4));
}

bool PackedMatrix::choose_widths(const PackedFile& file, const Weight& weight, const int32_t* levels,
                                 Failure& failure) {
    Scratch<uint8_t> of_groups(hooks_, is_centred(weight) ? 0 : weight.groups);
    if (!is_centred(weight) && !fill_widths(file, weight, of_groups.data(), failure)) return false;
    widths_.assign(static_cast<size_t>(rows_.rows * half_bytes()), 0);
    for (int64_t row = 0; row < rows_.rows; ++row) {
        for (int64_t segment = 0; segment < segments_of(rows_); ++segment) {
            const int64_t begin = row * rows_.columns + segment * rows_.segment;
            const int64_t group = weight.group_size > 0 ? begin / weight.group_size : 0;
            set_width(
                row, segment,
                is_centred(weight) ? width_of_levels(levels + begin, length_of(segment)) : of_groups[group]);
        }
    }
    return true;
}

bool PackedMatrix::place_rows(Failure& failure) {
    starts_.reserve(static_cast<size_t>(rows_.rows + 1));
    int64_t place = 0;
    for (int64_t row = 0; row <= rows_.rows; ++row) {
        if (place > int64_t{UINT32_MAX})
            return failure.fail(Status::unsupported, "more than 2^34 bytes of levels");
        starts_.push_back(static_cast<uint32_t>(place));
        int64_t bytes = 0;
        for (int64_t segment = 0; row < rows_.rows && segment < segments_of(rows_); ++segment)
            bytes += bytes_of(length_of(segment), width_of_segment(widths_of(row), segment));
        place += (bytes + kRowAlignment - 1) / kRowAlignment;
    }
    data_.assign(static_cast<size_t>(starts_.back() * kRowAlignment + kReadBehindRows), 0);
    return true;
}

void PackedMatrix::pack_levels(const int32_t* levels) {
    for (int64_t row = 0; row < rows_.rows; ++row) {
        uint8_t* to = data_.data() + starts_[static_cast<size_t>(row)] * kRowAlignment;
        for (int64_t segment = 0; segment < segments_of(rows_); ++segment) {
            const int width = width_of_segment(widths_of(row), segment);
            const auto half = rows_.meaning.centred ? uint32_t{1} << (width - 1) : 0u;
            const uint32_t mask = (uint32_t{1} << width) - 1;
            uint64_t bits = 0;
            int count = 0;
            for (int64_t i = 0; i < length_of(segment); ++i) {
                bits |= uint64_t{(static_cast<uint32_t>(*levels++) + half) & mask} << count;
                for (count += width; count >= 8; count -= 8, bits >>= 8) *to++ = static_cast<uint8_t>(bits);
            }
            if (count > 0) *to++ = static_cast<uint8_t>(bits);
        }
    }
}

bool PackedMatrix::fill_scales(const PackedFile& file, const Weight& weight, Failure& failure) {
    const auto count = static_cast<size_t>(weight.scope == Scope::tensor ? 1 : weight.groups);
    scales_.resize(count);
    if (weight.scope == Scope::steps) {
        if (!read_steps(file, weight, scales_.data(), failure)) return false;
    } else {
        const Ranges ranges(file, weight);
        const float* const numbers = ranges.data();
        if (!rows_.meaning.centred) offsets_.resize(count);
        for (size_t i = 0; i < count; ++i) {
            scales_[i] = rows_.meaning.centred ? numbers[i] : numbers[2 * i + 1] - numbers[2 * i];
            if (!rows_.meaning.centred) offsets_[i] = numbers[2 * i];
        }
    }
    rows_.data = data_.data();
    rows_.bytes = static_cast<int64_t>(data_.size());
    rows_.starts = starts_.data();
    rows_.widths = widths_.data();
    rows_.scales = scales_.data();
    rows_.offsets = offsets_.data();
    return true;
}

}  // namespace diffq_fast
