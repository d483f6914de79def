// Items (weights or levels) on their way between the weight's order and the blocks of the streams, where
// groups differ in width. A task goes through a slice of the weight in order and keeps one block per width
// open:
//
//   weight            |5|3|5|5|3|8|5| ...  groups of 5, 3, 5 ... bits
//   open blocks       width 3 |3|3|        width 5 |5|5|5|5|        width 8 |8|
//
// so both sides are read and written once and nearly in order.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/pack/quantize.h"
#include "core/pack/streams.h"
#include "core/runtime/block_pool.h"
#include "core/runtime/memory.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {

// Processors look ahead by themselves, but only within a page.
constexpr int64_t kBytesAhead = 4096;

// Items between two open blocks, which would else begin at the same place of a page each: processors take a
// store to one for a store to another then.
constexpr int64_t kApart = 16;

// One block of a stream: some of its levels.
struct Block {
    Stream stream;
    Span span;

    int64_t count() const { return span.count; }
    int64_t lanes() const { return lanes_of(span.count); }
    int64_t word() const { return stream.first_word + span.begin / kBlockRows * stream.width; }
};

// The block of `size` levels that begins at level `begin`, or what the stream has of it.
inline Block block_at(const Stream& stream, int64_t begin, int64_t size) {
    return {stream, {begin, std::min(size, stream.levels - begin)}};
}

// A number of items that the compiler knows.
template <int64_t kSize>
using Fixed = std::integral_constant<int64_t, kSize>;

// Calls body(width, place in the slice, size) for the slice's groups in order, the last one of the weight
// perhaps smaller. A block's beginning and end cut no group of a fixed size.
template <typename Size, typename Body>
void for_each_group_of(Size size, const Slice& slice, const uint8_t* widths, Body&& body) {
    widths += slice.first_group;
    const int64_t whole = slice.span.count / size, rest = slice.span.count % size;
    for (int64_t group = 0; group < whole; ++group) body(widths[group], group * size, size);
    if (rest > 0) body(widths[whole], whole * size, rest);
}

template <typename Body>
void for_each_group(const Slice& slice, const uint8_t* widths, int64_t group_size, Body&& body) {
    switch (group_size) {
        case 1:
            return for_each_group_of(Fixed<1>(), slice, widths, body);
        case 2:
            return for_each_group_of(Fixed<2>(), slice, widths, body);
        case 4:
            return for_each_group_of(Fixed<4>(), slice, widths, body);
        case 8:
            return for_each_group_of(Fixed<8>(), slice, widths, body);
        case 16:
            return for_each_group_of(Fixed<16>(), slice, widths, body);
        default:
            return for_each_group_of(group_size, slice, widths, body);
    }
}

template <typename Item, typename Size>
DIFFQ_FAST_INLINE void copy_items(const Item* from, Size size, Item* to) {
    std::memcpy(to, from, static_cast<size_t>(int64_t{size}) * sizeof(Item));
}

// The blocks that are not filled by one slice alone, and the one at the end of a stream that is not full:
// each has memory of its own, into which every slice puts its part.
template <typename Item, int64_t kSize>
class SharedBlocks {
  public:
    explicit SharedBlocks(const Streams& streams)
        : places_(static_cast<size_t>(streams.slices() + 1) * kWidths),
          blocks_(shared_by(streams)),
          items_(static_cast<int64_t>(blocks_.size() * kSize * sizeof(Item))) {}

    // The block that the beginning of a slice cuts into two.
    Item* cut_by(int64_t slice, int width) const { return items(places_[place(slice, width)]); }

    int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
    const Block& block(int64_t index) const { return blocks_[static_cast<size_t>(index)]; }
    Item* items(int64_t index) const { return static_cast<Item*>(items_.data()) + index * kSize; }

  private:
    static constexpr size_t kWidths = kMaxWidth + 1;

    static size_t place(int64_t slice, int width) {
        return static_cast<size_t>(slice) * kWidths + static_cast<size_t>(width);
    }

    std::vector<Block> shared_by(const Streams& streams) {
        std::vector<Block> shared;
        for (const Stream& stream : streams.streams()) {
            int64_t last = -1;
            for (int64_t slice = 1; slice <= streams.slices(); ++slice) {
                const int64_t level = streams.levels_before(slice, stream.width);
                if (level % kSize == 0) continue;
                if (level / kSize != last) {
                    last = level / kSize;
                    shared.push_back(block_at(stream, last * kSize, kSize));
                }
                places_[place(slice, stream.width)] = static_cast<int64_t>(shared.size()) - 1;
            }
        }
        return shared;
    }

    std::vector<int64_t> places_;
    std::vector<Block> blocks_;
    PooledBlock items_;
};

// One slice's way into the blocks. finish(block, items) is called for each one that the slice alone fills.
template <typename Item, int64_t kSize, typename Finish>
class SliceSorter {
  public:
    SliceSorter(const Streams& streams, const SharedBlocks<Item, kSize>& shared, int64_t slice,
                Finish& finish)
        : shared_(shared), slice_(slice), finish_(finish) {
        for (const Stream& stream : streams.streams()) {
            Open& open = open_[stream.width];
            open.stream = stream;
            open.begin = streams.levels_before(slice, stream.width);
            open.stop = streams.levels_before(slice + 1, stream.width);
            if (open.begin < open.stop) start(open, open.begin);
        }
    }

