#include "core/packed_levels.h"

#include "core/memory.h"
#include "core/quantize.h"
#include "core/streams.h"
#include "core/thread_pool.h"

namespace diffq_fast {
namespace {

// One block of a stream: levels first ... first + count - 1 of it.
struct Block {
    const Stream& stream;
    int64_t first, count;

    int64_t lanes() const { return lanes_of(count); }
    int64_t word() const { return stream.first_word + first / kRows * stream.width; }
};

// Calls body(block) for every block of every stream, in parallel.
template <typename Body>
void for_each_block(const Streams& streams, int64_t count, int threads, Body&& body) {
    constexpr int64_t kTask = 16 * kPackBlock;
    TaskTable table;
    for (const Stream& stream : streams.streams()) table.append((stream.levels + kTask - 1) / kTask);
    parallel_for(table.tasks(), threads_for(count, threads), [&](int64_t task) {
        const auto place = table.find(task);
        const Stream& stream = streams.streams()[place.list];
        const int64_t end = std::min(stream.levels, (place.piece + 1) * kTask);
        for (int64_t first = place.piece * kTask; first < end; first += kPackBlock) {
            body(Block{stream, first, std::min(kPackBlock, end - first)});
        }
    });
}

// Calls body(element, position, size) for each run of the block's levels that lie together in the weight.
template <typename Body>
void for_each_run(const Streams& streams, const Block& block, Body&& body) {
    const int64_t group_size = streams.group_size();
    if (streams.in_order()) {
        body(block.first, 0, block.count);
        return;
    }
    int64_t index = block.stream.first_group + block.first / group_size, inside = block.first % group_size;
    for (int64_t position = 0; position < block.count; ++index, inside = 0) {
        const int64_t size = std::min(block.count - position, group_size - inside);
        body(streams.group(index) * group_size + inside, position, size);
        position += size;
    }
}

// The same for groups of kSize elements of which the block holds whole ones: copies of a size that is known.
template <int64_t kSize, typename Body>
void for_each_group(const Streams& streams, const Block& block, Body&& body) {
    const int64_t groups = block.count / kSize, index = block.stream.first_group + block.first / kSize;
    if (const uint32_t* narrow = streams.narrow()) {
        narrow += index;
        for (int64_t g = 0; g < groups; ++g) body(int64_t{narrow[g]} * kSize, g * kSize, kSize);
    } else {
        for (int64_t g = 0; g < groups; ++g) body(streams.group(index + g) * kSize, g * kSize, kSize);
    }
}

template <typename Body>
void for_each_copy(const Streams& streams, const Block& block, Body&& body) {
    if (!streams.in_order() && block.count % streams.group_size() == 0) {
        switch (streams.group_size()) {
            case 1:
                for_each_group<1>(streams, block, body);
                return;
            case 2:
                for_each_group<2>(streams, block, body);
                return;
            case 4:
                for_each_group<4>(streams, block, body);
                return;
            case 8:
                for_each_group<8>(streams, block, body);
                return;
            case 16:
                for_each_group<16>(streams, block, body);
                return;
            default:
                break;
        }
    }
    for_each_run(streams, block, body);
}

template <typename Item>
void gather(const Streams& streams, const Block& block, const Item* source, Item* items) {
    for_each_copy(streams, block, [&](int64_t element, int64_t position, int64_t size) {
        for (int64_t i = 0; i < size; ++i) items[position + i] = source[element + i];
    });
}

template <typename Item>
void scatter(const Streams& streams, const Block& block, const Item* items, Item* target) {
    for_each_copy(streams, block, [&](int64_t element, int64_t position, int64_t size) {
        for (int64_t i = 0; i < size; ++i) target[element + i] = items[position + i];
    });
}

// The block's weights as float32, in stream order.
void gather_floats(const Streams& streams, const Block& block, const Floats& weight, float* values) {
    if (weight.dtype == DType::float32) {
        gather(streams, block, static_cast<const float*>(weight.data), values);
        return;
    }
    uint16_t halves[kPackBlock];
    gather(streams, block, static_cast<const uint16_t*>(weight.data), halves);
    load_floats(halves, weight.dtype, 0, block.count, values);
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

// Each level's smallest weight and length of range, from one row per group.
void gather_ranges(const Streams& streams, const Block& block, const float* range, float* lo, float* length) {
    const int64_t group_size = streams.group_size();
    int64_t index = block.stream.first_group + block.first / group_size, inside = block.first % group_size;
    for (int64_t position = 0; position < block.count; ++index, inside = 0) {
        const int64_t end = std::min(block.count, position + group_size - inside);
        const float* row = range + 2 * streams.group(index);
        for (; position < end; ++position) {
            lo[position] = row[0];
            length[position] = row[1] - row[0];
        }
    }
}

// Rows past the end of the stream hold 0.
void pack_padded(const Block& block, uint32_t* levels, uint32_t* words) {
    std::fill(levels + block.count, levels + block.lanes() * kRows, 0);
    pack_block(block.stream.width, levels, block.lanes(), words + block.word());
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
        uint32_t unpacked[kPackBlock];
        unpack_block(block.stream.width, words + block.word(), block.lanes(), unpacked);
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
        float values[kPackBlock];
        uint32_t levels[kPackBlock];
        gather_floats(streams, block, weight, values);
        const auto width = static_cast<uint8_t>(block.stream.width);
        const Same step{level_step(width)}, top{top_level(width)};
        if (per_group) {
            float los[kPackBlock], lengths[kPackBlock];
            gather_ranges(streams, block, range, los, lengths);
            const float *lo = los, *length = lengths;
            quantize_block(values, block.count, lo, length, step, top, levels);
        } else {
            const Same lo{range[0]}, length{range[1] - range[0]};
            quantize_block(values, block.count, lo, length, step, top, levels);
        }
        pack_padded(block, levels, words);
    });
    return true;
}

bool unpack_dequantize(const Packing& packing, const uint32_t* words, const float* range, bool per_group,
                       const Floats& weight) {
    const Streams streams(packing.widths, packing.count, packing.group_size, packing.threads);
    if (!fits(streams, packing)) return false;
    expect_writes(weight.data, weight.count * item_size(weight.dtype));
    for_each_block(streams, packing.count, packing.threads, [&](const Block& block) {
        uint32_t levels[kPackBlock];
        float values[kPackBlock];
        unpack_block(block.stream.width, words + block.word(), block.lanes(), levels);
        const Same step{level_step(static_cast<uint8_t>(block.stream.width))};
        if (per_group) {
            float los[kPackBlock], lengths[kPackBlock];
            gather_ranges(streams, block, range, los, lengths);
            const float *lo = los, *length = lengths;
            dequantize_block(levels, block.count, lo, length, step, values);
        } else {
            const Same lo{range[0]}, length{range[1] - range[0]};
            dequantize_block(levels, block.count, lo, length, step, values);
        }
        scatter_floats(streams, block, values, weight);
    });
    return true;
}

}  // namespace diffq_fast
