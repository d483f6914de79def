// Sums over the groups of a weight, made block by block; a group may go on from one block to the next.
#pragma once

#include "core/runtime/dispatch.h"
#include "core/runtime/tasks.h"

namespace diffq_fast {

// The sums of small groups of which the block holds whole ones; false for other sizes.
inline bool sum_small_groups(const float* products, int64_t count, int64_t group_size, float* sums) {
    if (group_size <= 0 || count % group_size != 0) return false;
    if (group_size > 16 || (group_size & (group_size - 1)) != 0) return false;
    kernels().sum_groups(products, count / group_size, group_size, sums);
    return true;
}

// The sums of a chunk of whole groups.
class GroupSummer {
  public:
    GroupSummer(const Chunk& chunk, int64_t group_size) : chunk_(chunk), group_size_(group_size) {}

    // Returns how many groups end in the block; their sums are those.
    int64_t sum_block(Span span, const float* products, float* sums) {
        const int64_t groups = groups_touched(span, group_size_);
        if (sum_small_groups(products, span.count, group_size_, sums)) return groups;
        const int64_t ended = goes_on(span) ? groups - 1 : groups;
        for_each_segment(span, group_size_, [&](int64_t group, int64_t begin, int64_t end) {
            open_sum_ += kernels().sum(products + begin, end - begin);
            sums[group] = static_cast<float>(open_sum_);
            if (group < ended) open_sum_ = 0;
        });
        return ended;
    }

  private:
    // Whether the block's last group goes on in the next block.
    bool goes_on(Span span) const {
        const int64_t end = span.begin + span.count;
        return end < chunk_.end && group_of(end, group_size_) == group_of(end - 1, group_size_);
    }

    const Chunk chunk_;
    const int64_t group_size_;
    double open_sum_ = 0;
};

}  // namespace diffq_fast
