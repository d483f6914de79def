#include "core/pack/quantize.h"

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

// The steps of all widths.
struct WidthTable {
    float step[256], inverse[256], top[256];

    WidthTable() {
        for (int width = 0; width < 256; ++width) {
            step[width] = level_step(static_cast<uint8_t>(width));
            inverse[width] = 1.0f / step[width];
            top[width] = top_level(static_cast<uint8_t>(width));
        }
    }
};

// Per element of a block: its group's smallest weight, length of range, step and highest level.
class Elements {
  public:
    LevelGrid fill(Span span, const WidthsAndRanges& given) {
        const int64_t group_size = given.grouping.group_size;
        const int64_t group = group_of(span.begin, group_size), groups = groups_touched(span, group_size);
        const uint8_t* const widths = given.widths + group;
        const float* const range = given.grouping.range_of(given.ranges, group);
        const bool per_group = given.grouping.per_group;
        const bool one_width =
            std::all_of(widths, widths + groups, [&](uint8_t width) { return width == widths[0]; });
        LevelGrid grid = level_grid(range, widths[0]);
        if (one_width && (groups == 1 || !per_group)) return grid;
        const auto spread_all = [&](auto&& value_of, float* elements) {
            float values[kBlock];
            for (int64_t g = 0; g < groups; ++g) values[g] = value_of(g);
            spread(values, span, group_size, elements);
            return elements;
        };
        static const WidthTable table;
        grid.steps = spread_all([&](int64_t g) { return table.step[widths[g]]; }, steps_);
        grid.inverses = spread_all([&](int64_t g) { return table.inverse[widths[g]]; }, inverses_);
        grid.tops = spread_all([&](int64_t g) { return table.top[widths[g]]; }, tops_);
        if (!per_group) return grid;
        grid.los = spread_all([&](int64_t g) { return range[2 * g]; }, los_);
        grid.lengths = spread_all([&](int64_t g) { return range[2 * g + 1] - range[2 * g]; }, lengths_);
        return grid;
    }

  private:
    float los_[kBlock], lengths_[kBlock], steps_[kBlock], inverses_[kBlock], tops_[kBlock];
};

// Calls body(span, its grid) for one block of the part after the other.
template <typename Body>
void for_each_grid(Span part, const WidthsAndRanges& given, Body&& body) {
    for_each_block_of({part.begin, part.begin + part.count, 0}, [&](Span span) {
        Elements elements;
        body(span, elements.fill(span, given));
    });
}

// Calls body(weight index, span, its widths and ranges) for parts of all weights, in parallel.
template <typename Body>
void for_each_part(const std::vector<Floats>& weights, const AllWidthsAndRanges& given, int threads,
                   Body&& body) {
    std::vector<WidthsAndRanges> each;
    TaskTable table;
    const float* ranges = given.ranges;
    for (size_t i = 0; i < weights.size(); ++i) {
        table.append((weights[i].count + kTaskElements - 1) / kTaskElements);
        each.push_back({given.widths[i], ranges, given.grouping});
        ranges += 2 * given.grouping.range_count(weights[i].count);
    }
    parallel_for(table.tasks(), threads_for(total_count(weights), threads), [&](int64_t task) {
        const auto place = table.place_of(task);
        const int64_t begin = place.piece * kTaskElements;
        const int64_t count = std::min(kTaskElements, weights[place.weight].count - begin);
        body(place.weight, Span{begin, count}, each[place.weight]);
    });
}

void fake_quantize_part(const Floats& weight, Span part, const WidthsAndRanges& given, bool past_cache,
                        const Floats& to) {
    const bool direct = to.dtype == DType::float32;
    for_each_grid(part, given, [&](Span span, const LevelGrid& grid) {
        float buffer[kBlock], result[kBlock];
        uint32_t levels[kBlock];
        kernels().quantize(load_floats(weight, span, buffer), span.count, grid, levels);
        kernels().dequantize(levels, span.count, grid, direct && past_cache,
                             place_for_floats(to, span, result));
        if (!direct) store_floats(result, to, span);
    });
    kernels().finish_writes();
}

}  // namespace

void quantize_part(const Floats& weight, Span part, const WidthsAndRanges& given, uint32_t* levels) {
    for_each_grid(part, given, [&](Span span, const LevelGrid& grid) {
        float buffer[kBlock];
        kernels().quantize(load_floats(weight, span, buffer), span.count, grid, levels + span.begin);
    });
}

void dequantize_part(const uint32_t* levels, Span part, const WidthsAndRanges& given, const Floats& weight) {
    for_each_grid(part, given, [&](Span span, const LevelGrid& grid) {
        float result[kBlock];
        kernels().dequantize(levels + span.begin, span.count, grid, false, result);
        store_floats(result, weight, span);
    });
}

void quantize(const std::vector<Floats>& weights, const AllWidthsAndRanges& given,
              const std::vector<uint32_t*>& levels, int threads) {
    for (size_t i = 0; i < weights.size(); ++i)
        expect_writes(levels[i], weights[i].count * int64_t{sizeof(uint32_t)});
    for_each_part(weights, given, threads, [&](size_t i, Span part, const WidthsAndRanges& of_weight) {
        quantize_part(weights[i], part, of_weight, levels[i]);
    });
}

void dequantize(const std::vector<const uint32_t*>& levels, const AllWidthsAndRanges& given,
                const std::vector<Floats>& weights, int threads) {
    for (const Floats& weight : weights) expect_writes(weight.data, weight.bytes());
    for_each_part(weights, given, threads, [&](size_t i, Span part, const WidthsAndRanges& of_weight) {
        dequantize_part(levels[i], part, of_weight, weights[i]);
    });
}

void fake_quantize(const std::vector<Floats>& weights, const AllWidthsAndRanges& given,
                   const std::vector<Floats>& results, int threads) {
    for (const Floats& result : results) expect_writes(result.data, result.bytes());
    const bool past_cache = goes_past_cache(total_count(weights));
    for_each_part(weights, given, threads, [&](size_t i, Span part, const WidthsAndRanges& of_weight) {
        fake_quantize_part(weights[i], part, of_weight, past_cache, results[i]);
    });
}

}  // namespace diffq_fast
