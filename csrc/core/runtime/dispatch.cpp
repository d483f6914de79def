#include "core/runtime/dispatch.h"

#include <atomic>

#include "core/isa/targets.h"
#include "core/runtime/cpu_features.h"

namespace diffq_fast {
namespace {

std::vector<const Kernels*> find_supported() {
    std::vector<const Kernels*> supported{scalar_kernels()};
    // What gives a set is compiled for its instructions, and may be called where the processor has them only.
    const auto add = [&](const Kernels* (*set)(), bool runs) {
        const Kernels* const kernels = runs ? set() : nullptr;
        if (kernels != nullptr) supported.push_back(kernels);
    };
    add(neon_kernels, true);  // part of the architecture
    add(avx2_kernels, cpu_has(DIFFQ_AVX2_FEATURES));
    add(avx512_kernels, cpu_has(DIFFQ_AVX512_FEATURES));
    add(avx512_vnni_kernels, cpu_has(DIFFQ_AVX512_VNNI_FEATURES));
    add(avx512_vbmi_kernels, cpu_has(DIFFQ_AVX512_VBMI_FEATURES));
    return supported;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> kernels{supported_kernels().back()};
    return kernels;
}

}  // namespace

const std::vector<const Kernels*>& supported_kernels() {
    static const std::vector<const Kernels*> supported = find_supported();
    return supported;
}

const Kernels& kernels() {
    return *chosen().load(std::memory_order_relaxed);
}

bool use_kernels(const std::string& name) {
    for (const Kernels* each : supported_kernels()) {
        if (name != each->name) continue;
        chosen().store(each);
        return true;
    }
    return false;
}

}  // namespace diffq_fast
