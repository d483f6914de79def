// Any bytes as a packed file, as they are or with right checksums: refused, or read without touching memory
// that is not their own, in memory that their number bounds.
#include "tests/fuzz/fuzz_input.h"
#include "tests/interface/reading.h"
#include "tests/sealed_file.h"

using namespace diffq_fast;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const uint8_t choices = data[size - 1];  // behind the file, so that files are seeds
    FileBytes bytes(data, data + size - 1);
    if ((choices & 1) == 0) seal(bytes);
    CountedMemory memory;
    constexpr size_t kMostElements = 1 << 14;
    const Reading reading =
        read_everything(bytes.data(), bytes.size(), memory, (choices & 2) != 0, kMostElements);
    require(reading.status == DIFFQ_FAST_OK || reading.status == DIFFQ_FAST_BAD_FILE);
    require(memory.used == 0 && memory.most <= 20 * bytes.size() + (size_t{64} << 10) + 32 * kMostElements);
    return 0;
}