    // The next items of the slice, which have that width.
    template <typename Size>
    DIFFQ_FAST_INLINE void put(int width, const Item* items, Size size) {
        expect_read(reinterpret_cast<const char*>(items) + kBytesAhead);
        Open& open = open_[width];
        if constexpr (std::is_same_v<Size, int64_t>) {
            for (int64_t part = open.end - open.at; part < size; part = open.end - open.at) {
                copy(open, items, part);
                items += part;
                size -= part;
            }
        }
        copy(open, items, size);
    }

  private:
    struct Open {
        Item *at = nullptr, *end = nullptr;
        Stream stream{};
        int64_t begin = 0, stop = 0;  // the slice's levels of this width
        int64_t block_begin = 0;      // the block's first level
        bool shared = false;
    };

    void start(Open& open, int64_t level) {
        open.block_begin = level / kSize * kSize;
        const bool before = open.block_begin<open.begin, behind = open.block_begin + kSize> open.stop;
        open.shared = before || behind;
        Item* const items = before   ? shared_.cut_by(slice_, open.stream.width)
                            : behind ? shared_.cut_by(slice_ + 1, open.stream.width)
                                     : own_[open.stream.width - 1];
        open.at = items + (level - open.block_begin);
        open.end = items + kSize;
    }

    template <typename Size>
    DIFFQ_FAST_INLINE void copy(Open& open, const Item* items, Size size) {
        Item* const at = open.at;
        open.at = at + size;
        copy_items(items, size, at);
        if (at + size == open.end) close(open);
    }

    void close(Open& open) {
        if (!open.shared) finish_(Block{open.stream, {open.block_begin, kSize}}, open.end - kSize);
        if (open.block_begin + kSize < open.stop) start(open, open.block_begin + kSize);
    }

    const SharedBlocks<Item, kSize>& shared_;
    const int64_t slice_;
    Finish& finish_;
    Open open_[kMaxWidth + 1];
    Item own_[kMaxWidth][kSize + kApart];
};

// Sorts a weight's items into blocks. items_of(slice) says where a slice's items lie; finish(block, items) is
// called once for every block of every stream, in parallel.
template <typename Item, int64_t kSize, typename Source, typename Finish>
void sort_into_blocks(const Streams& streams, const uint8_t* widths, int threads, Source&& items_of,
                      Finish&& finish) {
    const SharedBlocks<Item, kSize> shared(streams);
    parallel_for(streams.slices(), threads, [&](int64_t index) {
        SliceSorter<Item, kSize, Finish> sorter(streams, shared, index, finish);
        const Slice slice = streams.slice(index);
        const Item* const items = items_of(slice);
        for_each_group(slice, widths, streams.group_size(),
                       [&](int width, int64_t place, auto size) { sorter.put(width, items + place, size); });
    });
    parallel_for(shared.size(), threads,
                 [&](int64_t index) { finish(shared.block(index), shared.items(index)); });
}

// One slice's way out of the blocks. make(block, items) makes a block's items.
template <typename Item, int64_t kSize, typename Make>
class SliceMerger {
  public:
    SliceMerger(const Streams& streams, int64_t slice, Make& make) : make_(make) {
        for (const Stream& stream : streams.streams()) {
            open_[stream.width].stream = stream;
            open_[stream.width].next = streams.levels_before(slice, stream.width);
        }
    }

    // The next items of the slice, which have that width.
    template <typename Size>
    DIFFQ_FAST_INLINE void take(int width, Item* items, Size size) {
        expect_write(reinterpret_cast<const char*>(items) + kBytesAhead);
        Open& open = open_[width];
        if (open.at == open.end) refill(open);
        if constexpr (std::is_same_v<Size, int64_t>) {
            for (int64_t part = open.end - open.at; part < size; part = open.end - open.at) {
                copy(open, items, part);
                items += part;
                size -= part;
                refill(open);
            }
        }
        copy(open, items, size);
    }

  private:
    struct Open {
        const Item *at = nullptr, *end = nullptr;
        Stream stream{};
        int64_t next = 0;  // the first level behind the block
    };

    void refill(Open& open) {
        Item* const items = own_[open.stream.width - 1];
        const int64_t begin = open.next / kSize * kSize;
        const Block block = block_at(open.stream, begin, kSize);
        make_(block, items);
        open.at = items + (open.next - begin);
        open.end = items + block.count();
        open.next = begin + block.count();
    }

    template <typename Size>
    DIFFQ_FAST_INLINE static void copy(Open& open, Item* items, Size size) {
        const Item* const at = open.at;
        open.at = at + size;
        copy_items(at, size, items);
    }

    Make& make_;
    Open open_[kMaxWidth + 1];
    Item own_[kMaxWidth][kSize + kApart];
};

// Puts the blocks' items into the weight's order. make(block, items) makes a block's items, which happens
// again in each slice that the block reaches into; items_of(slice) says where the slice's items go, and
// done(slice) is called when they are there.
template <typename Item, int64_t kSize, typename Make, typename Target, typename Done>
void merge_from_blocks(const Streams& streams, const uint8_t* widths, int threads, Make&& make,
                       Target&& items_of, Done&& done) {
    parallel_for(streams.slices(), threads, [&](int64_t index) {
        SliceMerger<Item, kSize, Make> merger(streams, index, make);
        const Slice slice = streams.slice(index);
        Item* const items = items_of(slice);
        for_each_group(slice, widths, streams.group_size(),
                       [&](int width, int64_t place, auto size) { merger.take(width, items + place, size); });
        done(slice);
    });
}

}  // namespace diffq_fast
