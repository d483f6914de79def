#include "core/infer/row_panels.h"

#include <atomic>
#include <new>

#include "core/infer/panel.h"
#include "core/infer/rounded_vectors.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kLeastPiece = 32;     // smaller ones are summed up too often
constexpr int64_t kRowsOfOneWide = 64;  // one of so many may be left out of panels

// Columns of one width and scale, within a block of activations; 0: rows have none.
int64_t piece_of(const PackedRows& rows) {
    if (rows.segment >= rows.columns) return kBlockColumns;
    if (rows.segment % kBlockColumns == 0) return kBlockColumns;
    return rows.segment % kLeastPiece == 0 ? kLeastPiece : 0;
}

bool some_are_wide(const PackedRows& rows) {
    const int64_t bytes = rows.rows * ((segments_of(rows) + 1) / 2);
    return are_above(rows.widths, bytes, kernels().panels.most_width);
}

struct PanelProduct {
    const PackedRows& rows;
    const RowReader& reader;
    const RoundedVectors& rounded;
    float* results;

    // With vectors `begin` up to `end`. False where a row does not lie in the data.
    bool multiply(Panel& panel, int64_t first, int64_t begin, int64_t end) const {
        const int64_t last = std::min(first + panel.rows(), rows.rows);
        if (!panel.fill(reader, first, last)) return false;
        const int64_t most = kernels().panels.vectors;
        int64_t calls = (end - begin + most - 1) / most;
        for (int64_t v = begin; v < end; --calls) {
            const int64_t some = (end - v + calls - 1) / calls;  // about as many each
            multiply_some(panel, first, last, v, some);
            v += some;
        }
        for (const int64_t row : panel.left_out()) multiply_as_floats(row, begin, end);
        return true;
    }

  private:
    void multiply_some(Panel& panel, int64_t first, int64_t last, int64_t v, int64_t some) const {
        float* const to = results + v * rows.rows + first;
        const int64_t made = panel.rows(), width = last - first;
        const auto multiply_panel = kernels().multiply_panel;
        if (width == made) return multiply_panel(panel.view(), rounded.some(v, some), to, rows.rows);
        float products[kMostPanelVectors * kMostPanelParts * kPanelRows];
        multiply_panel(panel.view(), rounded.some(v, some), products, made);
        for (int64_t i = 0; i < some; ++i)
            std::copy(products + i * made, products + i * made + width, to + i * rows.rows);
    }

    void multiply_as_floats(int64_t index, int64_t begin, int64_t end) const {
        PackedRow row;
        reader.open(index, row);
        std::vector<float> weights(static_cast<size_t>(rows.columns)), vector(weights.size());
        kernels().unpack_row(row, weights.data());
        for (int64_t v = begin; v < end; ++v) {
            rounded.restore(v, rows.columns, vector.data());
            const double product = kernels().dot(weights.data(), vector.data(), rows.columns);
            results[v * rows.rows + index] = static_cast<float>(product);
        }
    }
};

}  // namespace

bool fit_panels(const PackedRows& rows) {
    if (piece_of(rows) == 0 || !some_are_wide(rows)) return piece_of(rows) > 0;
    const int64_t bytes = (segments_of(rows) + 1) / 2;
    int64_t wide = 0;
    for (int64_t r = 0; r < rows.rows; ++r)
        wide += are_above(rows.widths + r * bytes, bytes, kernels().panels.most_width);
    return wide * kRowsOfOneWide <= rows.rows;
}

bool are_panels_fast() {
    return kernels().panels.fast;
}

bool multiply_panels(const PackedRows& rows, const float* vectors, int64_t count, float* results,
                     int threads) {
    const int64_t piece = piece_of(rows);
    const RowReader reader(rows);
    const RoundedVectors rounded(vectors, count, rows.columns, piece, threads);
    const PanelProduct product{rows, reader, rounded, results};
    const bool wide = some_are_wide(rows);
    const int64_t of_panel = kernels().panels.parts * kPanelRows;
    const int64_t panels = (rows.rows + of_panel - 1) / of_panel;
    const int64_t of_task = rounded.of_task(panels, threads), tasks = (count + of_task - 1) / of_task;
    std::atomic<bool> inside{true}, memory{true};
    parallel_for(panels * tasks, threads, [&](int64_t task) {
        const int64_t begin = task / panels * of_task, end = std::min(begin + of_task, count);
        try {  // tasks must not throw
            Panel panel(rounded.blocks(), piece, wide);
            if (!product.multiply(panel, task % panels * of_panel, begin, end)) inside = false;
        } catch (const std::bad_alloc&) {
            memory = false;
        }
    });
    if (!memory) throw std::bad_alloc();
    return inside;
}

}  // namespace diffq_fast
