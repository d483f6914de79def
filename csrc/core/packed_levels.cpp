#include "core/packed_levels.h"

#include "core/float_blocks.h"
#include "core/gather.h"
#include "core/memory.h"
#include "core/quantize.h"
#include "core/thread_pool.h"

namespace diffq_fast {
namespace {

// The block of diffq's bit planes: 64 rows of 32 columns.
constexpr int kPlaneRows = 64;
constexpr int64_t kPlaneColumns = 32, kPlaneBlock = kPlaneRows * kPlaneColumns;

// Consecutive blocks of a stream.
struct Unit {
    size_t stream;
    int64_t first;
};

// All units, in the order in which they begin in the weight: so all streams move through it together, and
// what one of them brought into the cache (a line often holds groups of several widths) serves the others.
std::vector<Unit> units_in_order(const Streams& streams, int64_t unit_size) {
    const std::vector<Stream>& all = streams.streams();
    const auto start = [&](const Unit& unit) {
        return streams.group(all[unit.stream].first_group + unit.first / streams.group_size());
    };
    std::vector<Unit> heads, ordered;
    std::vector<int64_t> starts;
    for (size_t i = 0; i < all.size(); ++i) {
        if (all[i].levels == 0) continue;
        heads.push_back({i, 0});
        starts.push_back(start(heads.back()));
    }
    while (!heads.empty()) {
        const auto next =
            static_cast<size_t>(std::min_element(starts.begin(), starts.end()) - starts.begin());
        ordered.push_back(heads[next]);
        heads[next].first += unit_size;
        if (heads[next].first < all[heads[next].stream].levels) {
            starts[next] = start(heads[next]);
        } else {
            heads.erase(heads.begin() + static_cast<int64_t>(next));
            starts.erase(starts.begin() + static_cast<int64_t>(next));
        }
    }
    return ordered;
}

// Calls body(block) for every block of kSize levels of every stream, in parallel.
template <int64_t kSize = kPackBlock, typename Body>
void for_each_block(const Streams& streams, int64_t count, int threads, Body&& body) {
    const int64_t unit_size = (streams.in_order() ? 16384 : 2048) / kSize * kSize;
    const std::vector<Unit> units = units_in_order(streams, unit_size);
    parallel_for(static_cast<int64_t>(units.size()), threads_for(count, threads), [&](int64_t task) {
        const Unit& unit = units[static_cast<size_t>(task)];
        const Stream& stream = streams.streams()[unit.stream];
        const int64_t end = std::min(stream.levels, unit.first + unit_size);
        for (int64_t first = unit.first; first < end; first += kSize) {
            body(Block{stream, first, std::min(kSize, end - first)});
        }
        kernels().finish_writes();
    });
}

// The block's weights as float32, in stream order: in `buffer`, or where they lie.
const float* gather_floats(const Streams& streams, const Block& block, const Floats& weight, float* buffer) {
    if (streams.in_order()) {
        const float* values = load_floats(weight.data, weight.dtype, block.first, block.count, buffer);
        return values;
    }
    if (weight.dtype == DType::float32) {
        gather(streams, block, static_cast<const float*>(weight.data), buffer);
        return buffer;
    }
    uint16_t halves[kPlaneBlock];
    gather(streams, block, static_cast<const uint16_t*>(weight.data), halves);
    kernels().floats_from_halves(halves, weight.dtype, block.count, buffer);
    return buffer;
}

void scatter_floats(const Streams& streams, const Block& block, const float* values, const Floats& weight) {
    if (weight.dtype == DType::float32) {
        scatter(streams, block, values, static_cast<float*>(weight.data));
        return;
    }
    uint16_t halves[kPackBlock];
    store_floats(values, halves, weight.dtype, 0, block.count);
    scatter(streams, block, halves, static_cast<uint16_t*>(weight.data));
}

// Each level's smallest weight and length of range, where there is one row per group.
class Ranges {
  public:
    LevelRule fill(const Streams& streams, const Block& block, const float* range, bool per_group) {
        LevelRule rule = level_rule(range, static_cast<uint8_t>(block.stream.width));
        if (!per_group) return rule;
        const int64_t group_size = streams.group_size();
        int64_t index = block.stream.first_group + block.first / group_size,
                inside = block.first % group_size;
        for (int64_t position = 0; position < block.count; ++index, inside = 0) {
            const int64_t end = std::min(block.count, position + group_size - inside);
            const float* row = range + 2 * streams.group(index);
            for (; position < end; ++position) {
                los_[position] = row[0];
                lengths_[position] = row[1] - row[0];
            }
        }
        rule.los = los_;
        rule.lengths = lengths_;
        return rule;
    }

