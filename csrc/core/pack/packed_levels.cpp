#include "core/pack/packed_levels.h"

#include <optional>

#include "core/pack/quantize.h"
#include "core/pack/sorted_blocks.h"
#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

// The block of the planes that diffq exports: 64 rows of 32 columns.
constexpr int kPlaneRows = 64;
constexpr int64_t kPlaneColumns = kTileColumns, kPlaneBlock = kPlaneRows * kPlaneColumns;

constexpr int64_t kBlocksPerTask = 16;

// Calls body(block) for every block of a weight whose groups have one width, in parallel: there the stream is
// the weight itself.
template <int64_t kSize = kPackBlock, typename Body>
void for_each_block(const Streams& streams, int threads, Body&& body) {
    for (const Stream& stream : streams.streams()) {
        const int64_t blocks = (stream.levels + kSize - 1) / kSize;
        parallel_for((blocks + kBlocksPerTask - 1) / kBlocksPerTask, threads, [&](int64_t task) {
            const int64_t end = std::min(blocks, (task + 1) * kBlocksPerTask);
            for (int64_t i = task * kBlocksPerTask; i < end; ++i) body(block_at(stream, i * kSize, kSize));
            kernels().finish_writes();
        });
    }
}

// The levels of a block in one range.
LevelGrid grid_of(const Block& block, const float* range) {
    return level_grid(range, static_cast<uint8_t>(block.stream.width));
}

// The smallest weights and lengths of range of a block's levels, where each group has a range.
template <int64_t kSize>
class GroupRanges {
  public:
    LevelGrid fill(const Block& block, const float* ranges, const Grouping& grouping) {
        LevelGrid grid = grid_of(block, ranges);
        if (!grouping.per_group) return grid;
        const int64_t first_group = group_of(block.span.begin, grouping.group_size);
        for_each_segment(block.span, grouping.group_size, [&](int64_t group, int64_t begin, int64_t end) {
            const float* range = grouping.range_of(ranges, first_group + group);
            std::fill(los_ + begin, los_ + end, range[0]);
            std::fill(lengths_ + begin, lengths_ + end, range[1] - range[0]);
        });
        grid.los = los_;
        grid.lengths = lengths_;
        return grid;
    }

  private:
    float los_[kSize], lengths_[kSize];
};

// Rows past the end of the stream hold 0.
void pack_padded(const Block& block, uint32_t* levels, uint32_t* words) {
    std::fill(levels + block.count(), levels + block.lanes() * kBlockRows, 0);
    kernels().pack_words(block.stream.width, levels, block.lanes(), words + block.word());
}

bool fits(const Streams& streams, const Packing& packing) {
    return streams.valid() && streams.words() == packing.word_count;
}

// Calls finish(block, levels) with the levels of every block of every stream; groups may have any widths.
template <int64_t kSize, typename Finish>
void quantize_sorted(const Streams& streams, const Packing& packing, const Floats& weight,
                     const float* ranges, bool per_group, Finish&& finish) {
    const int threads = threads_for(packing.count, packing.threads);
    const auto quantize_floats = [&](const Block& block, const float* values) {
        uint32_t levels[kSize];
        kernels().quantize(values, block.count(), grid_of(block, ranges), levels);
        finish(block, levels);
    };
    const auto quantize_halves = [&](const Block& block, const uint16_t* halves) {
        float values[kSize];
        kernels().floats_from_halves(halves, weight.dtype, block.count(), values);
        quantize_floats(block, values);
    };
    if (per_group) {
        // Levels first, slice by slice: a block's come from groups with ranges of their own.
        const PooledBlock memory(packing.count * int64_t{sizeof(uint32_t)});
        uint32_t* const levels = static_cast<uint32_t*>(memory.data());
        sort_into_blocks<uint32_t, kSize>(
            streams, packing.widths, threads,
            [&](const Slice& slice) {
                quantize_part(weight, slice.span, {packing.widths, ranges, {packing.group_size, true}},
                              levels);
                return levels + slice.span.begin;
            },
            finish);
    } else if (weight.dtype == DType::float32) {
        const float* const values = static_cast<const float*>(weight.data);
        sort_into_blocks<float, kSize>(
            streams, packing.widths, threads, [&](const Slice& slice) { return values + slice.span.begin; },
            quantize_floats);
    } else {
        const uint16_t* const halves = static_cast<const uint16_t*>(weight.data);
        sort_into_blocks<uint16_t, kSize>(
            streams, packing.widths, threads, [&](const Slice& slice) { return halves + slice.span.begin; },
            quantize_halves);
    }
}

