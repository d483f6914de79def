// How weights are cut: into groups that share a width, into chunks that one task handles, into tasks over
// many weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/runtime/dtype.h"

namespace diffq_fast {

// One weight (or gradient, or noisy weight): `count` elements of `dtype` in row-major order.
struct Floats {
    void* data;
    int64_t count;
    DType dtype;
};

// group_size 0: the whole weight is one group.
inline int64_t group_count(int64_t count, int64_t group_size) {
    if (group_size == 0) return count > 0 ? 1 : 0;
    return count / group_size + (count % group_size != 0);
}

inline int64_t group_of(int64_t element, int64_t group_size) {
    return group_size == 0 ? 0 : element / group_size;
}

// Groups that elements first ... first + count - 1 (count > 0) touch.
inline int64_t groups_touched(int64_t first, int64_t count, int64_t group_size) {
    return group_of(first + count - 1, group_size) - group_of(first, group_size) + 1;
}

// Calls body(group, begin, end) for each group's part of [first, first + count); group counts from first's
// group.
template <typename Body>
void for_each_segment(int64_t first, int64_t count, int64_t group_size, Body&& body) {
    int64_t begin = 0, left = group_size == 0 ? count : group_size - first % group_size;
    for (int64_t group = 0; begin < count; ++group, left = group_size) {
        const int64_t end = std::min(count, begin + left);
        body(group, begin, end);
        begin = end;
    }
}

template <int64_t kSize>
void spread_fixed(const float* values, int64_t count, float* elements) {
    for (int64_t group = 0; group < count / kSize; ++group) {
        for (int64_t j = 0; j < kSize; ++j) elements[group * kSize + j] = values[group];
    }
    for (int64_t i = count / kSize * kSize; i < count; ++i) elements[i] = values[i / kSize];
}

// elements[i] = the value of element first + i's group; values[0] belongs to first's group.
inline void spread(const float* values, int64_t first, int64_t count, int64_t group_size, float* elements) {
    if (group_size == 1) {
        std::memcpy(elements, values, static_cast<size_t>(count) * sizeof(float));
    } else if (group_size == 2 && first % 2 == 0) {
        spread_fixed<2>(values, count, elements);
    } else if (group_size == 4 && first % 4 == 0) {
        spread_fixed<4>(values, count, elements);
    } else if (group_size == 8 && first % 8 == 0) {
        spread_fixed<8>(values, count, elements);
    } else {
        for_each_segment(first, count, group_size, [&](int64_t group, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) elements[i] = values[group];
        });
    }
}

// The elements that one task handles.
struct Chunk {
    int64_t begin, end;
    int64_t first_group;
};

// Cuts a weight into chunks of about kElements, the same whatever the number of threads: either each holds
// whole groups (and a multiple of 8 elements, so that noise comes in whole Philox calls), or, where groups
// are large, each is a piece of one group.
class ChunkGrid {
  public:
    static constexpr int64_t kElements = 16384;

    ChunkGrid(int64_t count, int64_t group_size)
        : count_(count), group_size_(group_size == 0 ? count : group_size) {
        if (count == 0) return;
        const int64_t unit = group_size_ > kElements ? group_size_ : std::lcm(group_size_, int64_t{8});
        if (unit <= kElements) {
            per_chunk_ = kElements / unit * unit;
            chunks_ = (count + per_chunk_ - 1) / per_chunk_;
        } else {
            pieces_ = pieces_of(group_size_);
            chunks_ = count / group_size_ * pieces_ + pieces_of(count % group_size_);
        }
    }

    int64_t chunks() const { return chunks_; }

    // Chunks per group, or 0 where chunks hold whole groups.
    int64_t pieces() const { return pieces_; }

    Chunk at(int64_t chunk) const {
        if (pieces_ == 0) {
            const int64_t begin = chunk * per_chunk_;
            return {begin, std::min(count_, begin + per_chunk_), begin / group_size_};
        }
        const int64_t group = chunk / pieces_;
        const int64_t begin = group * group_size_ + chunk % pieces_ * kElements;
        const int64_t group_end =
            count_ - group * group_size_ > group_size_ ? (group + 1) * group_size_ : count_;
        return {begin, std::min(group_end, begin + kElements), group};
    }

  private:
    static int64_t pieces_of(int64_t elements) { return elements / kElements + (elements % kElements != 0); }

    int64_t count_, group_size_;
    int64_t per_chunk_ = 0, pieces_ = 0, chunks_ = 0;
};

// Numbers the pieces of several lists through: task t is piece t - starts[list] of the list that holds it.
class TaskTable {
  public:
    void append(int64_t pieces) { starts_.push_back(starts_.back() + pieces); }
    int64_t tasks() const { return starts_.back(); }
    int64_t start(size_t list) const { return starts_[list]; }

    struct Place {
        size_t list;
        int64_t piece;
    };
    Place find(int64_t task) const {
        const auto after = std::upper_bound(starts_.begin(), starts_.end(), task);
        const auto list = static_cast<size_t>(after - starts_.begin()) - 1;
        return {list, task - starts_[list]};
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
