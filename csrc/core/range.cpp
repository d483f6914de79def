#include "core/range.h"

#include <cmath>
#include <limits>

#include "core/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Bounds {
    float lo = kInfinity, hi = -kInfinity;
    bool nan = false;

    void include(const Bounds& other) {
        lo = other.lo < lo ? other.lo : lo;
        hi = other.hi > hi ? other.hi : hi;
        nan |= other.nan;
    }

    void store(float* row) const {
        row[0] = nan ? std::numeric_limits<float>::quiet_NaN() : lo;
        row[1] = nan ? std::numeric_limits<float>::quiet_NaN() : hi;
    }
};

// Comparisons with a NaN are false, so it never gets into lo or hi, but is remembered.
Bounds bounds_of(const float* values, int64_t count) {
    Bounds found;
    int64_t i = 0;
    if (count >= kLanes) {
        float lo[kLanes], hi[kLanes];
        uint32_t nan[kLanes] = {};
        std::fill(lo, lo + kLanes, kInfinity);
        std::fill(hi, hi + kLanes, -kInfinity);
        for (; i + kLanes <= count; i += kLanes) {
            for (int lane = 0; lane < kLanes; ++lane) {
                const float value = values[i + lane];
                lo[lane] = value < lo[lane] ? value : lo[lane];
                hi[lane] = value > hi[lane] ? value : hi[lane];
                nan[lane] |= mask_of(value != value);
            }
        }
        for (int lane = 0; lane < kLanes; ++lane) {
            Bounds part;
            part.lo = lo[lane];
            part.hi = hi[lane];
            part.nan = nan[lane] != 0;
            found.include(part);
        }
    }
    for (; i < count; ++i) {
        found.lo = values[i] < found.lo ? values[i] : found.lo;
        found.hi = values[i] > found.hi ? values[i] : found.hi;
        found.nan |= values[i] != values[i];
    }
    return found;
}

// One end of the range, with its place and its ties.
struct Extreme {
    float value = 0;
    int64_t first = 0, count = 0;

    // `values` may hold `candidate`; `better` says whether it replaces what was found before them.
    void look(const float* values, int64_t size, int64_t offset, float candidate, bool better) {
        if (!better && count > 0 && candidate != value) return;
        if (better || count == 0) *this = {candidate, 0, 0};
        for (int64_t i = 0; i < size; ++i) {
            if (values[i] != candidate) continue;
            if (count == 0) first = offset + i;
            ++count;
        }
    }

    void merge(const Extreme& later, bool better) {
        if (later.count == 0) return;
        if (better || count == 0) {
            *this = later;
        } else if (later.value == value) {
            count += later.count;
        }
    }
};

struct Extremes {
    Extreme lo, hi;
    bool nan = false;

    void merge(const Extremes& later) {
        lo.merge(later.lo, later.lo.value < lo.value);
        hi.merge(later.hi, later.hi.value > hi.value);
        nan |= later.nan;
    }
};

Extremes extremes_of(const Floats& weight, const Chunk& chunk) {
    Extremes found;
    float buffer[kBlock];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
        const int64_t size = std::min(kBlock, chunk.end - begin);
        const float* values = load_floats(weight.data, weight.dtype, begin, size, buffer);
        const Bounds bounds = bounds_of(values, size);
        found.nan |= bounds.nan;
        found.lo.look(values, size, begin, bounds.lo, bounds.lo < found.lo.value);
        found.hi.look(values, size, begin, bounds.hi, bounds.hi > found.hi.value);
    }
    return found;
}

void store_extremes(const Extremes& found, float* row, int64_t* places) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    row[0] = found.nan ? nan : found.lo.value;
    row[1] = found.nan ? nan : found.hi.value;
    places[0] = found.nan ? 0 : found.lo.first;
    places[1] = found.nan ? 0 : found.hi.first;
    places[2] = found.nan ? 0 : found.lo.count;
    places[3] = found.nan ? 0 : found.hi.count;
}

void range_per_weight(const std::vector<Floats>& weights, float* range, int64_t* extremes, int threads) {
    std::vector<ChunkGrid> grids;
    TaskTable table;
    for (const Floats& weight : weights) {
        grids.emplace_back(weight.count, 0);
        table.append(grids.back().chunks());
    }
    std::vector<Extremes> parts(static_cast<size_t>(table.tasks()));
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.find(task);
        parts[static_cast<size_t>(task)] =
            extremes_of(weights[place.list], grids[place.list].at(place.piece));
    });
    for (size_t i = 0; i < weights.size(); ++i) {
        Extremes found;
        for (int64_t task = table.start(i); task < table.start(i + 1); ++task) {
            found.merge(parts[static_cast<size_t>(task)]);
        }
        store_extremes(found, range + 2 * i, extremes + 4 * i);
    }
}

// Rows of the groups of one chunk; groups may cross the blocks in which elements are loaded.
void range_of_groups(const Floats& weight, const Chunk& chunk, int64_t group_size, float* rows) {
    float buffer[kBlock];
    Bounds open;
    int64_t open_group = chunk.first_group;
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
        const int64_t size = std::min(kBlock, chunk.end - begin);
        const float* values = load_floats(weight.data, weight.dtype, begin, size, buffer);
        const int64_t block_group = group_of(begin, group_size);
        for_each_segment(begin, size, group_size, [&](int64_t group, int64_t first, int64_t last) {
            if (block_group + group != open_group) {
                open.store(rows + 2 * open_group);
                open = Bounds();
                open_group = block_group + group;
            }
            open.include(bounds_of(values + first, last - first));
        });
    }
    open.store(rows + 2 * open_group);
}

Bounds bounds_of_chunk(const Floats& weight, const Chunk& chunk) {
    float buffer[kBlock];
    Bounds found;
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
        const int64_t size = std::min(kBlock, chunk.end - begin);
        found.include(bounds_of(load_floats(weight.data, weight.dtype, begin, size, buffer), size));
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
            Bounds found;
            for (int64_t piece = chunk; piece < std::min(chunk + pieces, grids[i].chunks()); ++piece) {
                found.include(parts[static_cast<size_t>(table.start(i) + piece)]);
            }
            found.store(rows[i] + 2 * (chunk / pieces));
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
