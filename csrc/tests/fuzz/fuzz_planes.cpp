// Any planes, values and shapes: unpacked and packed by their definition on every instruction set, without
// touching memory that is not their own.
#include "core/pack/planes.h"
#include "tests/fuzz/fuzz_input.h"

using namespace diffq_fast;

namespace {

bool bit_of(const PlaneShape& shape, const std::vector<uint8_t>& words, int64_t element, int bit) {
    const int64_t block = shape.rows * shape.columns, inside = element % block, row = inside / shape.columns;
    const int64_t word = (element / block * shape.bits + bit) * shape.columns + inside % shape.columns;
    return words[static_cast<size_t>(word * shape.rows / 8 + row / 8)] >> row % 8 & 1;
}

// An element past the values counts as zero.
int64_t value_at(const std::vector<uint8_t>& values, int value_bytes, int64_t element) {
    const size_t begin = static_cast<size_t>(element * value_bytes);
    if (begin >= values.size()) return 0;
    uint64_t bits = 0;
    std::memcpy(&bits, values.data() + begin, static_cast<size_t>(value_bytes));
    const int spare = 64 - 8 * value_bytes;
    return value_bytes == 1 ? static_cast<int64_t>(bits) : static_cast<int64_t>(bits << spare) >> spare;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input(data, size);
    use_kernels(input.instruction_set());
    const uint8_t choices = input.byte();
    const int rows = 8 << choices % 4, value_bytes = 1 << choices / 4 % 4;
    const int bits = input.byte() % (value_bytes == 1 ? 17 : 20);  // see planes.h
    const int64_t columns = 1 + input.byte() % 70, count = input.count();
    const int64_t block = rows * columns, blocks = (count + block - 1) / block;
    const PlaneShape shape{count, bits, rows, columns};
    const auto words = input.items<uint8_t>(blocks * bits * columns * rows / 8);
    if (choices & 64) {
        std::vector<int16_t> values(static_cast<size_t>(count));
        unpack_planes(shape, words.data(), values.data(), 1);
        for (int64_t i = 0; i < count; ++i) {
            uint32_t expected = 0;
            for (int bit = 0; bit < bits && bit < 16; ++bit)
                expected |= static_cast<uint32_t>(bit_of(shape, words, i, bit)) << bit;
            require(values[static_cast<size_t>(i)] == static_cast<int16_t>(expected));
        }
        return 0;
    }
    const auto values = input.items<uint8_t>(count * value_bytes);
    std::vector<uint8_t> packed(words.size(), 0xA5);
    const uint64_t seen = pack_planes(shape, values.data(), value_bytes, packed.data(), 1);
    uint64_t joined = 0;
    for (int64_t i = 0; i < count; ++i) joined |= static_cast<uint64_t>(value_at(values, value_bytes, i));
    require(seen == (bits == 0 ? 0 : joined));
    // Behind the values as many elements as half of them, not all of a block: those cost as much.
    for (int64_t i = 0; i < std::min(blocks * block, count + count / 2 + 8); ++i) {
        for (int bit = 0; bit < bits; ++bit)
            require(bit_of(shape, packed, i, bit) == (value_at(values, value_bytes, i) >> bit & 1));
    }
    return 0;
}
