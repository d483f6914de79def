// Feeds a fuzz target pseudo-random inputs where libFuzzer (which comes with clang) is not to be had.
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main() {
    std::mt19937 generator(1);
    for (int run = 0; run < 5000; ++run) {
        std::vector<uint8_t> input(generator() % 6000);
        for (uint8_t& byte : input) byte = static_cast<uint8_t>(generator());
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    return 0;
}
