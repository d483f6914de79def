#include "core/pack/quantize.h"

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kBlock = 1024;

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
    LevelRule fill(int64_t first, int64_t count, const uint8_t* widths, const float* range,
                   int64_t group_size, bool per_group) {
        const int64_t group = group_of(first, group_size), groups = groups_touched(first, count, group_size);
        const bool one_width = std::all_of(widths + group, widths + group + groups,
                                           [&](uint8_t width) { return width == widths[group]; });
        if (one_width && (groups == 1 || !per_group)) {
            return level_rule(range + (per_group ? 2 * group : 0), widths[group]);
        }
        LevelRule rule = level_rule(range, widths[group]);
        const auto spread_all = [&](auto&& value_of, float* elements) {
            float values[kBlock];
            for (int64_t g = 0; g < groups; ++g) values[g] = value_of(group + g);
            spread(values, first, count, group_size, elements);
            return elements;
        };
        static const WidthTable table;
        rule.steps = spread_all([&](int64_t g) { return table.step[widths[g]]; }, steps_);
        rule.inverses = spread_all([&](int64_t g) { return table.inverse[widths[g]]; }, inverses_);
        rule.tops = spread_all([&](int64_t g) { return table.top[widths[g]]; }, tops_);
        if (!per_group) return rule;
        rule.los = spread_all([&](int64_t g) { return range[2 * g]; }, los_);
        rule.lengths = spread_all([&](int64_t g) { return range[2 * g + 1] - range[2 * g]; }, lengths_);
        return rule;
    }

  private:
    float los_[kBlock], lengths_[kBlock], steps_[kBlock], inverses_[kBlock], tops_[kBlock];
};

// Calls body(weight index, its range, first element, count) for parts of all weights, in parallel.
template <typename Body>
void for_each_part(const std::vector<Floats>& weights, const float* range, int64_t group_size, bool per_group,
                   int threads, Body&& body) {
    constexpr int64_t kPart = 16 * kBlock;
    std::vector<const float*> ranges;
    TaskTable table;
    for (const Floats& weight : weights) {
        table.append((weight.count + kPart - 1) / kPart);
        ranges.push_back(range);
        range += 2 * (per_group ? group_count(weight.count, group_size) : 1);
    }
    parallel_for(table.tasks(), threads_for(total_count(weights), threads), [&](int64_t task) {
        const auto place = table.find(task);
        const int64_t first = place.piece * kPart;
        body(place.list, ranges[place.list], first, std::min(kPart, weights[place.list].count - first));
    });
}

void fake_quantize_part(const Floats& weight, int64_t first, int64_t count, const uint8_t* widths,
                        const float* range, int64_t group_size, bool per_group, bool past_cache,
                        const Floats& to) {
    const bool direct = to.dtype == DType::float32;
    for (const int64_t end = first + count; first < end; first += kBlock) {
        const int64_t size = std::min(kBlock, end - first);
        Elements elements;
        const LevelRule rule = elements.fill(first, size, widths, range, group_size, per_group);
        float buffer[kBlock], result[kBlock];
        uint32_t levels[kBlock];
        kernels().quantize(load_floats(weight.data, weight.dtype, first, size, buffer), size, rule, levels);
        float* out = direct ? static_cast<float*>(to.data) + first : result;
        kernels().dequantize(levels, size, rule, direct && past_cache, out);
        if (!direct) store_floats(result, to.data, to.dtype, first, size);
    }
    kernels().finish_writes();
}

}  // namespace

void quantize_part(const Floats& weight, int64_t first, int64_t count, const uint8_t* widths,
                   const float* range, int64_t group_size, bool per_group, uint32_t* levels) {
    for (const int64_t end = first + count; first < end; first += kBlock) {
        const int64_t size = std::min(kBlock, end - first);
        Elements elements;
        const LevelRule rule = elements.fill(first, size, widths, range, group_size, per_group);
        float buffer[kBlock];
        const float* values = load_floats(weight.data, weight.dtype, first, size, buffer);
        kernels().quantize(values, size, rule, levels + first);
    }
}

void dequantize_part(const uint32_t* levels, int64_t first, int64_t count, const uint8_t* widths,
                     const float* range, int64_t group_size, bool per_group, const Floats& weight) {
    for (const int64_t end = first + count; first < end; first += kBlock) {
        const int64_t size = std::min(kBlock, end - first);
        Elements elements;
        const LevelRule rule = elements.fill(first, size, widths, range, group_size, per_group);
        float result[kBlock];
        kernels().dequantize(levels + first, size, rule, false, result);
        store_floats(result, weight.data, weight.dtype, first, size);
    }
}

void quantize(const std::vector<Floats>& weights, const std::vector<const uint8_t*>& widths,
              const float* range, int64_t group_size, bool per_group, const std::vector<uint32_t*>& levels,
              int threads) {
    for (size_t i = 0; i < weights.size(); ++i) expect_writes(levels[i], weights[i].count * 4);
    for_each_part(weights, range, group_size, per_group, threads,
                  [&](size_t i, const float* bounds, int64_t first, int64_t count) {
                      quantize_part(weights[i], first, count, widths[i], bounds, group_size, per_group,
                                    levels[i]);
                  });
}

void dequantize(const std::vector<const uint32_t*>& levels, const std::vector<const uint8_t*>& widths,
                const float* range, int64_t group_size, bool per_group, const std::vector<Floats>& weights,
                int threads) {
    for (const Floats& weight : weights) expect_writes(weight.data, weight.count * item_size(weight.dtype));
    for_each_part(weights, range, group_size, per_group, threads,
                  [&](size_t i, const float* bounds, int64_t first, int64_t count) {
                      dequantize_part(levels[i], first, count, widths[i], bounds, group_size, per_group,
                                      weights[i]);
                  });
}

void fake_quantize(const std::vector<Floats>& weights, const std::vector<const uint8_t*>& widths,
                   const float* range, int64_t group_size, bool per_group, const std::vector<Floats>& results,
                   int threads) {
    for (const Floats& result : results) expect_writes(result.data, result.count * item_size(result.dtype));
    const bool past_cache = goes_past_cache(total_count(weights));
    for_each_part(weights, range, group_size, per_group, threads,
                  [&](size_t i, const float* bounds, int64_t first, int64_t count) {
                      fake_quantize_part(weights[i], first, count, widths[i], bounds, group_size, per_group,
                                         past_cache, results[i]);
                  });
}

}  // namespace diffq_fast
