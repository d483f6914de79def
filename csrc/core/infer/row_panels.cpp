#include "core/infer/row_panels.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "core/infer/row_reader.h"
#include "core/runtime/dispatch.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kBytesPerTask = 1 << 19;   // of vectors, which are to stay in the cache
constexpr int64_t kVectorsOfTasks = 12;       // tasks have whole vectors of any PanelForm
constexpr int64_t kVectorsToRound = 4, kTasksPerThread = 4;
constexpr int64_t kBlocksOfOneSet = 8;  // vectors that are so many apart share few sets of the cache
constexpr int64_t kLeastPiece = 32;  // smaller ones are summed up too often

// Columns of one width and scale, within a block of activations; 0: rows have none.
int64_t piece_of(const PackedRows& rows) {
    if (rows.segment >= rows.columns) return kBlockColumns;
    if (rows.segment % kBlockColumns == 0) return kBlockColumns;
    return rows.segment % kLeastPiece == 0 ? kLeastPiece : 0;
}

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

    // Vectors that a task multiplies: all, where they stay in the cache and panels are enough for all threads.
    int64_t of_task(int64_t panels, int threads) const {
        const int64_t parts = (kTasksPerThread * threads + panels - 1) / std::max<int64_t>(panels, 1);
        const int64_t fit = std::min(kBytesPerTask / stride_, (count_ + parts - 1) / parts);
        return (fit / kVectorsOfTasks + 1) * kVectorsOfTasks;
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

    int64_t count_, blocks_, pieces_, stride_;
    std::vector<int8_t> whole_;
    std::vector<float> units_, sums_;
};

// Bytes that begin with a line of the cache, and hold nothing yet.
class Bytes {
  public:
    explicit Bytes(int64_t count) : room_(new uint8_t[static_cast<size_t>(count + kLine)]) {}

    uint8_t* data() { return room_.get() + (kLine - reinterpret_cast<uintptr_t>(room_.get()) % kLine); }

  private:
    static constexpr int64_t kLine = 64;
    std::unique_ptr<uint8_t[]> room_;
};

// Some rows, unpacked.
class Panel {
  public:
    Panel(int64_t blocks, int64_t piece)
        : blocks_(blocks),
          piece_(piece),
          levels_(kPanelRows * blocks * kBlockColumns),
          bytes_(kPanelRows * blocks * kBlockColumns + kReadBehind),
          scales_(static_cast<size_t>(kPanelRows * pieces()), 0.0f),
          offsets_(scales_.size(), 0.0f),
          widest_(static_cast<size_t>(pieces()), uint8_t{1}) {}

    // Rows `begin` and those behind it, up to `end`. False where one does not lie in the data.
    bool fill(const RowReader& reader, int64_t begin, int64_t end) {
        const int64_t columns = blocks_ * kBlockColumns;
        for (int64_t r = 0; r < end - begin; ++r) {
            PackedRow row;
            if (!reader.open(begin + r, row)) return false;
            fill_scales(row, r);
            kernels().unpack_bytes(row, bytes_.data() + r * columns);
        }
        kernels().interleave_rows(bytes_.data(), blocks_, levels_.data());
        return true;
    }

    RowPanel view() {
        return {levels_.data(), scales_.data(), offsets_.data(), widest_.data(), blocks_, piece_};
    }

  private:
    int64_t pieces() const { return blocks_ * (kBlockColumns / piece_); }

    void fill_scales(const PackedRow& row, int64_t r) {
        GroupCursor at(row);
        float *scales = scales_.data() + r, *offsets = offsets_.data() + r;
        uint8_t* widest = widest_.data();
        int64_t left = pieces();
        const int64_t of_segment = row.segments == 1 ? left : row.segment / piece_;
        for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
            const int width = width_of_segment(row.widths, s);
            const float scale = row.steps[width] * row.scales[at.group];
            const float offset = row.offsets ? row.offsets[at.group] : -row.halves[width] * scale;
            for (int64_t i = std::min(of_segment, left); i > 0; --i, --left) {
                *scales = scale, *offsets = offset;
                *widest = std::max(*widest, static_cast<uint8_t>(width));
                scales += kPanelRows, offsets += kPanelRows, ++widest;
            }
        }
    }

    int64_t blocks_, piece_;
    Bytes levels_, bytes_;  // of the rows as they follow one another
    std::vector<float> scales_, offsets_;
    std::vector<uint8_t> widest_;
};

}  // namespace

bool fit_panels(const PackedRows& rows) {
    const int64_t bytes = rows.rows * ((segments_of(rows) + 1) / 2);
    const int room = (8 - kernels().panels.most_width) * 0x11;
    uint8_t above = 0;  // the highest bit of each half byte is set where its width is too large
    for (int64_t i = 0; i < bytes; ++i) {
        const int pair = rows.widths[i];
        above = static_cast<uint8_t>(above | pair | ((pair & 0x77) + room));
    }
    return piece_of(rows) > 0 && (above & 0x88) == 0;
}

bool are_panels_fast() {
    return kernels().panels.fast;
}

bool multiply_panels(const PackedRows& rows, const float* vectors, int64_t count, float* results,
                     int threads) {
    const int64_t piece = piece_of(rows);
    const RowReader reader(rows);
    const RoundedVectors rounded(vectors, count, rows.columns, piece, threads);
    const int64_t panels = (rows.rows + kPanelRows - 1) / kPanelRows;
    const int64_t of_task = rounded.of_task(panels, threads), parts = (count + of_task - 1) / of_task;
    const int64_t at_once = kernels().panels.vectors;
    std::atomic<bool> inside{true}, memory{true};
    const auto multiply = [&](int64_t task) {
        const int64_t row = task % panels * kPanelRows, begin = task / panels * of_task;
        const int64_t end = std::min(begin + of_task, count);
        const int64_t width = std::min(kPanelRows, rows.rows - row);
        Panel panel(rounded.blocks(), piece);
        if (!panel.fill(reader, row, row + width)) {
            inside = false;
            return;
        }
        for (int64_t v = begin; v < end; v += at_once) {
            const int64_t some = std::min(at_once, end - v);
            float* const to = results + v * rows.rows + row;
            if (width == kPanelRows) {
                kernels().multiply_panel(panel.view(), rounded.some(v, some), to, rows.rows);
                continue;
            }
            float products[kMostPanelVectors * kPanelRows];
            kernels().multiply_panel(panel.view(), rounded.some(v, some), products, kPanelRows);
            for (int64_t i = 0; i < some; ++i) {
                const float* const from = products + i * kPanelRows;
                std::copy(from, from + width, to + i * rows.rows);
            }
        }
    };
    parallel_for(panels * parts, threads, [&](int64_t task) {
        try {  // tasks must not throw
            multiply(task);
        } catch (const std::bad_alloc&) {
            memory = false;
        }
    });
    if (!memory) throw std::bad_alloc();
    return inside;
}

}  // namespace diffq_fast
