#include "core/infer/unpacked_rows.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "core/infer/panel.h"
#include "core/infer/row_reader.h"
#include "core/runtime/dispatch.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kFour = 4, kMostRows = 32, kSixteen = 16;
constexpr int64_t kTasksPerThread = 4;

int64_t whole_sixteens(int64_t columns) {
    return (columns + kSixteen - 1) / kSixteen * kSixteen;
}

// Vectors of whole sixteens of columns: those that are given, or copies with zeros behind them.
class WholeSixteens {
  public:
    WholeSixteens(const float* vectors, int64_t count, int64_t columns)
        : rows_{vectors, whole_sixteens(columns), count} {
        if (rows_.stride == columns) return;
        copies_.assign(static_cast<size_t>(rows_.stride * count), 0.0f);
        for (int64_t v = 0; v < count; ++v)
            std::copy(vectors + v * columns, vectors + (v + 1) * columns, copies_.data() + v * rows_.stride);
        rows_.values = copies_.data();
    }

    const FloatRows& rows() const { return rows_; }

  private:
    std::vector<float> copies_;
    FloatRows rows_;
};

// Some rows at a time, unpacked.
class UnpackedRows {
  public:
    // The rows are a little further apart than they are long: those of some powers of two share few sets of
    // the cache.
    explicit UnpackedRows(int64_t columns)
        : stride_(whole_sixteens(columns) + kSixteen),
          most_(most_rows(columns)),
          columns_(columns),
          bytes_(stride_ * most_ * static_cast<int64_t>(sizeof(float))) {}

    static int64_t most_rows(int64_t columns) {
        const int64_t bytes = (whole_sixteens(columns) + kSixteen) * static_cast<int64_t>(sizeof(float));
        return std::max(kFour, std::min(kMostRows, kUnpackedBytes / bytes / kFour * kFour));
    }

    bool fill(const RowReader& reader, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            PackedRow row;
            if (!reader.open(r, row)) return false;
            float* const values = floats() + (r - begin) * stride_;
            kernels().unpack_row(row, values);
            std::fill(values + columns_, values + whole_sixteens(columns_), 0.0f);
        }
        filled_ = end - begin;
        return true;
    }

    // In whole fours: the last ones may be left from rows before, or be nothing.
    FloatRows rows() { return {floats(), stride_, (filled_ + kFour - 1) / kFour * kFour}; }

  private:
    float* floats() { return reinterpret_cast<float*>(bytes_.data()); }

    int64_t stride_, most_, columns_, filled_ = 0;
    Bytes bytes_;
};

struct UnpackedProduct {
    const PackedRows& rows;
    const RowReader& reader;
    const FloatRows& vectors;
    float* results;

    // Of rows `begin` up to `end`. False where one does not lie in the data.
    bool multiply(UnpackedRows& some, int64_t begin, int64_t end) const {
        if (!some.fill(reader, begin, end)) return false;
        const int64_t made = some.rows().count, wanted = end - begin;
        const int64_t columns = whole_sixteens(rows.columns);
        if (wanted == made) {
            kernels().multiply_floats(some.rows(), vectors, columns, results + begin, rows.rows);
            return true;
        }
        std::vector<float> products(static_cast<size_t>(vectors.count * made));
        kernels().multiply_floats(some.rows(), vectors, columns, products.data(), made);
        for (int64_t v = 0; v < vectors.count; ++v)
            std::copy_n(products.data() + v * made, wanted, results + v * rows.rows + begin);
        return true;
    }
};

}  // namespace

bool has_float_products() {
    return kernels().multiply_floats != nullptr;
}

bool multiply_unpacked(const PackedRows& rows, const float* vectors, int64_t count, float* results,
                       int threads) {
    const RowReader reader(rows);
    const WholeSixteens given(vectors, count, rows.columns);
    const UnpackedProduct product{rows, reader, given.rows(), results};
    const int64_t at_once = UnpackedRows::most_rows(rows.columns);
    const int64_t parts = (rows.rows + at_once - 1) / at_once;
    const int64_t tasks = threads > 1 ? std::min(parts, kTasksPerThread * threads) : 1;
    std::atomic<bool> inside{true}, memory{true};
    parallel_for(tasks, threads, [&](int64_t task) {
        try {  // tasks must not throw
            UnpackedRows some(rows.columns);
            for (int64_t p = task * parts / tasks; p < (task + 1) * parts / tasks && inside; ++p)
                if (!product.multiply(some, p * at_once, std::min((p + 1) * at_once, rows.rows)))
                    inside = false;
        } catch (const std::bad_alloc&) {
            memory = false;
        }
    });
    if (!memory) throw std::bad_alloc();
    return inside;
}

}  // namespace diffq_fast