// The same where all groups have one width.
template <int64_t kSize, typename Finish>
void quantize_one_width(const Streams& streams, const Packing& packing, const Floats& weight,
                        const float* ranges, bool per_group, Finish&& finish) {
    for_each_block<kSize>(streams, threads_for(packing.count, packing.threads), [&](const Block& block) {
        float buffer[kSize];
        uint32_t levels[kSize];
        GroupRanges<kSize> of_groups;
        const LevelGrid grid = of_groups.fill(block, ranges, {packing.group_size, per_group});
        kernels().quantize(load_floats(weight, block.span, buffer), block.count(), grid, levels);
        finish(block, levels);
    });
}

// Where groups differ in width.
void dequantize_sorted(const Streams& streams, const Packing& packing, const uint32_t* words,
                       const float* ranges, bool per_group, const Floats& weight) {
    const int threads = threads_for(packing.count, packing.threads);
    const auto unpack_block = [&](const Block& block, uint32_t* levels) {
        kernels().unpack_words(block.stream.width, words + block.word(), block.lanes(), levels);
    };
    if (per_group) {
        // Levels first, in the memory of the weights where these are as large.
        const bool in_place = weight.dtype == DType::float32;
        std::optional<PooledBlock> memory;
        if (!in_place) memory.emplace(packing.count * int64_t{sizeof(uint32_t)});
        uint32_t* const levels = static_cast<uint32_t*>(in_place ? weight.data : memory->data());
        merge_from_blocks<uint32_t, kPackBlock>(
            streams, packing.widths, threads, unpack_block,
            [&](const Slice& slice) { return levels + slice.span.begin; },
            [&](const Slice& slice) {
                dequantize_part(levels, slice.span, {packing.widths, ranges, {packing.group_size, true}},
                                weight);
            });
        return;
    }
    const auto make_floats = [&](const Block& block, float* values) {
        uint32_t levels[kPackBlock];
        unpack_block(block, levels);
        kernels().dequantize(levels, block.count(), grid_of(block, ranges), false, values);
    };
    const auto make_halves = [&](const Block& block, uint16_t* halves) {
        float values[kPackBlock];
        make_floats(block, values);
        kernels().halves_from_floats(values, weight.dtype, block.count(), halves);
    };
    const auto nothing = [](const Slice&) {};
    if (weight.dtype == DType::float32) {
        float* const values = static_cast<float*>(weight.data);
        merge_from_blocks<float, kPackBlock>(
            streams, packing.widths, threads, make_floats,
            [&](const Slice& slice) { return values + slice.span.begin; }, nothing);
    } else {
        uint16_t* const halves = static_cast<uint16_t*>(weight.data);
        merge_from_blocks<uint16_t, kPackBlock>(
            streams, packing.widths, threads, make_halves,
            [&](const Slice& slice) { return halves + slice.span.begin; }, nothing);
    }
}

void dequantize_one_width(const Streams& streams, const Packing& packing, const uint32_t* words,
                          const float* ranges, bool per_group, const Floats& weight) {
    const bool direct = weight.dtype == DType::float32, past_cache = goes_past_cache(packing.count);
    for_each_block(streams, threads_for(packing.count, packing.threads), [&](const Block& block) {
        uint32_t levels[kPackBlock];
        float buffer[kPackBlock];
        kernels().unpack_words(block.stream.width, words + block.word(), block.lanes(), levels);
        GroupRanges<kPackBlock> of_groups;
        const LevelGrid grid = of_groups.fill(block, ranges, {packing.group_size, per_group});
        kernels().dequantize(levels, block.count(), grid, direct && past_cache,
                             place_for_floats(weight, block.span, buffer));
        if (!direct) store_floats(buffer, weight, block.span);
    });
}

}  // namespace

