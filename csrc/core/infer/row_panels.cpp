#include "core/infer/row_panels.h"

#include <atomic>
#include <new>

#include "core/infer/panel.h"
#include "core/infer/rounded_vectors.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kLeastPiece = 32;  // smaller ones are summed up too often

// Columns of one width and scale, within a block of activations; 0: rows have none.
int64_t piece_of(const PackedRows& rows) {
    if (rows.segment >= rows.columns) return kBlockColumns;
    if (rows.segment % kBlockColumns == 0) return kBlockColumns;
    return rows.segment % kLeastPiece == 0 ? kLeastPiece : 0;
}

// How often a panel of rows is multiplied: once for each digit of its widest level.
int64_t passes_of(const PackedRows& rows, int64_t first, int64_t last) {
    const int64_t bytes = (segments_of(rows) + 1) / 2, most = kernels().panels.most_width;
    return (widest_of(rows.widths + first * bytes, (last - first) * bytes) + most - 1) / most;
}

struct PanelProduct {
    const PackedRows& rows;
    const RowReader& reader;
    const RoundedVectors& rounded;
    const float* bias;  // null: none
    float* results;

    // With vectors `begin` up to `end`. False where a row does not lie in the data.
    bool multiply(Panel& panel, int64_t first, int64_t begin, int64_t end) const {
        const int64_t last = std::min(first + panel.rows(), rows.rows);
        if (!panel.fill(reader, first, last, bias)) return false;
        in_turns(begin, end, [&](int64_t v, int64_t some) { multiply_some(panel, first, last, v, some); });
        for (int digit = 1; panel.fill_higher(reader, digit); ++digit)
            in_turns(begin, end, [&](int64_t v, int64_t some) { add_some(panel, v, some); });
        return true;
    }

  private:
    // As many vectors at a time as the kernels take, about as many each.
    template <class Multiply>
    static void in_turns(int64_t begin, int64_t end, const Multiply& multiply_these) {
        const int64_t most = kernels().panels.vectors;
        int64_t calls = (end - begin + most - 1) / most;
        for (int64_t v = begin; v < end; --calls) {
            const int64_t some = (end - v + calls - 1) / calls;
            multiply_these(v, some);
            v += some;
        }
    }

    void multiply_some(Panel& panel, int64_t first, int64_t last, int64_t v, int64_t some) const {
        float* const to = results + v * rows.rows + first;
        const int64_t made = panel.rows(), width = last - first;
        const auto multiply_panel = kernels().multiply_panel;
        if (width == made) return multiply_panel(panel.view(), rounded.some(v, some), to, rows.rows);
        float products[kMostProducts];
        multiply_panel(panel.view(), rounded.some(v, some), products, made);
        for (int64_t i = 0; i < some; ++i)
            std::copy(products + i * made, products + i * made + width, to + i * rows.rows);
    }

    // Those of higher digits.
    void add_some(Panel& panel, int64_t v, int64_t some) const {
        float products[kMostProducts];
        kernels().multiply_panel(panel.view(), rounded.some(v, some), products, panel.rows());
        for (int64_t i = 0; i < some; ++i) {
            const float* product = products + i * panel.rows();
            for (const int64_t row : panel.indices()) results[(v + i) * rows.rows + row] += *product++;
        }
    }

    static constexpr int64_t kMostProducts = kMostPanelVectors * kMostPanelParts * kPanelRows;
};

}  // namespace

bool fit_panels(const PackedRows& rows) {
    return piece_of(rows) > 0;
}

bool are_panels_fast(const PackedRows& rows) {
    const int64_t of_panel = kernels().panels.parts * kPanelRows;
    int64_t passes = 0, panels = 0;
    for (int64_t first = 0; first < rows.rows; first += of_panel, ++panels)
        passes += passes_of(rows, first, std::min(first + of_panel, rows.rows));
    return static_cast<double>(passes) <= kernels().panels.passes * static_cast<double>(panels);
}

bool multiply_panels(const PackedRows& rows, const float* vectors, int64_t count, const float* bias,
                     float* results, int threads) {
    const int64_t piece = piece_of(rows);
    const RowReader reader(rows);
    const RoundedVectors rounded(vectors, count, rows.columns, piece, threads);
    const PanelProduct product{rows, reader, rounded, bias, results};
    const int64_t of_panel = kernels().panels.parts * kPanelRows;
    const int64_t panels = (rows.rows + of_panel - 1) / of_panel;
    const int64_t of_task = rounded.of_task(panels, threads), tasks = (count + of_task - 1) / of_task;
    std::atomic<bool> inside{true}, memory{true};
    parallel_for(panels * tasks, threads, [&](int64_t task) {
        const int64_t begin = task / panels * of_task, end = std::min(begin + of_task, count);
        try {  // tasks must not throw
            Panel panel(rounded.blocks(), piece);
            if (!product.multiply(panel, task % panels * of_panel, begin, end)) inside = false;
        } catch (const std::bad_alloc&) {
            memory = false;
        }
    });
    if (!memory) throw std::bad_alloc();
    return inside;
}

}  // namespace diffq_fast
