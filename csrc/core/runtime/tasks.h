// How the work on weights is cut: into chunks that one task handles, and into tasks over many weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/runtime/groups.h"

namespace diffq_fast {

// About as many elements as make a task.
constexpr int64_t kTaskElements = 16 * kBlock;

// The elements that one task handles.
struct Chunk {
    int64_t begin, end;
    int64_t first_group;
};

// Cuts a weight into chunks of about kTaskElements, the same whatever the number of threads: either each
// holds whole groups (and a multiple of 8 elements, so that noise comes in whole Philox calls), or, where
// groups are large, each is a piece of one group.
class Chunks {
  public:
    Chunks(int64_t count, int64_t group_size)
        : count_(count), group_size_(group_size == 0 ? count : group_size) {
        if (count == 0) return;
        const int64_t least = group_size_ > kTaskElements ? group_size_ : std::lcm(group_size_, int64_t{8});
        if (least <= kTaskElements) {
            per_chunk_ = kTaskElements / least * least;
            size_ = (count + per_chunk_ - 1) / per_chunk_;
        } else {
            pieces_ = pieces_of(group_size_);
            size_ = count / group_size_ * pieces_ + pieces_of(count % group_size_);
        }
    }

    int64_t size() const { return size_; }

    // Chunks per group, or 0 where chunks hold whole groups.
    int64_t pieces() const { return pieces_; }

    Chunk at(int64_t index) const {
        if (pieces_ == 0) {
            const int64_t begin = index * per_chunk_;
            return {begin, std::min(count_, begin + per_chunk_), begin / group_size_};
        }
        const int64_t group = index / pieces_;
        const int64_t begin = group * group_size_ + index % pieces_ * kTaskElements;
        const int64_t group_end =
            count_ - group * group_size_ > group_size_ ? (group + 1) * group_size_ : count_;
        return {begin, std::min(group_end, begin + kTaskElements), group};
    }

  private:
    static int64_t pieces_of(int64_t elements) {
        return elements / kTaskElements + (elements % kTaskElements != 0);
    }

    int64_t count_, group_size_;
    int64_t per_chunk_ = 0, pieces_ = 0, size_ = 0;
};

// Calls body(span) for one block of the chunk after the other.
template <typename Body>
void for_each_block_of(const Chunk& chunk, Body&& body) {
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
        body(Span{begin, std::min(kBlock, chunk.end - begin)});
    }
}

// Numbers the tasks of several weights consecutively: task t is piece t - start(weight) of its weight.
class TaskTable {
  public:
    void append(int64_t pieces) { starts_.push_back(starts_.back() + pieces); }
    int64_t tasks() const { return starts_.back(); }
    int64_t start(size_t weight) const { return starts_[weight]; }

    struct Place {
        size_t weight;
        int64_t piece;
    };
    Place place_of(int64_t task) const {
        const auto after = std::upper_bound(starts_.begin(), starts_.end(), task);
        const auto weight = static_cast<size_t>(after - starts_.begin()) - 1;
        return {weight, task - starts_[weight]};
    }

  private:
    std::vector<int64_t> starts_{0};
};

// Waking a thread costs as much as some ten thousand weights.
inline int threads_for(int64_t elements, int threads) {
    return elements < 32768 ? 1 : threads;
}

inline int64_t total_count(const std::vector<Floats>& weights) {
    int64_t total = 0;
    for (const Floats& weight : weights) total += weight.count;
    return total;
}

}  // namespace diffq_fast
