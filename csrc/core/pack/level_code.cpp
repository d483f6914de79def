#include "core/pack/level_code.h"

#include <numeric>

namespace diffq_fast {
namespace {

constexpr int kEscapeFlag = 32, kBlockShift = 6;

class HeadWriter {
  public:
    void byte(uint32_t value) {
        if (bytes_ % 2 == 0) {
            words_.push_back(static_cast<uint16_t>(value));
        } else {
            words_.back() = static_cast<uint16_t>(words_.back() | value << 8);
        }
        ++bytes_;
    }
    void number(uint64_t value) {
        for (; value > 127; value >>= 7) byte(static_cast<uint32_t>(value & 127) | 128);
        byte(static_cast<uint32_t>(value));
    }
    std::vector<uint16_t> words() && { return std::move(words_); }

  private:
    std::vector<uint16_t> words_;
    int64_t bytes_ = 0;
};

class HeadReader {
  public:
    HeadReader(const uint16_t* words, int64_t word_count) : words_(words), bytes_(2 * word_count) {}

    // The next byte; 128, which continues a number, past the end.
    uint32_t byte() {
        if (place_ >= bytes_) {
            cut_off_ = true;
            return 128;
        }
        const uint32_t word = words_[place_ / 2];
        return place_++ % 2 == 0 ? word & 255 : word >> 8;
    }
    // At most 28 bits; an error is remembered.
    int64_t number() {
        int64_t value = 0;
        for (int shift = 0; shift < 28; shift += 7) {
            const uint32_t next = byte();
            value |= static_cast<int64_t>(next & 127) << shift;
            if (next >= 128) continue;
            if (next == 0 && shift > 0) long_ = true;
            return value;
        }
        cut_off_ = true;
        return 0;
    }
    bool padded() { return place_ % 2 == 0 || byte() == 0; }
    int64_t words() const { return place_ / 2; }
    int64_t bytes() const { return bytes_; }
    const char* problem() const {
        if (cut_off_) return "the head of a stream of levels is cut off, or a number of it is too large";
        return long_ ? "a number is written with more bytes than it needs" : nullptr;
    }

  private:
    const uint16_t* words_;
    int64_t bytes_, place_ = 0;
    bool cut_off_ = false, long_ = false;
};

const char* read_code(HeadReader& reader, LevelCode& code) {
    const uint32_t flags = reader.byte();
    code.escape = (flags & kEscapeFlag) != 0;
    code.low_bits = static_cast<int>(flags % kEscapeFlag);
    code.block_bits = kLeastBlockBits + 2 * static_cast<int>((flags & 255) >> kBlockShift);
    const int64_t zigzag = reader.number(), symbols = reader.number();
    if (reader.problem() != nullptr) return reader.problem();
    if (zigzag > 65535 || symbols < 1 || symbols > kMostSymbols) return "an impossible table of symbols";
    code.origin = static_cast<int32_t>(zigzag >> 1 ^ -(zigzag & 1));
    code.frequencies.clear();
    for (int64_t i = 0; symbols > 1 && i < symbols; ++i) {
        const int64_t frequency = reader.number();
        if (frequency >= kSlots) return "an impossible frequency";
        code.frequencies.push_back(static_cast<uint16_t>(frequency));
    }
    return reader.problem() != nullptr ? reader.problem() : problem_of(code);
}

}  // namespace

int64_t stream_size(const StreamHead& head, int64_t count) {
    int64_t size = head.size + low_words(count, head.code.low_bits);
    const CodedBlocks blocks(count, head.code.block_bits);
    for (size_t block = 0; block < head.words.size(); ++block) {
        const int lanes = coded_lanes(blocks.count(static_cast<int64_t>(block)), head.code.block_bits);
        size += 2 * lanes + head.words[block] + head.escapes[block];
    }
    return size;
}

const char* problem_of(const LevelCode& code) {
    const auto symbols = static_cast<int64_t>(code.frequencies.size());
    if (code.block_bits < kLeastBlockBits || code.block_bits > kMostBlockBits || code.block_bits % 2 == 0 ||
        (symbols == 0 && code.block_bits != kLeastBlockBits))
        return "impossible blocks";
    if (code.low_bits < 0 || code.low_bits > kMaxWidth) return "an impossible number of low bits";
    if (symbols == 1 || symbols > kMostSymbols || (code.escape && symbols == 0))
        return "an impossible number of symbols";
    if (code.origin < -32768 || code.origin + (int64_t{code.known()} << code.low_bits) > 32768)
        return "levels beyond 16 bits";
    if (symbols == 0) return nullptr;
    int64_t sum = 0;
    for (const uint16_t frequency : code.frequencies) {
        if (frequency >= kSlots) return "an impossible frequency";
        sum += frequency;
    }
    if (sum != kSlots) return "frequencies with a wrong sum";
    return code.escape && code.frequencies.back() == 0 ? "an escape that never occurs" : nullptr;
}

std::vector<uint16_t> write_head(const StreamHead& head) {
    HeadWriter writer;
    const LevelCode& code = head.code;
    const int blocks = (code.block_bits - kLeastBlockBits) / 2;
    writer.byte(
        static_cast<uint32_t>(code.low_bits | (code.escape ? kEscapeFlag : 0) | blocks << kBlockShift));
    const int64_t origin = code.origin;
    writer.number(static_cast<uint64_t>(origin < 0 ? -2 * origin - 1 : 2 * origin));
    writer.number(std::max<uint64_t>(code.frequencies.size(), 1));
    for (const uint16_t frequency : code.frequencies) writer.number(frequency);
    for (size_t block = 0; block < head.words.size(); ++block) {
        writer.number(static_cast<uint64_t>(head.words[block]));
        if (code.escape) writer.number(static_cast<uint64_t>(head.escapes[block]));
    }
    return std::move(writer).words();
}

const char* read_head(const uint16_t* words, int64_t word_count, int64_t count, StreamHead& head) {
    HeadReader reader(words, word_count);
    const char* const problem = read_code(reader, head.code);
    if (problem != nullptr) return problem;
    const CodedBlocks blocks(count, head.code.block_bits);
    const bool coded = !head.code.frequencies.empty();
    if (coded && blocks.number > reader.bytes()) return "a stream of levels is cut off";
    head.words.clear();
    head.escapes.clear();
    for (int64_t block = 0; coded && block < blocks.number; ++block) {
        const int64_t values = blocks.count(block), its_words = reader.number();
        const int64_t its_escapes = head.code.escape ? reader.number() : 0;
        if (its_words > values || its_escapes > values) return "a block of levels is longer than its levels";
        head.words.push_back(its_words);
        head.escapes.push_back(its_escapes);
    }
    if (reader.problem() != nullptr) return reader.problem();
    if (!reader.padded()) return "the head of a stream of levels does not end with a zero";
    head.size = reader.words();
    // The low bits' size is compared by their number first: it could overflow.
    if (head.code.low_bits > 0 && count / kBlockRows > word_count) return "a stream of levels is cut off";
    return stream_size(head, count) > word_count ? "a stream of levels is cut off" : nullptr;
}

}  // namespace diffq_fast
