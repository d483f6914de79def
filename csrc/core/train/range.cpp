#include "core/train/range.h"

#include <algorithm>
#include <limits>

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kBlock = 4096;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Bounds kNothing{kInfinity, -kInfinity, false};

void include(Bounds& bounds, const Bounds& other) {
    bounds.lo = other.lo < bounds.lo ? other.lo : bounds.lo;
    bounds.hi = other.hi > bounds.hi ? other.hi : bounds.hi;
    bounds.nan |= other.nan;
}

void store_bounds(const Bounds& bounds, float* row) {
    row[0] = bounds.nan ? std::numeric_limits<float>::quiet_NaN() : bounds.lo;
    row[1] = bounds.nan ? std::numeric_limits<float>::quiet_NaN() : bounds.hi;
}

// Where a value occurs, in element order.
struct Ties {
    int64_t first = 0, count = 0;

    void look(const float* values, int64_t size, int64_t offset, float value) {
        if (count == 0) first = offset + (std::find(values, values + size, value) - values);
        for (int64_t i = 0; i < size; ++i) count += values[i] == value ? 1 : 0;
    }

    void append(const Ties& later) {
        if (count == 0) first = later.first;
        count += later.count;
    }
};

struct Extremes {
    Ties lo, hi;
};

// Of one weight: the bounds of its blocks, then of all of it, then where its extremes are, chunk by chunk.
struct Search {
    std::vector<Bounds> blocks;
    Bounds bounds = kNothing;
    std::vector<Extremes> chunks;

    explicit Search(const Floats& weight, const ChunkGrid& grid)
        : blocks(static_cast<size_t>((weight.count + kBlock - 1) / kBlock)),
          chunks(static_cast<size_t>(grid.chunks())) {}
};

void find_blocks(const Floats& weight, const Chunk& chunk, Search& search) {
    float buffer[kBlock];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
        const int64_t size = std::min(kBlock, chunk.end - begin);
        const float* values = load_floats(weight.data, weight.dtype, begin, size, buffer);
        search.blocks[static_cast<size_t>(begin / kBlock)] = kernels().find_bounds(values, size);
    }
}

// Reads only blocks with an extreme again.
Extremes find_extremes(const Floats& weight, const Chunk& chunk, const Search& search) {
    Extremes found;
    float buffer[kBlock];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
        const Bounds& block = search.blocks[static_cast<size_t>(begin / kBlock)];
        const bool has_lo = block.lo == search.bounds.lo, has_hi = block.hi == search.bounds.hi;
        if (!has_lo && !has_hi) continue;
        const int64_t size = std::min(kBlock, chunk.end - begin);
        const float* values = load_floats(weight.data, weight.dtype, begin, size, buffer);
        if (has_lo) found.lo.look(values, size, begin, search.bounds.lo);
        if (has_hi) found.hi.look(values, size, begin, search.bounds.hi);
    }
    return found;
}

// An empty weight gives zeros.
void store_extremes(const Search& search, float* row, int64_t* places) {
    Extremes all;
    if (!search.bounds.nan) {
        for (const Extremes& chunk : search.chunks) {
            all.lo.append(chunk.lo);
            all.hi.append(chunk.hi);
        }
    }
    if (search.blocks.empty()) {
        row[0] = row[1] = 0;
    } else {
        store_bounds(search.bounds, row);
    }
    places[0] = all.lo.first;
    places[1] = all.hi.first;
    places[2] = all.lo.count;
    places[3] = all.hi.count;
}

void range_per_weight(const std::vector<Floats>& weights, float* range, int64_t* extremes, int threads) {
    std::vector<ChunkGrid> grids;
    std::vector<Search> searches;
    TaskTable table;
    for (const Floats& weight : weights) {
        grids.emplace_back(weight.count, 0);
        searches.emplace_back(weight, grids.back());
        table.append(grids.back().chunks());
    }
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.find(task);
        find_blocks(weights[place.list], grids[place.list].at(place.piece), searches[place.list]);
    });
    for (Search& search : searches) {
        for (const Bounds& block : search.blocks) include(search.bounds, block);
    }
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.find(task);
        Search& search = searches[place.list];
        if (search.bounds.nan) return;
        search.chunks[static_cast<size_t>(place.piece)] =
            find_extremes(weights[place.list], grids[place.list].at(place.piece), search);
    });
    for (size_t i = 0; i < weights.size(); ++i) store_extremes(searches[i], range + 2 * i, extremes + 4 * i);
}

// Rows of the groups of one chunk; groups may cross the blocks in which elements are loaded.
void range_of_groups(const Floats& weight, const Chunk& chunk, int64_t group_size, float* rows) {
    float buffer[kBlock];
    Bounds open = kNothing;
    int64_t open_group = chunk.first_group;
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
        const int64_t size = std::min(kBlock, chunk.end - begin);
        const float* values = load_floats(weight.data, weight.dtype, begin, size, buffer);
        const int64_t block_group = group_of(begin, group_size);
        for_each_segment(begin, size, group_size, [&](int64_t group, int64_t first, int64_t last) {
            if (block_group + group != open_group) {
                store_bounds(open, rows + 2 * open_group);
                open = kNothing;
                open_group = block_group + group;
            }
            include(open, kernels().find_bounds(values + first, last - first));
        });
    }
    store_bounds(open, rows + 2 * open_group);
}

Bounds bounds_of_chunk(const Floats& weight, const Chunk& chunk) {
    float buffer[kBlock];
    Bounds found = kNothing;
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
        const int64_t size = std::min(kBlock, chunk.end - begin);
        const float* values = load_floats(weight.data, weight.dtype, begin, size, buffer);
        include(found, kernels().find_bounds(values, size));
    }
    return found;
}

void range_per_group(const std::vector<Floats>& weights, int64_t group_size, float* range, int threads) {
    std::vector<ChunkGrid> grids;
    std::vector<float*> rows;
    TaskTable table;
    for (const Floats& weight : weights) {
        grids.emplace_back(weight.count, group_size);
        table.append(grids.back().chunks());
        rows.push_back(range);
        range += 2 * group_count(weight.count, group_size);
    }
    std::vector<Bounds> parts(static_cast<size_t>(table.tasks()));
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.find(task);
        const Floats& weight = weights[place.list];
        const Chunk chunk = grids[place.list].at(place.piece);
        if (grids[place.list].pieces() == 0) {
            range_of_groups(weight, chunk, group_size, rows[place.list]);
        } else {
            parts[static_cast<size_t>(task)] = bounds_of_chunk(weight, chunk);
        }
    });
    for (size_t i = 0; i < weights.size(); ++i) {
        const int64_t pieces = grids[i].pieces();
        if (pieces == 0) continue;
        for (int64_t chunk = 0; chunk < grids[i].chunks(); chunk += pieces) {
            Bounds found = kNothing;
            for (int64_t piece = chunk; piece < std::min(chunk + pieces, grids[i].chunks()); ++piece) {
                include(found, parts[static_cast<size_t>(table.start(i) + piece)]);
            }
            store_bounds(found, rows[i] + 2 * (chunk / pieces));
        }
    }
}

}  // namespace

void weight_range(const std::vector<Floats>& weights, int64_t group_size, bool per_group, float* range,
                  int64_t* extremes, int threads) {
    threads = threads_for(total_count(weights), threads);
    if (per_group) {
        range_per_group(weights, group_size, range, threads);
    } else {
        range_per_weight(weights, range, extremes, threads);
    }
}

}  // namespace diffq_fast
