#include "core/train/range.h"

#include <algorithm>
#include <limits>

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kRangeBlock = 4 * kBlock;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Range kNothing{kInfinity, -kInfinity, false};

void include(Range& range, const Range& part) {
    range.lo = part.lo < range.lo ? part.lo : range.lo;
    range.hi = part.hi > range.hi ? part.hi : range.hi;
    range.nan |= part.nan;
}

void store_range(const Range& range, float* lo_hi) {
    lo_hi[0] = range.nan ? std::numeric_limits<float>::quiet_NaN() : range.lo;
    lo_hi[1] = range.nan ? std::numeric_limits<float>::quiet_NaN() : range.hi;
}

// Calls body(span, values) for one block of the chunk after the other.
template <typename Body>
void for_each_range_block(const Floats& weight, const Chunk& chunk, Body&& body) {
    float buffer[kRangeBlock];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kRangeBlock) {
        const Span span{begin, std::min(kRangeBlock, chunk.end - begin)};
        body(span, load_floats(weight, span, buffer));
    }
}

// Where a value occurs, in element order.
struct Ties {
    int64_t place = 0, count = 0;

    void look(const float* values, Span span, float value) {
        if (count == 0) place = span.begin + (std::find(values, values + span.count, value) - values);
        for (int64_t i = 0; i < span.count; ++i) count += values[i] == value ? 1 : 0;
    }

    void append(const Ties& later) {
        if (count == 0) place = later.place;
        count += later.count;
    }
};

struct Extremes {
    Ties lo, hi;
};

// Of one weight: the ranges of its blocks, then of all of it, then where its extremes are, chunk by chunk.
struct Search {
    std::vector<Range> blocks;
    Range range = kNothing;
    std::vector<Extremes> chunks;

    explicit Search(const Floats& weight, const Chunks& cut)
        : blocks(static_cast<size_t>((weight.count + kRangeBlock - 1) / kRangeBlock)),
          chunks(static_cast<size_t>(cut.size())) {}

    Range& block_of(Span span) { return blocks[static_cast<size_t>(span.begin / kRangeBlock)]; }
    const Range& block_of(Span span) const { return blocks[static_cast<size_t>(span.begin / kRangeBlock)]; }
};

void find_blocks(const Floats& weight, const Chunk& chunk, Search& search) {
    for_each_range_block(weight, chunk, [&](Span span, const float* values) {
        search.block_of(span) = kernels().find_range(values, span.count);
    });
}

// Reads only blocks with an extreme again.
Extremes find_extremes(const Floats& weight, const Chunk& chunk, const Search& search) {
    Extremes extremes;
    float buffer[kRangeBlock];
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kRangeBlock) {
        const Span span{begin, std::min(kRangeBlock, chunk.end - begin)};
        const Range& block = search.block_of(span);
        const bool has_lo = block.lo == search.range.lo, has_hi = block.hi == search.range.hi;
        if (!has_lo && !has_hi) continue;
        const float* values = load_floats(weight, span, buffer);
        if (has_lo) extremes.lo.look(values, span, search.range.lo);
        if (has_hi) extremes.hi.look(values, span, search.range.hi);
    }
    return extremes;
}

// An empty weight gives zeros.
void store_search(const Search& search, float* lo_hi, int64_t* extremes) {
    Extremes all;
    if (!search.range.nan) {
        for (const Extremes& chunk : search.chunks) {
            all.lo.append(chunk.lo);
            all.hi.append(chunk.hi);
        }
    }
    if (search.blocks.empty()) {
        lo_hi[0] = lo_hi[1] = 0;
    } else {
        store_range(search.range, lo_hi);
    }
    extremes[0] = all.lo.place;
    extremes[1] = all.hi.place;
    extremes[2] = all.lo.count;
    extremes[3] = all.hi.count;
}

