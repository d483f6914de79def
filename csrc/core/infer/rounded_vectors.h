// Vectors in whole numbers, as panels are multiplied with them.
#pragma once

#include <algorithm>
#include <vector>

#include "core/runtime/dispatch.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {

// All vectors in whole numbers, see WholeVectors; zeros behind the columns.
class RoundedVectors {
  public:
    RoundedVectors(const float* vectors, int64_t count, int64_t columns, int64_t piece, int threads)
        : count_(count),
          blocks_((columns + kBlockColumns - 1) / kBlockColumns),
          pieces_(blocks_ * (kBlockColumns / piece)),
          stride_((blocks_ + (blocks_ % kBlocksOfOneSet == 0)) * kBlockColumns),
          whole_(static_cast<size_t>(count * stride_)),
          units_(static_cast<size_t>(count * blocks_)),
          sums_(static_cast<size_t>(count * pieces_)) {
        parallel_for((count + kVectorsToRound - 1) / kVectorsToRound, threads, [&](int64_t task) {
            const int64_t end = std::min((task + 1) * kVectorsToRound, count);
            for (int64_t v = task * kVectorsToRound; v < end; ++v)
                round(vectors + v * columns, v, columns, piece);
        });
    }

    int64_t blocks() const { return blocks_; }

    // Vectors that a task multiplies: all, where they stay in the cache and panels are enough for all
    // threads.
    int64_t of_task(int64_t panels, int threads) const {
        const int64_t parts = (kTasksPerThread * threads + panels - 1) / std::max<int64_t>(panels, 1);
        const int64_t fit = std::min(kBytesOfTask / stride_, (count_ + parts - 1) / parts);
        return (fit / kVectorsOfTask + 1) * kVectorsOfTask;
    }

    WholeVectors some(int64_t begin, int64_t count) const {
        return {whole_.data() + begin * stride_, stride_, units_.data() + begin * blocks_,
                sums_.data() + begin * pieces_, count};
    }

  private:
    void round(const float* vector, int64_t v, int64_t columns, int64_t piece) {
        int8_t* const whole = whole_.data() + v * stride_;
        for (int64_t block = 0; block < blocks_; ++block) {
            const int64_t begin = block * kBlockColumns, length = std::min(kBlockColumns, columns - begin);
            units_[static_cast<size_t>(v * blocks_ + block)] =
                kernels().round_block(vector + begin, length, whole + begin);
        }
        for (int64_t p = 0; p < pieces_; ++p) {
            int32_t sum = 0;
            for (int64_t i = 0; i < piece; ++i) sum += whole[p * piece + i];
            sums_[static_cast<size_t>(v * pieces_ + p)] = static_cast<float>(sum);
        }
    }

    static constexpr int64_t kBytesOfTask = 1 << 19;  // which are to stay in the cache
    static constexpr int64_t kVectorsOfTask = 6;      // whole vectors of any PanelForm
    static constexpr int64_t kVectorsToRound = 4, kTasksPerThread = 4;
    static constexpr int64_t kBlocksOfOneSet =
        8;  // vectors that are so many apart share few sets of the cache

    int64_t count_, blocks_, pieces_, stride_;
    std::vector<int8_t> whole_;
    std::vector<float> units_, sums_;
};

}  // namespace diffq_fast
