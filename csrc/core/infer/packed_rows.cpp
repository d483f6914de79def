#include "core/infer/packed_rows.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/infer/lines.h"
#include "core/infer/row_reader.h"
#include "core/runtime/dispatch.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kRowsPerTask = 32;
constexpr int64_t kSixteen = 16;

// Vectors as the kernels read them: rows of whole sixteens, zeros behind the columns; and the sums of their
// segments.
struct PaddedVectors {
    PaddedVectors(const PackedRows& rows, const float* vectors, int64_t count, Activations activations)
        : stride((rows.columns + kSixteen - 1) / kSixteen * kSixteen),
          segments(segments_of(rows)),
          blocks((rows.columns + kBlockColumns - 1) / kBlockColumns),
          values(stride * count),
          sums(static_cast<size_t>(segments * count)),
          totals(static_cast<size_t>(count)) {
        for (int64_t v = 0; v < count; ++v) {
            const float* from = vectors + v * rows.columns;
            std::copy(from, from + rows.columns, values.data() + v * stride);
        }
        if (activations == Activations::int8) round(rows.columns, count);
        for (int64_t v = 0; v < count; ++v) {
            const float* from = values.data() + v * stride;
            totals[static_cast<size_t>(v)] = static_cast<float>(kernels().sum(from, rows.columns));
            for (int64_t s = 0; s < segments; ++s) {
                const int64_t begin = s * rows.segment, end = std::min(begin + rows.segment, rows.columns);
                sums[static_cast<size_t>(v * segments + s)] =
                    static_cast<float>(kernels().sum(from + begin, end - begin));
            }
        }
    }

    RowVectors some(int64_t begin, int64_t count) const {
        RowVectors of{values.data() + begin * stride, stride, sums.data() + begin * segments,
                      totals.data() + begin, count};
        if (!units.empty()) {
            of.integers = integers.data() + begin * stride;
            of.whole = whole.data() + begin * blocks * kBlockColumns;
            of.halves = halves.data() + begin * blocks * kBlockColumns;
            of.quarters = quarters.data() + begin * blocks * kBlockColumns;
            of.units = units.data() + begin * blocks;
            of.blocks = blocks;
        }
        return of;
    }

    int64_t stride, segments, blocks;
    Lines<float> values;
    std::vector<float> sums, totals, units;
    Lines<int16_t> integers;
    Lines<int8_t> whole, halves, quarters;

  private:
    void round(int64_t columns, int64_t count) {
        integers = Lines<int16_t>(stride * count);
        halves = Lines<int8_t>(blocks * kBlockColumns * count);
        quarters = Lines<int8_t>(blocks * kBlockColumns * count);
        whole = Lines<int8_t>((blocks * count + 1) * kBlockColumns);
        for (int64_t v = 0; v < count; ++v)
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t begin = block * kBlockColumns,
                              length = std::min(kBlockColumns, columns - begin);
                float* const of = values.data() + v * stride + begin;
                const int64_t place = (v * blocks + block) * kBlockColumns;
                int8_t* const block_whole = whole.data() + place;
                int8_t *const half = halves.data() + place, *const quarter = quarters.data() + place;
                int16_t* const integer = integers.data() + v * stride + begin;
                const float unit = kernels().round_block(of, length, block_whole);
                units.push_back(unit);
                for (int64_t i = 0; i < length; ++i) {
                    of[i] = static_cast<float>(block_whole[i]) * unit;
                    integer[i] = block_whole[i];
                    half[i / 2 + i % 2 * (kBlockColumns / 2)] = block_whole[i];
                    quarter[i / 4 + i % 4 * (kBlockColumns / 4)] = block_whole[i];
                }
            }
    }
};