bool pack(const Packing& packing, const uint32_t* levels, uint32_t* words) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(words, packing.word_count * int64_t{sizeof(uint32_t)});
    const int threads = threads_for(packing.count, packing.threads);
    if (!streams.one_width()) {
        sort_into_blocks<uint32_t, kPackBlock>(
            streams, packing.widths, threads, [&](const Slice& slice) { return levels + slice.span.begin; },
            [&](const Block& block, uint32_t* sorted) { pack_padded(block, sorted, words); });
        return true;
    }
    for_each_block(streams, threads, [&](const Block& block) {
        if (block.count() == kPackBlock) {
            expect_next_block(levels + block.span.begin + kPackBlock);
            kernels().pack_words(block.stream.width, levels + block.span.begin, block.lanes(),
                                 words + block.word());
            return;
        }
        uint32_t last[kPackBlock];
        std::copy_n(levels + block.span.begin, block.count(), last);
        pack_padded(block, last, words);
    });
    return true;
}

bool unpack(const Packing& packing, const uint32_t* words, uint32_t* levels) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(levels, packing.count * int64_t{sizeof(uint32_t)});
    const int threads = threads_for(packing.count, packing.threads);
    const auto unpack_block = [&](const Block& block, uint32_t* unpacked) {
        kernels().unpack_words(block.stream.width, words + block.word(), block.lanes(), unpacked);
    };
    if (!streams.one_width()) {
        merge_from_blocks<uint32_t, kPackBlock>(
            streams, packing.widths, threads, unpack_block,
            [&](const Slice& slice) { return levels + slice.span.begin; }, [](const Slice&) {});
        return true;
    }
    for_each_block(streams, threads, [&](const Block& block) {
        if (block.count() == kPackBlock) return unpack_block(block, levels + block.span.begin);
        uint32_t last[kPackBlock];
        unpack_block(block, last);
        std::copy_n(last, block.count(), levels + block.span.begin);
    });
    return true;
}

bool quantize_pack(const Packing& packing, const Floats& weight, const float* ranges, bool per_group,
                   uint32_t* words) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(words, packing.word_count * int64_t{sizeof(uint32_t)});
    const auto pack_block = [&](const Block& block, uint32_t* levels) { pack_padded(block, levels, words); };
    if (streams.one_width()) {
        quantize_one_width<kPackBlock>(streams, packing, weight, ranges, per_group, pack_block);
    } else {
        quantize_sorted<kPackBlock>(streams, packing, weight, ranges, per_group, pack_block);
    }
    return true;
}

bool quantize_planes(const Packing& packing, const Floats& weight, const float* ranges,
                     const std::vector<int64_t>& level_counts, const std::vector<void*>& planes) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!streams.valid() || streams.level_counts() != level_counts) return false;
    const auto pack_block = [&](const Block& block, const uint32_t* levels) {
        const int width = block.stream.width;
        const PlaneTile tile{block.count(), width, kPlaneRows, kPlaneColumns, 0, 0, kPlaneColumns};
        uint64_t* to = static_cast<uint64_t*>(planes[static_cast<size_t>(width) - 1]);
        to += block.span.begin / kPlaneBlock * width * kPlaneColumns;
        kernels().pack_planes(tile, levels, sizeof levels[0], to);
    };
    if (streams.one_width()) {
        quantize_one_width<kPlaneBlock>(streams, packing, weight, ranges, false, pack_block);
    } else {
        quantize_sorted<kPlaneBlock>(streams, packing, weight, ranges, false, pack_block);
    }
    return true;
}

bool unpack_dequantize(const Packing& packing, const uint32_t* words, const float* ranges, bool per_group,
                       const Floats& weight) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(weight.data, weight.bytes());
    if (streams.one_width()) {
        dequantize_one_width(streams, packing, words, ranges, per_group, weight);
    } else {
        dequantize_sorted(streams, packing, words, ranges, per_group, weight);
    }
    return true;
}

}  // namespace diffq_fast
