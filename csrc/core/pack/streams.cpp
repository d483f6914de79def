#include "core/pack/streams.h"

#include <utility>

#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

// A slice is small enough to go round among the threads, and so large that few blocks lie in two of them.
constexpr int64_t kSliceElements = int64_t{1} << 17, kMostSlices = 256;

// How many groups of each width a slice has; entry 0 counts widths out of range. Four sets of counters,
// because a counter that was just written is slow to read.
WidthCounts count_slice(const uint8_t* widths, int64_t groups) {
    std::array<std::array<int64_t, 256>, 4> counters{};
    int64_t g = 0;
    for (; g + 4 <= groups; g += 4) {
        for (size_t set = 0; set < 4; ++set) ++counters[set][widths[g + static_cast<int64_t>(set)]];
    }
    for (; g < groups; ++g) ++counters[0][widths[g]];
    WidthCounts counts{};
    for (size_t value = 0; value < 256; ++value) {
        const size_t width = value <= kMaxWidth ? value : 0;
        for (const auto& set : counters) counts[width] += set[value];
    }
    return counts;
}

std::vector<WidthCounts> count_slices(const uint8_t* widths, int64_t groups, int64_t slice_groups,
                                      int threads) {
    std::vector<WidthCounts> counts(static_cast<size_t>((groups + slice_groups - 1) / slice_groups));
    parallel_for(static_cast<int64_t>(counts.size()), threads, [&](int64_t slice) {
        const int64_t begin = slice * slice_groups;
        counts[static_cast<size_t>(slice)] =
            count_slice(widths + begin, std::min(slice_groups, groups - begin));
    });
    return counts;
}

}  // namespace

void count_widths(const uint8_t* widths, int64_t groups, int64_t* counts, int threads) {
    std::fill(counts, counts + kMaxWidth + 1, 0);
    for (const WidthCounts& slice : count_slices(widths, groups, kSliceElements, threads)) {
        for (size_t width = 0; width <= kMaxWidth; ++width) counts[width] += slice[width];
    }
}

Streams::Streams(const uint8_t* widths, int64_t count, int64_t group_size, int threads)
    : count_(count),
      group_size_(group_size == 0 ? std::max<int64_t>(count, 1) : group_size),
      slice_groups_(std::max<int64_t>(std::max(kSliceElements, count / kMostSlices) / group_size_, 1)) {
    const int64_t groups = group_count(count, group_size);
    groups_before_ = count_slices(widths, groups, slice_groups_, threads);
    const int64_t missing = groups * group_size_ - count;  // levels that the ragged last group lacks
    for (size_t width = 0; width <= kMaxWidth; ++width) {
        int64_t of_width = 0;
        for (WidthCounts& slice : groups_before_) of_width += std::exchange(slice[width], of_width);
        if (width > 0) level_counts_.push_back(0);
        if (of_width == 0) continue;
        if (width == 0) {
            valid_ = false;
            return;
        }
        int64_t levels = of_width * group_size_;
        if (widths[groups - 1] == width) levels -= missing;
        level_counts_.back() = levels;
        streams_.push_back({static_cast<int>(width), levels, words_});
        words_ += stream_words(levels, static_cast<int>(width));
    }
}

Slice Streams::slice(int64_t index) const {
    const int64_t first_group = index * slice_groups_, begin = first_group * group_size_;
    const int64_t groups = std::min(slice_groups_, group_count(count_, group_size_) - first_group);
    return {first_group, groups, {begin, std::min(groups * group_size_, count_ - begin)}};
}

}  // namespace diffq_fast