// A run of levels of one width; returns all that is too large for it.
uint32_t pack_run(const int32_t* levels, int64_t count, int width, uint8_t* data) {
    uint64_t held = 0;
    uint32_t above = 0;
    int bits = 0;
    for (int64_t i = 0; i < count; ++i) {
        const auto level = static_cast<uint32_t>(levels[i]);
        above |= level >> width;
        held |= static_cast<uint64_t>(level) << bits;
        bits += width;
        if (bits >= 32) {
            const auto low = static_cast<uint32_t>(held);
            for (int byte = 0; byte < 4; ++byte) *data++ = static_cast<uint8_t>(low >> 8 * byte);
            held >>= 32;
            bits -= 32;
        }
    }
    for (; bits > 0; bits -= 8, held >>= 8) *data++ = static_cast<uint8_t>(held);
    return above;
}

RowsProblem pack_one_row(const RowsOfLevels& given, int64_t row, uint8_t* data, int64_t bytes) {
    const int64_t segments = (given.columns + given.segment - 1) / given.segment;
    const uint8_t* const widths = given.widths + row * segments;
    int64_t place = given.starts[row] * kRowAlignment;
    for (int64_t s = 0; s < segments; ++s) {
        const int64_t begin = s * given.segment, length = std::min(given.segment, given.columns - begin);
        if (widths[s] < 1 || widths[s] > kMaxWidth) return RowsProblem::width;
        const int64_t size = bytes_of(length, widths[s]);
        if (place + size > bytes - kReadBehindRows) return RowsProblem::outside;
        const int32_t* const levels = given.levels + row * given.columns + begin;
        if (pack_run(levels, length, widths[s], data + place) != 0) return RowsProblem::level;
        place += size;
    }
    return RowsProblem::none;
}

}  // namespace

RowsProblem pack_rows(const RowsOfLevels& given, uint8_t* data, int64_t bytes, int threads) {
    std::atomic<RowsProblem> problem{RowsProblem::none};
    parallel_for((given.rows + kRowsPerTask - 1) / kRowsPerTask, threads, [&](int64_t task) {
        const int64_t end = std::min((task + 1) * kRowsPerTask, given.rows);
        for (int64_t row = task * kRowsPerTask; row < end; ++row) {
            const RowsProblem found = pack_one_row(given, row, data, bytes);
            if (found != RowsProblem::none) {
                problem = found;
                return;
            }
        }
    });
    return problem;
}

bool multiply_rows(const PackedRows& rows, const float* vectors, int64_t count, Activations activations,
                   float* results, int threads) {
    const RowReader reader(rows);
    const PaddedVectors padded(rows, vectors, count, activations);
    std::atomic<bool> inside{true};
    const int64_t at_once = kernels().row_vectors;
    const int64_t tasks = (rows.rows + kRowsPerTask - 1) / kRowsPerTask;
    parallel_for(tasks, threads, [&](int64_t task) {
        const int64_t end = std::min((task + 1) * kRowsPerTask, rows.rows);
        for (int64_t r = task * kRowsPerTask; r < end; ++r) {
            PackedRow row;
            if (!reader.open(r, row)) {
                inside = false;
                return;
            }
            for (int64_t v = 0; v < count; v += at_once) {
                const int64_t some = std::min(at_once, count - v);
                float products[kMostVectors];
                kernels().multiply_row(row, padded.some(v, some), products);
                for (int64_t i = 0; i < some; ++i) results[(v + i) * rows.rows + r] = products[i];
            }
        }
    });
    return inside;
}

bool unpack_rows(const PackedRows& rows, const int64_t* indices, int64_t count, float* values, int threads) {
    const RowReader reader(rows);
    std::atomic<bool> inside{true};
    parallel_for((count + kRowsPerTask - 1) / kRowsPerTask, threads, [&](int64_t task) {
        const int64_t end = std::min((task + 1) * kRowsPerTask, count);
        for (int64_t i = task * kRowsPerTask; i < end; ++i) {
            PackedRow row;
            if (indices[i] < 0 || indices[i] >= rows.rows || !reader.open(indices[i], row)) {
                inside = false;
                return;
            }
            kernels().unpack_row(row, values + i * rows.columns);
        }
    });
    return inside;
}

}  // namespace diffq_fast