  private:
    float los_[kPackBlock], lengths_[kPackBlock];
};

// Rows past the end of the stream hold 0.
void pack_padded(const Block& block, uint32_t* levels, uint32_t* words) {
    std::fill(levels + block.count, levels + block.lanes() * kRows, 0);
    kernels().pack(block.stream.width, levels, block.lanes(), words + block.word());
}

bool fits(const Streams& streams, const Packing& packing) {
    return streams.valid() && streams.words() == packing.word_count;
}

}  // namespace

bool pack(const Packing& packing, const uint32_t* levels, uint32_t* words) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(words, packing.word_count * 4);
    for_each_block(streams, packing.count, packing.threads, [&](const Block& block) {
        if (streams.in_order() && block.count == kPackBlock) {
            expect_next_block(levels + block.first + kPackBlock);
            kernels().pack(block.stream.width, levels + block.first, block.lanes(), words + block.word());
            return;
        }
        uint32_t gathered[kPackBlock];
        gather(streams, block, levels, gathered);
        pack_padded(block, gathered, words);
    });
    return true;
}

bool unpack(const Packing& packing, const uint32_t* words, uint32_t* levels) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(levels, packing.count * 4);
    for_each_block(streams, packing.count, packing.threads, [&](const Block& block) {
        if (streams.in_order() && block.count == kPackBlock) {
            kernels().unpack(block.stream.width, words + block.word(), block.lanes(), levels + block.first);
            return;
        }
        uint32_t unpacked[kPackBlock];
        kernels().unpack(block.stream.width, words + block.word(), block.lanes(), unpacked);
        scatter(streams, block, unpacked, levels);
    });
    return true;
}

bool quantize_pack(const Packing& packing, const Floats& weight, const float* range, bool per_group,
                   uint32_t* words) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(words, packing.word_count * 4);
    for_each_block(streams, packing.count, packing.threads, [&](const Block& block) {
        float buffer[kPackBlock];
        uint32_t levels[kPackBlock];
        const float* values = gather_floats(streams, block, weight, buffer);
        Ranges ranges;
        kernels().quantize(values, block.count, ranges.fill(streams, block, range, per_group), levels);
        pack_padded(block, levels, words);
    });
    return true;
}

bool quantize_planes(const Packing& packing, const Floats& weight, const float* range,
                     const std::vector<int64_t>& level_counts, const std::vector<void*>& planes) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!streams.valid() || streams.level_counts() != level_counts) return false;
    for_each_block<kPlaneBlock>(streams, packing.count, packing.threads, [&](const Block& block) {
        float buffer[kPlaneBlock];
        uint32_t levels[kPlaneBlock];
        const float* values = gather_floats(streams, block, weight, buffer);
        const int width = block.stream.width;
        kernels().quantize(values, block.count, level_rule(range, static_cast<uint8_t>(width)), levels);
        const PlaneTile tile{block.count, width, kPlaneRows, kPlaneColumns, 0, 0, kPlaneColumns};
        uint64_t* words = static_cast<uint64_t*>(planes[static_cast<size_t>(width) - 1]);
        words += block.first / kPlaneBlock * width * kPlaneColumns;
        kernels().pack_planes(tile, levels, sizeof levels[0], words);
    });
    return true;
}

bool unpack_dequantize(const Packing& packing, const uint32_t* words, const float* range, bool per_group,
                       const Floats& weight) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(weight.data, weight.count * item_size(weight.dtype));
    const bool past_cache = goes_past_cache(packing.count);
    for_each_block(streams, packing.count, packing.threads, [&](const Block& block) {
        uint32_t levels[kPackBlock];
        float buffer[kPackBlock];
        kernels().unpack(block.stream.width, words + block.word(), block.lanes(), levels);
        Ranges ranges;
        const bool direct = streams.in_order() && weight.dtype == DType::float32;
        float* values = direct ? static_cast<float*>(weight.data) + block.first : buffer;
        kernels().dequantize(levels, block.count, ranges.fill(streams, block, range, per_group),
                             direct && past_cache, values);
        if (!direct) scatter_floats(streams, block, values, weight);
    });
    return true;
}

}  // namespace diffq_fast
