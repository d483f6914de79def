#include "core/pack/coding.h"

#include <atomic>
#include <cstring>
#include <numeric>

#include "core/isa/kernels.h"
#include "core/runtime/dispatch.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kTileValues = kCodedRows * kCodedLanes;

// One symbol as the encoder wants it.
struct Interval {
    uint32_t frequency, start;
};

std::vector<Interval> intervals_of(const LevelCode& code) {
    std::vector<Interval> intervals;
    uint32_t start = 0;
    for (const uint16_t frequency : code.frequencies) {
        intervals.push_back({frequency, start});
        start += frequency;
    }
    return intervals;
}

void split(uint32_t word, uint16_t* halves) {
    halves[0] = static_cast<uint16_t>(word);
    halves[1] = static_cast<uint16_t>(word >> 16);
}

uint32_t join(const uint16_t* halves) {
    return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
}

// What coding makes of a block.
struct CodedBlock {
    std::vector<uint16_t> states, words, escapes;
};

// False where the code has no symbol for a level.
bool find_symbols(const int32_t* levels, int64_t count, const LevelCode& code, std::vector<uint8_t>& symbols,
                  std::vector<uint16_t>& escapes) {
    const auto known = static_cast<uint32_t>(code.known());
    for (int64_t i = 0; i < count; ++i) {
        const int32_t symbol = (levels[i] - code.origin) >> code.low_bits;
        const auto place = static_cast<uint32_t>(symbol);
        if (place < known && code.frequencies[place] != 0) {
            symbols[static_cast<size_t>(i)] = static_cast<uint8_t>(place);
            continue;
        }
        if (!code.escape) return false;
        symbols[static_cast<size_t>(i)] = static_cast<uint8_t>(known);
        escapes.push_back(static_cast<uint16_t>(place));
    }
    return true;
}

bool encode_block(const int32_t* levels, int64_t count, const LevelCode& code,
                  const std::vector<Interval>& intervals, CodedBlock& made) {
    std::vector<uint8_t> symbols(static_cast<size_t>(count));
    if (!find_symbols(levels, count, code, symbols, made.escapes)) return false;
    const int lanes = coded_lanes(count, code.block_bits);
    uint32_t states[kCodedLanes];
    std::fill(states, states + lanes, kLowestState);
    std::vector<uint16_t> backwards(static_cast<size_t>(count));  // a value takes a word at most
    size_t place = backwards.size();
    int lane = static_cast<int>((count - 1) % lanes);
    for (int64_t i = count - 1; i >= 0; --i) {
        const Interval interval = intervals[symbols[static_cast<size_t>(i)]];
        uint32_t x = states[lane];
        backwards[place - 1] = static_cast<uint16_t>(x);
        const uint32_t full = (x >> 20) >= interval.frequency ? 1 : 0;
        place -= full;
        x >>= 16 * full;
        const uint32_t quotient = x / interval.frequency;
        states[lane] = (quotient << kProbabilityBits) + (x - quotient * interval.frequency) + interval.start;
        lane = lane == 0 ? lanes - 1 : lane - 1;
    }
    made.words.assign(backwards.begin() + static_cast<std::ptrdiff_t>(place), backwards.end());
    made.states.resize(static_cast<size_t>(2 * lanes));
    for (int i = 0; i < lanes; ++i) split(states[i], made.states.data() + 2 * i);
    return true;
}

// The low bits of all levels as a stream of words.h, two words to each of its words.
void encode_low_bits(const int32_t* levels, int64_t count, const LevelCode& code, int threads,
                     uint16_t* words) {
    parallel_for((count + kPackBlock - 1) / kPackBlock, threads, [&](int64_t block) {
        uint32_t low[kPackBlock] = {}, packed[kPackBlock / 2];
        const int64_t begin = block * kPackBlock, size = std::min(kPackBlock, count - begin);
        const uint32_t mask = (1u << code.low_bits) - 1;
        for (int64_t i = 0; i < size; ++i)
            low[i] = static_cast<uint32_t>(levels[begin + i] - code.origin) & mask;
        const int64_t lanes = lanes_of(size);
        kernels().pack_words(code.low_bits, low, lanes, packed);
        uint16_t* const to = words + low_words(begin, code.low_bits);
        for (int64_t i = 0; i < code.low_bits * lanes; ++i) split(packed[i], to + 2 * i);
    });
}