void range_per_weight(const std::vector<Floats>& weights, float* ranges, int64_t* extremes, int threads) {
    std::vector<Chunks> cuts;
    std::vector<Search> searches;
    TaskTable table;
    for (const Floats& weight : weights) {
        cuts.emplace_back(weight.count, 0);
        searches.emplace_back(weight, cuts.back());
        table.append(cuts.back().size());
    }
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.place_of(task);
        find_blocks(weights[place.weight], cuts[place.weight].at(place.piece), searches[place.weight]);
    });
    for (Search& search : searches) {
        for (const Range& block : search.blocks) include(search.range, block);
    }
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.place_of(task);
        Search& search = searches[place.weight];
        if (search.range.nan) return;
        search.chunks[static_cast<size_t>(place.piece)] =
            find_extremes(weights[place.weight], cuts[place.weight].at(place.piece), search);
    });
    for (size_t i = 0; i < weights.size(); ++i) store_search(searches[i], ranges + 2 * i, extremes + 4 * i);
}

// The ranges of one chunk's groups, which may cross the blocks in which elements are loaded.
void range_of_groups(const Floats& weight, const Chunk& chunk, int64_t group_size, float* ranges) {
    Range open = kNothing;
    int64_t open_group = chunk.first_group;
    for_each_range_block(weight, chunk, [&](Span span, const float* values) {
        const int64_t block_group = group_of(span.begin, group_size);
        for_each_segment(span, group_size, [&](int64_t group, int64_t begin, int64_t end) {
            if (block_group + group != open_group) {
                store_range(open, ranges + 2 * open_group);
                open = kNothing;
                open_group = block_group + group;
            }
            include(open, kernels().find_range(values + begin, end - begin));
        });
    });
    store_range(open, ranges + 2 * open_group);
}

Range range_of_piece(const Floats& weight, const Chunk& chunk) {
    Range range = kNothing;
    for_each_range_block(weight, chunk, [&](Span span, const float* values) {
        include(range, kernels().find_range(values, span.count));
    });
    return range;
}

// The ranges of groups that were cut into pieces, from those of the pieces.
void join_pieces(const Chunks& cut, const Range* pieces, float* ranges) {
    for (int64_t begin = 0; begin < cut.size(); begin += cut.pieces(), ranges += 2) {
        Range range = kNothing;
        const int64_t end = std::min(begin + cut.pieces(), cut.size());
        for (int64_t piece = begin; piece < end; ++piece) include(range, pieces[piece]);
        store_range(range, ranges);
    }
}

void range_per_group(const std::vector<Floats>& weights, int64_t group_size, float* ranges, int threads) {
    std::vector<Chunks> cuts;
    std::vector<float*> ranges_of;
    TaskTable table;
    for (const Floats& weight : weights) {
        cuts.emplace_back(weight.count, group_size);
        table.append(cuts.back().size());
        ranges_of.push_back(ranges);
        ranges += 2 * group_count(weight.count, group_size);
    }
    std::vector<Range> pieces(static_cast<size_t>(table.tasks()));
    parallel_for(table.tasks(), threads, [&](int64_t task) {
        const auto place = table.place_of(task);
        const Floats& weight = weights[place.weight];
        const Chunk chunk = cuts[place.weight].at(place.piece);
        if (cuts[place.weight].pieces() == 0) {
            range_of_groups(weight, chunk, group_size, ranges_of[place.weight]);
        } else {
            pieces[static_cast<size_t>(task)] = range_of_piece(weight, chunk);
        }
    });
    for (size_t i = 0; i < weights.size(); ++i) {
        if (cuts[i].pieces() > 0) join_pieces(cuts[i], pieces.data() + table.start(i), ranges_of[i]);
    }
}

}  // namespace

void weight_range(const std::vector<Floats>& weights, const Grouping& grouping, float* ranges,
                  int64_t* extremes, int threads) {
    threads = threads_for(total_count(weights), threads);
    if (grouping.per_group) {
        range_per_group(weights, grouping.group_size, ranges, threads);
    } else {
        range_per_weight(weights, ranges, extremes, threads);
    }
}

}  // namespace diffq_fast
