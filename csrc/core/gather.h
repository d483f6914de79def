// A block of a stream <-> the places of its levels in the weight.
#pragma once

#include <cstdint>

#include "core/memory.h"
#include "core/streams.h"

namespace diffq_fast {

// One block of a stream: levels first ... first + count - 1 of it.
struct Block {
    const Stream& stream;
    int64_t first, count;

    int64_t lanes() const { return lanes_of(count); }
    int64_t word() const { return stream.first_word + first / kRows * stream.width; }
};

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
// Groups lie scattered, so each is asked for some time before it is needed: expect(element).
template <int64_t kSize, typename Body, typename Expect>
void for_each_group(const Streams& streams, const Block& block, Body&& body, Expect&& expect) {
    const int64_t groups = block.count / kSize, index = block.stream.first_group + block.first / kSize;
    if (const uint32_t* narrow = streams.narrow()) {
        narrow += index;
        for (int64_t g = 0; g < groups; ++g) {
            expect(int64_t{narrow[g + kGroupsAhead]} * kSize);
            body(int64_t{narrow[g]} * kSize, g * kSize, kSize);
        }
    } else {
        for (int64_t g = 0; g < groups; ++g) body(streams.group(index + g) * kSize, g * kSize, kSize);
    }
}

template <typename Body, typename Expect>
void for_each_copy(const Streams& streams, const Block& block, Body&& body, Expect&& expect) {
    if (!streams.in_order() && block.count % streams.group_size() == 0) {
        switch (streams.group_size()) {
            case 1:
                for_each_group<1>(streams, block, body, expect);
                return;
            case 2:
                for_each_group<2>(streams, block, body, expect);
                return;
            case 4:
                for_each_group<4>(streams, block, body, expect);
                return;
            case 8:
                for_each_group<8>(streams, block, body, expect);
                return;
            case 16:
                for_each_group<16>(streams, block, body, expect);
                return;
            default:
                break;
        }
    }
    for_each_run(streams, block, body);
}

template <typename Item>
void gather(const Streams& streams, const Block& block, const Item* source, Item* items) {
    const auto copy = [&](int64_t element, int64_t position, int64_t size) {
        for (int64_t i = 0; i < size; ++i) items[position + i] = source[element + i];
    };
    for_each_copy(streams, block, copy, [&](int64_t element) { expect_read(source + element); });
}

template <typename Item>
void scatter(const Streams& streams, const Block& block, const Item* items, Item* target) {
    const auto copy = [&](int64_t element, int64_t position, int64_t size) {
        for (int64_t i = 0; i < size; ++i) target[element + i] = items[position + i];
    };
    for_each_copy(streams, block, copy, [&](int64_t element) { expect_write(target + element); });
}

}  // namespace diffq_fast
