#include "core/pack/packed_levels.h"

#include "core/pack/quantize.h"
#include "core/pack/sorted_blocks.h"
#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

// The block of diffq's bit planes: 64 rows of 32 columns.
constexpr int kPlaneRows = 64;
constexpr int64_t kPlaneColumns = 32, kPlaneBlock = kPlaneRows * kPlaneColumns;

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

// The smallest weights and lengths of range of a block's levels, where there is one row per group.
template <int64_t kSize>
class Ranges {
  public:
    LevelRule fill(const Block& block, const float* range, int64_t group_size, bool per_group) {
        LevelRule rule = level_rule(range, static_cast<uint8_t>(block.stream.width));
        if (!per_group) return rule;
        for_each_segment(block.first, block.count, group_size,
                         [&](int64_t group, int64_t begin, int64_t end) {
                             const float* row = range + 2 * (group_of(block.first, group_size) + group);
                             std::fill(los_ + begin, los_ + end, row[0]);
                             std::fill(lengths_ + begin, lengths_ + end, row[1] - row[0]);
                         });
        rule.los = los_;
        rule.lengths = lengths_;
        return rule;
    }

  private:
    float los_[kSize], lengths_[kSize];
};

// Rows past the end of the stream hold 0.
void pack_padded(const Block& block, uint32_t* levels, uint32_t* words) {
    std::fill(levels + block.count, levels + block.lanes() * kRows, 0);
    kernels().pack(block.stream.width, levels, block.lanes(), words + block.word());
}

bool fits(const Streams& streams, const Packing& packing) {
    return streams.valid() && streams.words() == packing.word_count;
}

// Calls finish(block, levels) with the levels of every block of every stream; groups may have any widths.
template <int64_t kSize, typename Finish>
void quantize_sorted(const Streams& streams, const Packing& packing, const Floats& weight, const float* range,
                     bool per_group, Finish&& finish) {
    const int threads = threads_for(packing.count, packing.threads);
    const auto quantize_floats = [&](const Block& block, const float* values) {
        uint32_t levels[kSize];
        const LevelRule rule = level_rule(range, static_cast<uint8_t>(block.stream.width));
        kernels().quantize(values, block.count, rule, levels);
        finish(block, levels);
    };
    const auto quantize_halves = [&](const Block& block, const uint16_t* halves) {
        float values[kSize];
        kernels().floats_from_halves(halves, weight.dtype, block.count, values);
        quantize_floats(block, values);
    };
    if (per_group) {
        // Levels first, slice by slice: a block's come from groups with ranges of their own.
        const PooledBlock memory(packing.count * 4);
        uint32_t* const levels = static_cast<uint32_t*>(memory.data());
        sort_into_blocks<uint32_t, kSize>(
            streams, packing.widths, threads,
            [&](const Slice& slice) {
                quantize_part(weight, slice.first, slice.count, packing.widths, range, packing.group_size,
                              true, levels);
                return levels + slice.first;
            },
            finish);
    } else if (weight.dtype == DType::float32) {
        const float* const values = static_cast<const float*>(weight.data);
        sort_into_blocks<float, kSize>(
            streams, packing.widths, threads, [&](const Slice& slice) { return values + slice.first; },
            quantize_floats);
    } else {
        const uint16_t* const halves = static_cast<const uint16_t*>(weight.data);
        sort_into_blocks<uint16_t, kSize>(
            streams, packing.widths, threads, [&](const Slice& slice) { return halves + slice.first; },
            quantize_halves);
    }
}

// The same where all groups have one width.
template <int64_t kSize, typename Finish>
void quantize_one_width(const Streams& streams, const Packing& packing, const Floats& weight,
                        const float* range, bool per_group, Finish&& finish) {
    for_each_block<kSize>(streams, threads_for(packing.count, packing.threads), [&](const Block& block) {
        float buffer[kSize];
        uint32_t levels[kSize];
        const float* values = load_floats(weight.data, weight.dtype, block.first, block.count, buffer);
        Ranges<kSize> ranges;
        kernels().quantize(values, block.count, ranges.fill(block, range, packing.group_size, per_group),
                           levels);
        finish(block, levels);
    });
}

// Where groups differ in width.
void dequantize_sorted(const Streams& streams, const Packing& packing, const uint32_t* words,
                       const float* range, bool per_group, const Floats& weight) {
    const int threads = threads_for(packing.count, packing.threads);
    const auto unpack_block = [&](const Block& block, uint32_t* levels) {
        kernels().unpack(block.stream.width, words + block.word(), block.lanes(), levels);
    };
    if (per_group) {
        // Levels first, in the memory of the weights where these are as large.
        const bool in_place = weight.dtype == DType::float32;
        const PooledBlock memory(in_place ? 0 : packing.count * 4);
        uint32_t* const levels = static_cast<uint32_t*>(in_place ? weight.data : memory.data());
        merge_from_blocks<uint32_t, kPackBlock>(
            streams, packing.widths, threads, unpack_block,
            [&](const Slice& slice) { return levels + slice.first; },
            [&](const Slice& slice) {
                dequantize_part(levels, slice.first, slice.count, packing.widths, range, packing.group_size,
                                true, weight);
            });
        return;
    }
    const auto make_floats = [&](const Block& block, float* values) {
        uint32_t levels[kPackBlock];
        unpack_block(block, levels);
        const LevelRule rule = level_rule(range, static_cast<uint8_t>(block.stream.width));
        kernels().dequantize(levels, block.count, rule, false, values);
    };
    const auto make_halves = [&](const Block& block, uint16_t* halves) {
        float values[kPackBlock];
        make_floats(block, values);
        store_floats(values, halves, weight.dtype, 0, block.count);
    };
    const auto nothing = [](const Slice&) {};
    if (weight.dtype == DType::float32) {
        float* const values = static_cast<float*>(weight.data);
        merge_from_blocks<float, kPackBlock>(
            streams, packing.widths, threads, make_floats,
            [&](const Slice& slice) { return values + slice.first; }, nothing);
    } else {
        uint16_t* const halves = static_cast<uint16_t*>(weight.data);
        merge_from_blocks<uint16_t, kPackBlock>(
            streams, packing.widths, threads, make_halves,
            [&](const Slice& slice) { return halves + slice.first; }, nothing);
    }
}

