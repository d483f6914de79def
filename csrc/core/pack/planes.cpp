#include "core/pack/planes.h"

#include <algorithm>
#include <atomic>

#include "core/runtime/dispatch.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

// Calls body(tile) for tiles of columns, several to a task.
template <typename Body>
void for_each_tile(const PlaneShape& shape, int threads, Body&& body) {
    if (shape.count == 0) return;  // no memory bounds the columns then
    const int64_t block_size = shape.rows * shape.columns;
    if (block_size == 0) return;
    const int64_t blocks = shape.count / block_size + (shape.count % block_size != 0);
    const int64_t tiles = (shape.columns + kTileColumns - 1) / kTileColumns;
    const int64_t per_task = std::max<int64_t>(1, kTaskElements / (shape.rows * kTileColumns));
    const int64_t total = blocks * tiles;
    parallel_for((total + per_task - 1) / per_task, threads_for(shape.count, threads), [&](int64_t task) {
        for (int64_t tile = task * per_task; tile < std::min(total, (task + 1) * per_task); ++tile) {
            const int64_t column = tile % tiles * kTileColumns,
                          columns = std::min(kTileColumns, shape.columns - column);
            body(
                PlaneTile{shape.count, shape.bits, shape.rows, shape.columns, tile / tiles, column, columns});
        }
    });
}

}  // namespace

uint64_t pack_planes(const PlaneShape& shape, const void* values, int value_bytes, void* planes,
                     int threads) {
    if (shape.bits == 0) return 0;
    std::atomic<uint64_t> seen{0};
    for_each_tile(shape, threads, [&](const PlaneTile& tile) {
        const uint64_t joined = kernels().pack_planes(tile, values, value_bytes, planes);
        // Written only where it adds a bit, so that threads seldom take the line from one another.
        if ((joined & ~seen.load(std::memory_order_relaxed)) != 0)
            seen.fetch_or(joined, std::memory_order_relaxed);
    });
    return seen.load();
}

void unpack_planes(const PlaneShape& shape, const void* planes, int16_t* values, int threads) {
    if (shape.bits == 0) {  // no planes to point at
        std::fill(values, values + shape.count, int16_t{0});
        return;
    }
    expect_writes(values, shape.count * int64_t{sizeof(int16_t)});
    for_each_tile(shape, threads,
                  [&](const PlaneTile& tile) { kernels().unpack_planes(tile, planes, values); });
}

}  // namespace diffq_fast
