// Which levels of a weight go to which stream: one stream per width, holding the levels of all groups of that
// width in group order; streams of ascending width follow one another in the words.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/pack/words.h"
#include "core/runtime/groups.h"

namespace diffq_fast {

struct Stream {
    int width;
    int64_t levels;      // how many
    int64_t first_word;  // where its words begin
};

// Consecutive groups of a weight, that one task handles.
struct Slice {
    int64_t first_group, groups;
    Span span;
};

// One number per width; entry 0 is for widths out of range.
using WidthCounts = std::array<int64_t, kMaxWidth + 1>;

// counts[width] = how many of the groups have that width, 0 ... 16; counts[0] counts all others too.
void count_widths(const uint8_t* widths, int64_t groups, int64_t* counts, int threads);

class Streams {
  public:
    // widths: uint8 [groups of a weight with `count` elements].
    Streams(const uint8_t* widths, int64_t count, int64_t group_size, int threads);

    // False when a width is not in 1 ... 16; nothing else may be asked then.
    bool valid() const { return valid_; }
    int64_t words() const { return words_; }
    int64_t group_size() const { return group_size_; }
    const std::vector<Stream>& streams() const { return streams_; }
    // How many levels have 1, 2 ... 16 bits.
    const std::vector<int64_t>& level_counts() const { return level_counts_; }

    bool one_width() const { return streams_.size() < 2; }

    int64_t slices() const { return static_cast<int64_t>(groups_before_.size()); }
    Slice slice(int64_t index) const;
    // How many levels of that width lie before a slice; before slice slices(), all of them.
    int64_t levels_before(int64_t slice, int width) const {
        const auto place = static_cast<size_t>(width);
        if (slice == slices()) return level_counts_[place - 1];
        return groups_before_[static_cast<size_t>(slice)][place] * group_size_;
    }

  private:
    bool valid_ = true;
    int64_t count_, group_size_, slice_groups_, words_ = 0;
    std::vector<int64_t> level_counts_;
    std::vector<Stream> streams_;
    std::vector<WidthCounts> groups_before_;  // per slice: how many groups of each width lie before it
};

}  // namespace diffq_fast
