#include "core/runtime/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#define DIFFQ_FAST_X86 1
#endif

namespace diffq_fast {
namespace {

#ifdef DIFFQ_FAST_X86
struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf) {
    Registers found;
    __get_cpuid_count(leaf, 0, &found.eax, &found.ebx, &found.ecx, &found.edx);
    return found;
}

// The registers that the operating system saves when it switches threads: XCR0.
uint32_t saved_registers() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool all_of(uint32_t flags, uint32_t wanted) {
    return (flags & wanted) == wanted;
}

CpuFeatures detect() {
    CpuFeatures found;
    const Registers first = cpuid(1), seventh = cpuid(7);
    constexpr uint32_t kFma = 1u << 12, kOsXsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
    if (!all_of(first.ecx, kOsXsave)) return found;
    constexpr uint32_t kYmm = 0x06, kZmm = 0xE6;  // SSE and AVX state; with masks and both halves of ZMM
    const uint32_t saved = saved_registers();
    found.avx2 =
        all_of(saved, kYmm) && all_of(first.ecx, kFma | kAvx | kF16c) && all_of(seventh.ebx, 1u << 5);
    constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
    found.avx512 = found.avx2 && all_of(saved, kZmm) && all_of(seventh.ebx, kF | kDq | kBw | kVl);
    return found;
}
#else
CpuFeatures detect() {
    CpuFeatures found;
#if defined(__aarch64__) || defined(_M_ARM64)
    found.neon = true;  // part of the architecture
#endif
    return found;
}
#endif

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures found = detect();
    return found;
}

}  // namespace diffq_fast
