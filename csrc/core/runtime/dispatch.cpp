#include "core/runtime/dispatch.h"

#include <atomic>

#include "core/runtime/cpu_features.h"

namespace diffq_fast {
namespace {

std::vector<const Kernels*> find_supported() {
    const CpuFeatures& cpu = cpu_features();
    std::vector<const Kernels*> found{scalar_kernels()};
    const auto add = [&](bool runs, const Kernels* kernels) {
        if (runs && kernels != nullptr) found.push_back(kernels);
    };
    add(cpu.neon, neon_kernels());
    add(cpu.avx2, avx2_kernels());
    add(cpu.avx512, avx512_kernels());
    return found;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> kernels{supported_kernels().back()};
    return kernels;
}

}  // namespace

const std::vector<const Kernels*>& supported_kernels() {
    static const std::vector<const Kernels*> found = find_supported();
    return found;
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