void dequantize_one_width(const Streams& streams, const Packing& packing, const uint32_t* words,
                          const float* range, bool per_group, const Floats& weight) {
    const bool past_cache = goes_past_cache(packing.count);
    for_each_block(streams, threads_for(packing.count, packing.threads), [&](const Block& block) {
        uint32_t levels[kPackBlock];
        float buffer[kPackBlock];
        kernels().unpack(block.stream.width, words + block.word(), block.lanes(), levels);
        Ranges<kPackBlock> ranges;
        const bool direct = weight.dtype == DType::float32;
        float* values = direct ? static_cast<float*>(weight.data) + block.first : buffer;
        kernels().dequantize(levels, block.count, ranges.fill(block, range, packing.group_size, per_group),
                             direct && past_cache, values);
        if (!direct) store_floats(values, weight.data, weight.dtype, block.first, block.count);
    });
}

}  // namespace

bool pack(const Packing& packing, const uint32_t* levels, uint32_t* words) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(words, packing.word_count * 4);
    const int threads = threads_for(packing.count, packing.threads);
    if (!streams.one_width()) {
        sort_into_blocks<uint32_t, kPackBlock>(
            streams, packing.widths, threads, [&](const Slice& slice) { return levels + slice.first; },
            [&](const Block& block, uint32_t* sorted) { pack_padded(block, sorted, words); });
        return true;
    }
    for_each_block(streams, threads, [&](const Block& block) {
        if (block.count == kPackBlock) {
            expect_next_block(levels + block.first + kPackBlock);
            kernels().pack(block.stream.width, levels + block.first, block.lanes(), words + block.word());
            return;
        }
        uint32_t last[kPackBlock];
        std::copy_n(levels + block.first, block.count, last);
        pack_padded(block, last, words);
    });
    return true;
}

bool unpack(const Packing& packing, const uint32_t* words, uint32_t* levels) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(levels, packing.count * 4);
    const int threads = threads_for(packing.count, packing.threads);
    const auto unpack_block = [&](const Block& block, uint32_t* unpacked) {
        kernels().unpack(block.stream.width, words + block.word(), block.lanes(), unpacked);
    };
    if (!streams.one_width()) {
        merge_from_blocks<uint32_t, kPackBlock>(
            streams, packing.widths, threads, unpack_block,
            [&](const Slice& slice) { return levels + slice.first; }, [](const Slice&) {});
        return true;
    }
    for_each_block(streams, threads, [&](const Block& block) {
        if (block.count == kPackBlock) return unpack_block(block, levels + block.first);
        uint32_t last[kPackBlock];
        unpack_block(block, last);
        std::copy_n(last, block.count, levels + block.first);
    });
    return true;
}

bool quantize_pack(const Packing& packing, const Floats& weight, const float* range, bool per_group,
                   uint32_t* words) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(words, packing.word_count * 4);
    const auto pack_block = [&](const Block& block, uint32_t* levels) { pack_padded(block, levels, words); };
    if (streams.one_width()) {
        quantize_one_width<kPackBlock>(streams, packing, weight, range, per_group, pack_block);
    } else {
        quantize_sorted<kPackBlock>(streams, packing, weight, range, per_group, pack_block);
    }
    return true;
}

bool quantize_planes(const Packing& packing, const Floats& weight, const float* range,
                     const std::vector<int64_t>& level_counts, const std::vector<void*>& planes) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!streams.valid() || streams.level_counts() != level_counts) return false;
    const auto pack_block = [&](const Block& block, const uint32_t* levels) {
        const int width = block.stream.width;
        const PlaneTile tile{block.count, width, kPlaneRows, kPlaneColumns, 0, 0, kPlaneColumns};
        uint64_t* words = static_cast<uint64_t*>(planes[static_cast<size_t>(width) - 1]);
        words += block.first / kPlaneBlock * width * kPlaneColumns;
        kernels().pack_planes(tile, levels, sizeof levels[0], words);
    };
    if (streams.one_width()) {
        quantize_one_width<kPlaneBlock>(streams, packing, weight, range, false, pack_block);
    } else {
        quantize_sorted<kPlaneBlock>(streams, packing, weight, range, false, pack_block);
    }
    return true;
}

bool unpack_dequantize(const Packing& packing, const uint32_t* words, const float* range, bool per_group,
                       const Floats& weight) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(weight.data, weight.count * item_size(weight.dtype));
    if (streams.one_width()) {
        dequantize_one_width(streams, packing, words, range, per_group, weight);
    } else {
        dequantize_sorted(streams, packing, words, range, per_group, weight);
    }
    return true;
}

}  // namespace diffq_fast
