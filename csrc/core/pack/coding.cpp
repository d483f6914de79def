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

// One symbol as the encoder wants it. inverse: 2^44 / frequency, rounded up. From states x below full =
// frequency << 20 it makes the quotient without a division: x * inverse >> 44, exactly, as x times what was
// rounded up is below 2^44; and x * inverse is below 2^64.
struct Interval {
    uint64_t inverse;
    uint32_t full, start, others;
};
constexpr int kInverseBits = 44;

std::vector<Interval> intervals_of(const LevelCode& code) {
    std::vector<Interval> intervals;
    uint32_t start = 0;
    for (const uint16_t frequency : code.frequencies) {
        const uint64_t divisor = std::max<uint64_t>(frequency, 1);  // what has no slot does not occur
        const uint64_t inverse = ((uint64_t{1} << kInverseBits) + divisor - 1) / divisor;
        intervals.push_back({inverse, uint32_t{frequency} << 20, start, kSlots - frequency});
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

// False where the code has no symbol for a level, or one is beyond 16 bits.
bool find_symbols(const int32_t* levels, int64_t count, const LevelCode& code, std::vector<uint8_t>& symbols,
                  std::vector<uint16_t>& escapes) {
    const auto known = static_cast<uint32_t>(code.known());
    for (int64_t i = 0; i < count; ++i) {
        if (levels[i] != static_cast<int16_t>(levels[i])) return false;
        const auto place = static_cast<uint32_t>((levels[i] - code.origin) >> code.low_bits);
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
        const Interval& interval = intervals[symbols[static_cast<size_t>(i)]];
        uint32_t x = states[lane];
        backwards[place - 1] = static_cast<uint16_t>(x);
        const uint32_t full = x >= interval.full ? 1 : 0;
        place -= full;
        x >>= 16 * full;
        const auto quotient = static_cast<uint32_t>(x * interval.inverse >> kInverseBits);
        states[lane] =
            x + quotient * interval.others + interval.start;  // quotient << 12, the rest, the start
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

// Where the low bits of a stream lie; none where there are no low bits.
struct LowBits {
    const uint16_t* words;
    int bits;
    int64_t count;  // values of the whole stream

    int64_t blocks() const { return bits == 0 ? 0 : (count + kPackBlock - 1) / kPackBlock; }
};

// Adds a block of low bits to the levels of the stream, and makes signed numbers of 16 bits of them.
void add_low_bits(const LowBits& source, int64_t block, int32_t* levels) {
    uint32_t low[kPackBlock], packed[kPackBlock / 2];
    const int64_t begin = block * kPackBlock, size = std::min(kPackBlock, source.count - begin);
    const int64_t lanes = lanes_of(size);
    const uint16_t* const from = source.words + low_words(begin, source.bits);
    for (int64_t i = 0; i < source.bits * lanes; ++i) packed[i] = join(from + 2 * i);
    kernels().unpack_words(source.bits, packed, lanes, low);
    for (int64_t i = 0; i < size; ++i) {
        const uint32_t level = static_cast<uint32_t>(levels[begin + i]) + low[i];
        levels[begin + i] = static_cast<int16_t>(level);
    }
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

// One value of a lane; `taken`: whether it took the word.
uint32_t decode_value(const CodedSlots& code, uint32_t& state, uint32_t word, int32_t& level) {
    const uint32_t slot = code.slots[state % kSlots];
    const uint32_t x = (slot >> 12) % kSlots * (state >> kProbabilityBits) + slot % kSlots;
    const uint32_t low = x < kLowestState ? 1 : 0;
    state = x << 16 * low | (word & (0 - low));
    level = code.origin + static_cast<int32_t>((slot >> 24) << code.low_bits);
    return low;
}

// Rows that are not whole, or of fewer lanes; false where there are too few words.
bool decode_values(const CodedSlots& code, uint32_t* states, int lanes, int64_t count, const uint16_t*& words,
                   const uint16_t* end, int32_t* levels) {
    int64_t i = 0;
    for (; count - i >= lanes && end - words >= lanes; i += lanes) {
        for (int lane = 0; lane < lanes; ++lane)
            words += decode_value(code, states[lane], *words, levels[i + lane]);
    }
    for (int lane = 0; i < count; ++i) {
        const bool some = words != end;
        const uint32_t taken = decode_value(code, states[lane], some ? *words : 0, levels[i]);
        if (taken != 0 && !some) return false;
        words += taken;
        lane = lane + 1 == lanes ? 0 : lane + 1;
    }
    return true;
}

// Decodes a block of a stream, a tile after the other; escapes and low bits are put in while it is in the
// cache.
class BlockDecoder {
  public:
    // levels: of the whole stream; the block's are those from `begin` on.
    BlockDecoder(const LevelCode& code, const CodedSlots& slots, const BlockPlace& place, const LowBits& low,
                 int32_t* levels, int64_t begin)
        : code_(code),
          slots_(slots),
          place_(place),
          low_(low),
          levels_(levels),
          begin_(begin),
          escape_(place.escapes),
          next_low_((begin + kPackBlock - 1) / kPackBlock) {}

    // Null, or what is wrong with it.
    const char* decode(int64_t count) {
        const int lanes = coded_lanes(count, code_.block_bits);
        for (int lane = 0; lane < lanes; ++lane) {
            states_[lane] = join(place_.states + 2 * lane);
            if (states_[lane] < kLowestState) return "a block of levels begins with a state that is none";
        }
        if (!(lanes == kCodedLanes ? decode_all_lanes(count) : decode_few_lanes(count, lanes)))
            return "a block of levels has another number of words than it needs";
        for (int lane = 0; lane < lanes; ++lane) {
            if (states_[lane] != kLowestState) return "a block of levels does not end as it should";
        }
        if (!enough_escapes_ || escape_ != place_.end)
            return "a block of levels has another number of escapes than it says";
        return nullptr;
    }

  private:
    bool decode_all_lanes(int64_t count) {
        Words words(place_.words, place_.escapes);
        int64_t done = 0;
        while (count - done >= kCodedLanes) {
            const int64_t rows = std::min(kCodedRows, (count - done) / kCodedLanes);
            int32_t* const tile = levels_ + begin_ + done;
            uint32_t escaped = 0;
            const auto* behind = kernels().decode_rows(slots_, states_, words.place(), rows, tile, &escaped);
            if (!words.take_up_to(behind)) return false;
            for (int64_t row = 0; escaped != 0; ++row, escaped >>= 1) {
                if ((escaped & 1) != 0) put_escapes(tile + row * kCodedLanes, kCodedLanes);
            }
            done += rows * kCodedLanes;
            add_low_bits_up_to(done);
        }
        const uint16_t* place = words.place();
        const uint16_t* const last = place + words.left();
        return decode_rest(done, count, kCodedLanes, place, last) && place == last;
    }

    bool decode_few_lanes(int64_t count, int lanes) {
        const uint16_t* place = place_.words;
        return decode_rest(0, count, lanes, place, place_.escapes) && place == place_.escapes;
    }

    bool decode_rest(int64_t done, int64_t count, int lanes, const uint16_t*& words, const uint16_t* end) {
        int32_t* const rest = levels_ + begin_ + done;
        if (!decode_values(slots_, states_, lanes, count - done, words, end, rest)) return false;
        if (code_.escape) put_escapes(rest, count - done);
        add_low_bits_up_to(count);
        return true;
    }

    // Puts the escaped symbols in the place of the levels that stand for them.
    void put_escapes(int32_t* levels, int64_t count) {
        const int32_t marker = code_.origin + (code_.known() << code_.low_bits);
        for (int64_t i = 0; i < count; ++i) {
            if (levels[i] != marker) continue;
            enough_escapes_ = enough_escapes_ && escape_ != place_.end;
            if (!enough_escapes_) return;
            const uint32_t level =
                static_cast<uint32_t>(code_.origin) + (static_cast<uint32_t>(*escape_++) << code_.low_bits);
            levels[i] = static_cast<int16_t>(level);
        }
    }

    // Those blocks of low bits that lie in the block alone, and of which all levels are there.
    void add_low_bits_up_to(int64_t done) {
        const int64_t end = begin_ + done;
        while (next_low_ < low_.blocks() && std::min((next_low_ + 1) * kPackBlock, low_.count) <= end)
            add_low_bits(low_, next_low_++, levels_);
    }

    const LevelCode& code_;
    const CodedSlots& slots_;
    const BlockPlace place_;
    const LowBits& low_;
    int32_t* const levels_;
    const int64_t begin_;
    uint32_t states_[kCodedLanes];
    const uint16_t* escape_;
    bool enough_escapes_ = true;
    int64_t next_low_;
};

// Where the blocks of a stream lie; `place` is behind the head, and then behind the last one.
std::vector<BlockPlace> places_of(const StreamHead& head, const CodedBlocks& blocks, const uint16_t*& place) {
    std::vector<BlockPlace> places;
    for (int64_t block = 0; block < blocks.number; ++block) {
        const auto index = static_cast<size_t>(block);
        const uint16_t* const first = place + 2 * coded_lanes(blocks.count(block), head.code.block_bits);
        const uint16_t* const escapes = first + head.words[index];
        places.push_back({place, first, escapes, escapes + head.escapes[index]});
        place = places.back().end;
    }
    return places;
}

// The levels of a stream with a table, low bits too; null, or what is wrong.
const char* decode_blocks(const StreamHead& head, const uint16_t* words, int64_t count, int32_t* levels,
                          int threads) {
    const LevelCode& code = head.code;
    const CodedBlocks blocks(count, code.block_bits);
    const std::vector<BlockPlace> places = places_of(head, blocks, words);
    const LowBits low{words, code.low_bits, count};
    const std::vector<uint32_t> table = slots_of(code);
    const auto marker = code.escape ? static_cast<uint32_t>(code.known()) : kNoSymbol;
    const CodedSlots slots{table.data(), code.origin, code.low_bits, marker};
    std::atomic<const char*> found{nullptr};
    parallel_for(blocks.number, threads, [&](int64_t block) {
        const BlockPlace& place = places[static_cast<size_t>(block)];
        BlockDecoder decoder(code, slots, place, low, levels, blocks.begin(block));
        const char* const wrong = decoder.decode(blocks.count(block));
        if (wrong != nullptr) found.store(wrong, std::memory_order_relaxed);
    });
    for (int64_t block = 1; block < blocks.number && low.bits > 0; ++block) {
        const int64_t begin = blocks.begin(block);
        if (begin % kPackBlock != 0) add_low_bits(low, begin / kPackBlock, levels);  // of two blocks
    }
    return found.load();
}

}  // namespace

const char* encode_levels(const int32_t* levels, int64_t count, const LevelCode& code, int threads,
                          std::vector<uint16_t>& words) {
    const char* const problem = problem_of(code);
    if (problem != nullptr) return problem;
    words.clear();
    if (count == 0) return nullptr;
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
        const bool narrow = levels[i] == static_cast<int16_t>(levels[i]);
        if (!narrow || (levels[i] - code.origin) >> code.low_bits != 0) possible.store(false);
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
    if (!code.frequencies.empty()) return decode_blocks(head, words + head.size, count, levels, threads);
    const LowBits low{words + head.size, code.low_bits, count};
    std::fill(levels, levels + count, code.origin);
    parallel_for(low.blocks(), threads, [&](int64_t block) { add_low_bits(low, block, levels); });
    return nullptr;
}

}  // namespace diffq_fast
