// Any planes and shapes: unpacked without touching memory that is not their own, on every instruction set
// alike, and what was unpacked packs to the same planes.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/dispatch.h"
#include "core/planes.h"

using namespace diffq_fast;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 5) return 0;
    const int rows = 8 << data[0] % 4, nbits = 1 + data[1] % 15;
    const int64_t columns = 1 + data[2] % 70, count = data[3] | (data[4] & 15) << 8;
    data += 5;
    size -= 5;
    const int64_t block = rows * columns, blocks = (count + block - 1) / block;
    // Vectors of the exact sizes, so that a sanitizer sees every step over their ends.
    std::vector<uint8_t> words(static_cast<size_t>(blocks * nbits * columns * rows / 8));
    for (size_t i = 0; i < words.size(); ++i) words[i] = size > 0 ? data[i % size] : 0;
    const PlaneShape shape{count, nbits, rows, columns};
    std::vector<int16_t> first;
    for (const Kernels* kernels : supported_kernels()) {
        use_kernels(kernels->name);
        std::vector<int16_t> values(static_cast<size_t>(count)), again(values);
        unpack_planes(shape, words.data(), values.data(), 1);
        std::vector<uint8_t> packed(words.size());
        pack_planes(shape, values.data(), 2, packed.data(), 1);
        unpack_planes(shape, packed.data(), again.data(), 1);
        if (again != values) std::abort();
        if (kernels == supported_kernels().front()) first = values;
        if (values != first) std::abort();
    }
    return 0;
}
