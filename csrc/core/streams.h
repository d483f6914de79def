// Which levels of a weight go to which stream: one stream per width, holding the levels of all groups of that
// width in group order; streams of ascending width follow one another in the words.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/bitpack.h"
#include "core/block_pool.h"
#include "core/groups.h"

namespace diffq_fast {

// So many places behind the last group's hold the number of some group, for whoever looks ahead.
constexpr int64_t kGroupsAhead = 32;

struct Stream {
    int width;
    int64_t levels;       // how many
    int64_t first_word;   // where its words begin
    int64_t first_group;  // where its groups begin in Streams::groups()
};

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

    // The group that position `index` of the streams' groups, one stream after the other, holds.
    int64_t group(int64_t index) const {
        if (in_order()) return index;
        return narrow_ ? int64_t{narrow()[index]} : static_cast<const int64_t*>(wide_->data())[index];
    }
    // One width only: groups in their own order.
    bool in_order() const { return !narrow_ && !wide_; }
    // Where 32 bits are enough for a group's number, the groups as they lie in memory; else null.
    const uint32_t* narrow() const {
        return narrow_ ? static_cast<const uint32_t*>(narrow_->data()) : nullptr;
    }

  private:
    bool valid_ = true;
    int64_t group_size_, words_ = 0;
    std::vector<int64_t> level_counts_;
    std::vector<Stream> streams_;
    std::unique_ptr<PooledBlock> narrow_;  // groups sorted by width, uint32 each where that is enough
    std::unique_ptr<PooledBlock> wide_;    // or int64
};

}  // namespace diffq_fast
