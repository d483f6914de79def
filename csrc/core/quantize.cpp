#include "core/quantize.h"

#include "core/memory.h"
#include "core/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kBlock = 1024;

// Per element of a block: its group's smallest weight, length of range, step and highest level.
struct Elements {
    float lo[kBlock], length[kBlock], step[kBlock], top[kBlock];

    void fill(int64_t first, int64_t count, const uint8_t* widths, const float* range, int64_t group_size,
              bool per_group) {
        float values[kBlock];
        const int64_t group = group_of(first, group_size), groups = groups_touched(first, count, group_size);
        for (int64_t g = 0; g < groups; ++g) values[g] = level_step(widths[group + g]);
        spread(values, first, count, group_size, step);
        for (int64_t g = 0; g < groups; ++g) values[g] = top_level(widths[group + g]);
        spread(values, first, count, group_size, top);
        if (!per_group) return;
        const float* rows = range + 2 * group;
        for (int64_t g = 0; g < groups; ++g) values[g] = rows[2 * g];
        spread(values, first, count, group_size, lo);
        for (int64_t g = 0; g < groups; ++g) values[g] = rows[2 * g + 1] - rows[2 * g];
        spread(values, first, count, group_size, length);
    }
};

// Calls body(weight index, its range, first element, count) for blocks of all weights, in parallel.
template <typename Body>
void for_each_block(const std::vector<Floats>& weights, const float* range, int64_t group_size,
                    bool per_group, int threads, Body&& body) {
    constexpr int64_t kTask = 16 * kBlock;
    std::vector<const float*> ranges;
    TaskTable table;
    for (const Floats& weight : weights) {
        table.append((weight.count + kTask - 1) / kTask);
        ranges.push_back(range);
        range += 2 * (per_group ? group_count(weight.count, group_size) : 1);
    }
    parallel_for(table.tasks(), threads_for(total_count(weights), threads), [&](int64_t task) {
        const auto place = table.find(task);
        const int64_t end = std::min(weights[place.list].count, (place.piece + 1) * kTask);
        for (int64_t first = place.piece * kTask; first < end; first += kBlock) {
            body(place.list, ranges[place.list], first, std::min(kBlock, end - first));
        }
    });
}

}  // namespace

void quantize(const std::vector<Floats>& weights, const std::vector<const uint8_t*>& widths,
              const float* range, int64_t group_size, bool per_group, const std::vector<uint32_t*>& levels,
              int threads) {
    for (size_t i = 0; i < weights.size(); ++i) expect_writes(levels[i], weights[i].count * 4);
    for_each_block(weights, range, group_size, per_group, threads,
                   [&](size_t i, const float* bounds, int64_t first, int64_t count) {
                       Elements elements;
                       float buffer[kBlock];
                       elements.fill(first, count, widths[i], bounds, group_size, per_group);
                       const float* values =
                           load_floats(weights[i].data, weights[i].dtype, first, count, buffer);
                       const float *step = elements.step, *top = elements.top;
                       if (per_group) {
                           const float *lo = elements.lo, *length = elements.length;
                           quantize_block(values, count, lo, length, step, top, levels[i] + first);
                       } else {
                           const Same lo{bounds[0]}, length{bounds[1] - bounds[0]};
                           quantize_block(values, count, lo, length, step, top, levels[i] + first);
                       }
                   });
}

void dequantize(const std::vector<const uint32_t*>& levels, const std::vector<const uint8_t*>& widths,
                const float* range, int64_t group_size, bool per_group, const std::vector<Floats>& weights,
                int threads) {
    for (const Floats& weight : weights) expect_writes(weight.data, weight.count * item_size(weight.dtype));
    for_each_block(weights, range, group_size, per_group, threads,
                   [&](size_t i, const float* bounds, int64_t first, int64_t count) {
                       Elements elements;
                       float result[kBlock];
                       elements.fill(first, count, widths[i], bounds, group_size, per_group);
                       const float* step = elements.step;
                       if (per_group) {
                           const float *lo = elements.lo, *length = elements.length;
                           dequantize_block(levels[i] + first, count, lo, length, step, result);
                       } else {
                           const Same lo{bounds[0]}, length{bounds[1] - bounds[0]};
                           dequantize_block(levels[i] + first, count, lo, length, step, result);
                       }
                       store_floats(result, weights[i].data, weights[i].dtype, first, count);
                   });
}

}  // namespace diffq_fast