// Adds the low bits, and makes signed numbers of 16 bits of the levels.
void add_low_bits(const uint16_t* words, int64_t count, int low_bits, int32_t* levels, int threads) {
    parallel_for((count + kPackBlock - 1) / kPackBlock, threads, [&](int64_t block) {
        uint32_t low[kPackBlock], packed[kPackBlock / 2];
        const int64_t begin = block * kPackBlock, size = std::min(kPackBlock, count - begin);
        const int64_t lanes = lanes_of(size);
        const uint16_t* const from = words + low_words(begin, low_bits);
        for (int64_t i = 0; i < low_bits * lanes; ++i) packed[i] = join(from + 2 * i);
        kernels().unpack_words(low_bits, packed, lanes, low);
        for (int64_t i = 0; i < size; ++i) {
            const uint32_t level = static_cast<uint32_t>(levels[begin + i]) + low[i];
            levels[begin + i] = static_cast<int16_t>(level);
        }
    });
}

std::vector<uint32_t> slots_of(const LevelCode& code) {
    std::vector<uint32_t> slots;
    slots.reserve(kSlots);
    for (uint32_t symbol = 0; symbol < code.frequencies.size(); ++symbol) {
        const uint32_t frequency = code.frequencies[symbol];
        for (uint32_t i = 0; i < frequency; ++i) slots.push_back(symbol << 24 | frequency << 12 | i);
    }
    return slots;
}

// A block of a stream: where its words and escapes lie.
struct BlockPlace {
    const uint16_t *states, *words, *escapes, *end;
};

// Gives out a block's words, so many at a time that they may be read ahead: the last ones from a copy, with
// zeros behind them.
class Words {
  public:
    Words(const uint16_t* begin, const uint16_t* end) : place_(begin), end_(end) {}

    // kTileValues words, and kCodedReadAhead more, may be read from here.
    const uint16_t* place() {
        if (end_ - place_ >= kTileValues + kCodedReadAhead || copied_) return place_;
        const auto left = static_cast<size_t>(end_ - place_);
        std::memset(tail_, 0, sizeof tail_);
        std::memcpy(tail_, place_, left * sizeof(uint16_t));
        place_ = tail_;
        end_ = tail_ + left;
        copied_ = true;
        return place_;
    }
    // False where more was taken than there is.
    bool take_up_to(const uint16_t* place) {
        place_ = place;
        return place <= end_;
    }
    int64_t left() const { return end_ - place_; }

  private:
    const uint16_t *place_, *end_;
    uint16_t tail_[2 * (kTileValues + kCodedReadAhead)];
    bool copied_ = false;
};

// Rows that are not whole, or of fewer lanes; false where there are too few words.
bool decode_values(const CodedSlots& code, uint32_t* states, int lanes, int64_t count, const uint16_t*& words,
                   const uint16_t* end, int32_t* levels) {
    int lane = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t x = states[lane];
        const uint32_t slot = code.slots[x % kSlots];
        x = (slot >> 12) % kSlots * (x >> kProbabilityBits) + slot % kSlots;
        if (x < kLowestState) {
            if (words == end) return false;
            x = x << 16 | *words++;
        }
        states[lane] = x;
        levels[i] = code.origin + static_cast<int32_t>((slot >> 24) << code.low_bits);
        lane = lane + 1 == lanes ? 0 : lane + 1;
    }
    return true;
}

bool decode_rows(const CodedSlots& code, const BlockPlace& block, uint32_t* states, int64_t count,
                 int32_t* levels) {
    const auto lanes = static_cast<int>((block.words - block.states) / 2);
    int64_t done = 0;
    if (lanes == kCodedLanes) {
        Words words(block.words, block.escapes);
        while (count - done >= kCodedLanes) {
            const int64_t rows = std::min(kCodedRows, (count - done) / kCodedLanes);
            const uint16_t* const behind =
                kernels().decode_rows(code, states, words.place(), rows, levels + done);
            if (!words.take_up_to(behind)) return false;
            done += rows * kCodedLanes;
        }
        const uint16_t* place = words.place();
        const uint16_t* const last = place + words.left();
        return decode_values(code, states, lanes, count - done, place, last, levels + done) && place == last;
    }
    const uint16_t* place = block.words;
    return decode_values(code, states, lanes, count, place, block.escapes, levels) && place == block.escapes;
}

// Puts the escaped symbols in the place of the levels that stand for them; false where there are not as many.
bool put_escapes(const LevelCode& code, const BlockPlace& block, int64_t count, int32_t* levels) {
    const int32_t marker = code.origin + (code.known() << code.low_bits);
    const uint16_t* escape = block.escapes;
    for (int64_t begin = 0; begin < count; begin += kTileValues) {
        const int64_t end = std::min(count, begin + kTileValues);
        uint32_t any = 0;
        for (int64_t i = begin; i < end; ++i) any |= levels[i] == marker ? 1u : 0u;
        if (any == 0) continue;
        for (int64_t i = begin; i < end; ++i) {
            if (levels[i] != marker) continue;
            if (escape == block.end) return false;
            const uint32_t level =
                static_cast<uint32_t>(code.origin) + (static_cast<uint32_t>(*escape++) << code.low_bits);
            levels[i] = static_cast<int16_t>(level);
        }
    }
    return escape == block.end;
}

