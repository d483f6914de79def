// For each set of lanes that want a word: which word of those that follow each of them gets.
//
//   wanted 0b10010110 (lanes 1, 2, 4, 7):  order 0 0 1 2 2 3 3 3;  what the other lanes get does not matter
#pragma once

#include <cstdint>

namespace diffq_fast {

struct WordOrders8 {
    uint8_t orders[256][8];
};

constexpr WordOrders8 make_word_orders_8() {
    WordOrders8 made{};
    for (int wanted = 0; wanted < 256; ++wanted) {
        for (int lane = 0, before = 0; lane < 8; ++lane) {
            made.orders[wanted][lane] = static_cast<uint8_t>(before < 8 ? before : 7);
            before += wanted >> lane & 1;
        }
    }
    return made;
}

// As bytes of 16-bit words, and how many words are taken.
struct WordOrders4 {
    uint8_t bytes[16][8];
    uint8_t counts[16];
};

constexpr WordOrders4 make_word_orders_4() {
    WordOrders4 made{};
    for (int wanted = 0; wanted < 16; ++wanted) {
        int before = 0;
        for (int lane = 0; lane < 4; ++lane) {
            made.bytes[wanted][2 * lane] = static_cast<uint8_t>(2 * before);
            made.bytes[wanted][2 * lane + 1] = static_cast<uint8_t>(2 * before + 1);
            before += wanted >> lane & 1;
        }
        made.counts[wanted] = static_cast<uint8_t>(before);
    }
    return made;
}

inline constexpr WordOrders8 kWordOrders8 = make_word_orders_8();
inline constexpr WordOrders4 kWordOrders4 = make_word_orders_4();

}  // namespace diffq_fast
