#include "core/pack/planes.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

template <typename Word>
void check_layout(int64_t count, int bits, int64_t columns) {
    constexpr int kWordBits = static_cast<int>(sizeof(Word)) * 8;
    const int64_t block = kWordBits * columns, blocks = (count + block - 1) / block;
    std::mt19937 generator(static_cast<uint32_t>(count));
    std::vector<int16_t> values(static_cast<size_t>(count)), back(values);
    for (int16_t& value : values) value = static_cast<int16_t>(generator() & ((1u << bits) - 1));
    std::vector<Word> words(static_cast<size_t>(blocks * bits * columns)), again(words);
    const PlaneShape shape{count, bits, kWordBits, columns};
    uint64_t joined = 0;
    for (const int16_t value : values) joined |= static_cast<uint64_t>(value);
    CHECK(pack_planes(shape, values.data(), 2, words.data(), 1) == joined);
    CHECK(pack_planes(shape, values.data(), 2, again.data(), 3) == joined);
    CHECK(words == again);
    for (int64_t i = 0; i < blocks * block; i += 7) {
        const int64_t k = i / block, row = i % block / columns, column = i % columns;
        for (int bit = 0; bit < bits; ++bit) {
            const Word word = words[static_cast<size_t>((k * bits + bit) * columns + column)];
            const bool set = i < count && (values[static_cast<size_t>(i)] >> bit & 1);
            CHECK((word >> row & 1) == (set ? 1u : 0u));
        }
    }
    unpack_planes(shape, words.data(), back.data(), 2);
    CHECK(back == values);
}

void every_word_size_and_count_round_trips() {
    for (const int64_t count : kAwkwardCounts) {
        for (const int bits : {1, 2, 8, 9, 15, 16, 20}) {
            for (const int64_t columns : {int64_t{1}, int64_t{32}, int64_t{33}, int64_t{500}}) {
                check_layout<uint8_t>(count, bits, columns);
                check_layout<uint16_t>(count, bits, columns);
                check_layout<uint32_t>(count, bits, columns);
                check_layout<uint64_t>(count, bits, columns);
            }
        }
    }
}

// More planes than a value has bits: its sign goes on.
template <typename Value>
void check_planes_above(int64_t value) {
    std::vector<Value> values(70, static_cast<Value>(value));
    std::vector<uint64_t> words(2 * 20 * 32);
    pack_planes({70, 20, 64, 32}, values.data(), sizeof(Value), words.data(), 1);
    for (int64_t i = 0; i < 70; ++i) {
        for (int bit = 0; bit < 20; ++bit) {
            const uint64_t word = words[static_cast<size_t>(bit * 32 + i % 32)];
            CHECK((word >> (i / 32) & 1) == static_cast<uint64_t>(value >> bit & 1));
        }
    }
}

void planes_above_a_values_bits_hold_its_sign() {
    check_planes_above<int16_t>(-2);
    check_planes_above<int16_t>(0x7FFF);
    check_planes_above<int32_t>(-70000);
    check_planes_above<int64_t>(0xFFFFE);
}

// One value with one bit, wherever it stands, is seen whole, whatever planes are asked for.
template <typename Value>
void check_seen(int64_t count) {
    std::vector<Value> values(static_cast<size_t>(count));
    std::vector<uint64_t> words(static_cast<size_t>((count / 64 + 64) * 17));
    for (int bit = 0; bit < static_cast<int>(sizeof(Value)) * 8; ++bit) {
        const size_t place = static_cast<size_t>(bit * 977 % count);
        const Value value =
            static_cast<Value>(uint64_t{1} << bit);  // the highest one of a signed value: -2^bit
        values[place] = value;
        for (const int bits : {1, 8, 16}) {
            const uint64_t seen =
                pack_planes({count, bits, 64, 32}, values.data(), sizeof(Value), words.data(), 3);
            CHECK(seen == static_cast<uint64_t>(static_cast<int64_t>(value)));
        }
        values[place] = 0;
    }
}

void every_bit_of_every_value_is_seen() {
    for (const int64_t count : {1, 33, 2047, 2048, 40000}) {
        check_seen<uint8_t>(count);
        check_seen<int16_t>(count);
        check_seen<int32_t>(count);
        check_seen<int64_t>(count);
    }
}

void no_planes_and_no_columns_write_nothing() {
    const std::vector<int64_t> values = {1, 2, 3};
    CHECK(pack_planes({3, 0, 64, 32}, values.data(), 8, nullptr, 1) == 0);
    CHECK(pack_planes({3, 4, 64, 0}, values.data(), 8, nullptr, 1) == 0);
    pack_planes({300, 0, 8, 70}, std::vector<int64_t>(300, 1).data(), 8, nullptr, 1);  // several tiles
    std::vector<int16_t> back(300, 9);
    unpack_planes({300, 0, 8, 70}, nullptr, back.data(), 1);
    CHECK(back == std::vector<int16_t>(300, 0));
    // Without blocks, planes of any number of columns take no memory.
    CHECK(pack_planes({0, 3, 64, int64_t{1} << 60}, values.data(), 8, nullptr, 1) == 0);
    unpack_planes({0, 3, 64, int64_t{1} << 60}, nullptr, back.data(), 1);
}

}  // namespace

RUN_TESTS(every_word_size_and_count_round_trips, planes_above_a_values_bits_hold_its_sign,
          every_bit_of_every_value_is_seen, no_planes_and_no_columns_write_nothing)
