#include "core/runtime/cpu_features.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>

#include <cstdint>
#include <cstring>
#define DIFFQ_FAST_X86 1
#endif

namespace diffq_fast {

#ifdef DIFFQ_FAST_X86
namespace {

enum Register { ebx = 1, ecx = 2 };

// The registers that the operating system has to save when it switches threads, as bits of XCR0: none beyond
// the base, SSE's and AVX's, or these with the masks and both halves of ZMM.
constexpr uint32_t kBase = 0, kYmm = 0x06, kZmm = 0xE6;

// Where CPUID tells of a feature, and which saved registers it needs.
struct Feature {
    const char* name;
    uint32_t leaf;
    Register in;
    int bit;
    uint32_t saved;
};

constexpr Feature kFeatures[] = {
    {"sse4.2", 1, ecx, 20, kBase},   {"popcnt", 1, ecx, 23, kBase},  {"avx", 1, ecx, 28, kYmm},
    {"f16c", 1, ecx, 29, kYmm},      {"fma", 1, ecx, 12, kYmm},      {"avx2", 7, ebx, 5, kYmm},
    {"bmi2", 7, ebx, 8, kBase},      {"avx512f", 7, ebx, 16, kZmm},  {"avx512dq", 7, ebx, 17, kZmm},
    {"avx512bw", 7, ebx, 30, kZmm},  {"avx512vl", 7, ebx, 31, kZmm}, {"avx512vnni", 7, ecx, 11, kZmm},
    {"avx512vbmi", 7, ecx, 1, kZmm},
};

bool cpuid_has(const Feature& feature) {
    uint32_t registers[4] = {};
    __get_cpuid_count(feature.leaf, 0, &registers[0], &registers[1], &registers[2], &registers[3]);
    return registers[feature.in] >> feature.bit & 1;
}

// XCR0; nothing is saved where the operating system does not let programs read it.
uint32_t saved_registers() {
    constexpr Feature kOsxsave{"osxsave", 1, ecx, 27, kBase};
    if (!cpuid_has(kOsxsave)) return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool has(const char* name, size_t length) {
    static const uint32_t saved = saved_registers();
    for (const Feature& feature : kFeatures) {
        if (std::strlen(feature.name) != length || std::strncmp(feature.name, name, length) != 0) continue;
        return (saved & feature.saved) == feature.saved && cpuid_has(feature);
    }
    return false;
}

}  // namespace

bool cpu_has(const char* features) {
    for (;;) {
        const size_t length = std::strcspn(features, ",");
        if (!has(features, length)) return false;
        if (features[length] == '\0') return true;
        features += length + 1;
    }
}
#else
bool cpu_has(const char*) {
    return false;
}
#endif

}  // namespace diffq_fast
