// The whole of the test framework: CHECK counts and prints failures, RUN_TESTS makes main().
#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

inline int failures = 0;

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            ++failures;                                                         \
            std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                       \
    } while (false)

#define RUN_TESTS(...)                                        \
    int main() {                                              \
        for (void (*test)() : {__VA_ARGS__}) test();          \
        std::printf("%s: %d failures\n", __FILE__, failures); \
        return failures != 0;                                 \
    }

// On and beside every boundary of Philox calls, lanes and blocks.
inline const std::vector<int64_t> kAwkwardCounts = {0,  1,  7,    8,    9,    31,   32,   33,   63,
                                                    64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000};

inline std::vector<float> random_floats(int64_t count, uint32_t seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(generator);
    return values;
}
