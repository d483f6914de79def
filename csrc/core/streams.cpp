#include "core/streams.h"

#include <array>
#include <limits>
#include <utility>

#include "core/memory.h"
#include "core/quantize.h"
#include "core/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kSlice = 65536;  // groups that one task counts
using Counts = std::array<int64_t, kMaxWidth + 1>;

// How many groups of each width a slice has; entry 0 counts widths out of range. Four sets of counters,
// because a counter that was just written is slow to read.
Counts count_slice(const uint8_t* widths, int64_t groups) {
    std::array<std::array<int64_t, 256>, 4> counters{};
    int64_t g = 0;
    for (; g + 4 <= groups; g += 4) {
        for (size_t set = 0; set < 4; ++set) ++counters[set][widths[g + static_cast<int64_t>(set)]];
    }
    for (; g < groups; ++g) ++counters[0][widths[g]];
    Counts counts{};
    for (size_t value = 0; value < 256; ++value) {
        const size_t width = value <= kMaxWidth ? value : 0;
        for (const auto& set : counters) counts[width] += set[value];
    }
    return counts;
}

std::vector<Counts> count_slices(const uint8_t* widths, int64_t groups, int threads) {
    std::vector<Counts> counts(static_cast<size_t>((groups + kSlice - 1) / kSlice));
    parallel_for(static_cast<int64_t>(counts.size()), threads, [&](int64_t slice) {
        const int64_t first = slice * kSlice;
        counts[static_cast<size_t>(slice)] = count_slice(widths + first, std::min(kSlice, groups - first));
    });
    return counts;
}

template <typename Index>
void sort_groups(const uint8_t* widths, int64_t groups, const std::vector<Counts>& places, int threads,
                 std::unique_ptr<PooledBlock>& sorted) {
    sorted = std::make_unique<PooledBlock>((groups + kGroupsAhead) * static_cast<int64_t>(sizeof(Index)));
    Index* const out = static_cast<Index*>(sorted->data());
    std::fill(out + groups, out + groups + kGroupsAhead, Index{0});
    parallel_for(static_cast<int64_t>(places.size()), threads, [&](int64_t slice) {
        Counts next = places[static_cast<size_t>(slice)];
        const int64_t end = std::min(groups, (slice + 1) * kSlice);
        for (int64_t g = slice * kSlice; g < end; ++g) {
            out[next[widths[g]]++] = static_cast<Index>(g);
        }
    });
}

}  // namespace

void count_widths(const uint8_t* widths, int64_t groups, int64_t* counts, int threads) {
    std::fill(counts, counts + kMaxWidth + 1, 0);
    for (const Counts& slice : count_slices(widths, groups, threads)) {
        for (size_t width = 0; width <= kMaxWidth; ++width) counts[width] += slice[width];
    }
}

Streams::Streams(const uint8_t* widths, int64_t count, int64_t group_size, int threads)
    : group_size_(group_size == 0 ? std::max<int64_t>(count, 1) : group_size) {
    const int64_t groups = group_count(count, group_size);
    std::vector<Counts> counts = count_slices(widths, groups, threads);
    const int64_t missing = groups * group_size_ - count;  // levels that the ragged last group lacks
    int64_t place = 0;
    for (size_t width = 0; width <= kMaxWidth; ++width) {
        const int64_t first_group = place;
        for (Counts& slice : counts) place += std::exchange(slice[width], place);
        if (width > 0) level_counts_.push_back(0);
        if (place == first_group) continue;
        if (width == 0) {
            valid_ = false;
            return;
        }
        int64_t levels = (place - first_group) * group_size_;
        if (widths[groups - 1] == width) levels -= missing;
        level_counts_.back() = levels;
        streams_.push_back({static_cast<int>(width), levels, words_, first_group});
        words_ += stream_words(levels, static_cast<int>(width));
    }
    if (streams_.size() < 2) return;
    if (groups <= int64_t{std::numeric_limits<uint32_t>::max()}) {
        sort_groups<uint32_t>(widths, groups, counts, threads, narrow_);
    } else {
        sort_groups<int64_t>(widths, groups, counts, threads, wide_);
    }
}

}  // namespace diffq_fast