const char* decode_block(const LevelCode& code, const CodedSlots& slots, const BlockPlace& block,
                         int64_t count, int32_t* levels) {
    uint32_t states[kCodedLanes];
    const int lanes = coded_lanes(count, code.block_bits);
    for (int lane = 0; lane < lanes; ++lane) {
        states[lane] = join(block.states + 2 * lane);
        if (states[lane] < kLowestState) return "a block of levels begins with a state that is none";
    }
    if (!decode_rows(slots, block, states, count, levels))
        return "a block of levels has another number of words than it needs";
    for (int lane = 0; lane < lanes; ++lane) {
        if (states[lane] != kLowestState) return "a block of levels does not end as it should";
    }
    if (code.escape && !put_escapes(code, block, count, levels))
        return "a block of levels has another number of escapes than it says";
    return nullptr;
}

}  // namespace

const char* encode_levels(const int32_t* levels, int64_t count, const LevelCode& code, int threads,
                          std::vector<uint16_t>& words) {
    const char* const problem = problem_of(code);
    if (problem != nullptr) return problem;
    threads = threads_for(count, threads);
    const CodedBlocks blocks(count, code.block_bits);
    const bool coded = !code.frequencies.empty();
    std::vector<CodedBlock> made(static_cast<size_t>(coded ? blocks.number : 0));
    const std::vector<Interval> intervals = intervals_of(code);
    std::atomic<bool> possible{true};
    parallel_for(static_cast<int64_t>(made.size()), threads, [&](int64_t block) {
        CodedBlock& one = made[static_cast<size_t>(block)];
        if (!encode_block(levels + blocks.begin(block), blocks.count(block), code, intervals, one))
            possible.store(false, std::memory_order_relaxed);
    });
    for (int64_t i = 0; !coded && i < count; ++i) {
        if ((levels[i] - code.origin) >> code.low_bits != 0) possible.store(false);
    }
    if (!possible.load()) return "the code has no symbol for some level";
    StreamHead head{code, {}, {}, 0};
    for (const CodedBlock& block : made) {
        head.words.push_back(static_cast<int64_t>(block.words.size()));
        head.escapes.push_back(static_cast<int64_t>(block.escapes.size()));
    }
    words = write_head(head);
    for (const CodedBlock& block : made) {
        for (const auto* part : {&block.states, &block.words, &block.escapes})
            words.insert(words.end(), part->begin(), part->end());
    }
    if (code.low_bits > 0) {
        const size_t place = words.size();
        words.resize(place + static_cast<size_t>(low_words(count, code.low_bits)));
        encode_low_bits(levels, count, code, threads, words.data() + place);
    }
    return nullptr;
}

const char* decode_levels(const uint16_t* words, int64_t word_count, int64_t count, int32_t* levels,
                          int threads) {
    if (count == 0) return nullptr;
    StreamHead head;
    const char* const problem = read_head(words, word_count, count, head);
    if (problem != nullptr) return problem;
    threads = threads_for(count, threads);
    expect_writes(levels, count * int64_t{sizeof(int32_t)});
    const LevelCode& code = head.code;
    const uint16_t* place = words + head.size;
    if (code.frequencies.empty()) {
        std::fill(levels, levels + count, code.origin);
    } else {
        const CodedBlocks blocks(count, code.block_bits);
        std::vector<BlockPlace> places;
        for (int64_t block = 0; block < blocks.number; ++block) {
            const auto index = static_cast<size_t>(block);
            const uint16_t* const first = place + 2 * coded_lanes(blocks.count(block), code.block_bits);
            const uint16_t* const escapes = first + head.words[index];
            places.push_back({place, first, escapes, escapes + head.escapes[index]});
            place = places.back().end;
        }
        const std::vector<uint32_t> table = slots_of(code);
        const CodedSlots slots{table.data(), code.origin, code.low_bits};
        std::atomic<const char*> found{nullptr};
        parallel_for(blocks.number, threads, [&](int64_t block) {
            const char* const wrong = decode_block(code, slots, places[static_cast<size_t>(block)],
                                                   blocks.count(block), levels + blocks.begin(block));
            if (wrong != nullptr) found.store(wrong, std::memory_order_relaxed);
        });
        if (found.load() != nullptr) return found.load();
    }
    if (code.low_bits > 0) add_low_bits(place, count, code.low_bits, levels, threads);
    return nullptr;
}

}  // namespace diffq_fast
