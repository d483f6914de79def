#include <string>

#include "core/isa/targets.h"
#include "core/runtime/cpu_features.h"
#include "core/runtime/dispatch.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

void unknown_names_are_features_that_no_processor_has() {
    CHECK(!cpu_has("") && !cpu_has("avx2,") && !cpu_has(",avx2") && !cpu_has("avx3"));
    CHECK(!cpu_has("popcnt,avx") || !cpu_has("popcnt,avx,avx51"));
}

// A set of kernels runs where the processor has what its file is compiled for, and nowhere else.
void kernels_are_chosen_by_what_they_are_compiled_for() {
    const auto runs = [](const std::string& name) {
        for (const Kernels* each : supported_kernels()) {
            if (name == each->name) return true;
        }
        return false;
    };
    CHECK(runs("scalar"));
    CHECK(runs("neon") == (neon_kernels() != nullptr));
    CHECK(runs("avx2") == (avx2_kernels() != nullptr && cpu_has(DIFFQ_AVX2_FEATURES)));
    CHECK(runs("avx512") == (avx512_kernels() != nullptr && cpu_has(DIFFQ_AVX512_FEATURES)));
    CHECK(runs("avx512_vnni") == (avx512_vnni_kernels() != nullptr && cpu_has(DIFFQ_AVX512_VNNI_FEATURES)));
    CHECK(runs("avx512_vbmi") == (avx512_vbmi_kernels() != nullptr && cpu_has(DIFFQ_AVX512_VBMI_FEATURES)));
}

#ifdef DIFFQ_X86_VECTORS
// Each feature by itself, as the compiler's own run time sees it.
#define CHECK_FEATURE(name) CHECK(cpu_has(name) == (__builtin_cpu_supports(name) != 0))

void features_are_those_that_the_compiler_finds() {
    CHECK_FEATURE("sse4.2");
    CHECK_FEATURE("popcnt");
    CHECK_FEATURE("avx");
#ifndef __clang__  // 14 does not know the name
    CHECK_FEATURE("f16c");
#endif
    CHECK_FEATURE("fma");
    CHECK_FEATURE("avx2");
    CHECK_FEATURE("bmi2");
    CHECK_FEATURE("avx512f");
    CHECK_FEATURE("avx512dq");
    CHECK_FEATURE("avx512bw");
    CHECK_FEATURE("avx512vl");
    CHECK_FEATURE("avx512vnni");
    CHECK_FEATURE("avx512vbmi");
}

DIFFQ_BEGIN_TARGET(DIFFQ_AVX2_FEATURES)
// Compilers that turn the target into macros say what it implies: nothing that is not asked for.
void targets_imply_nothing_that_is_not_asked_for() {
#if defined(__LZCNT__) || defined(__BMI__) || defined(__F16C__) || defined(__MOVBE__) || \
    defined(__PCLMUL__) || defined(__AVX512F__)
    CHECK(std::string(DIFFQ_AVX2_FEATURES).empty());
#endif
}
DIFFQ_END_TARGET
#else
void features_are_those_that_the_compiler_finds() {
    CHECK(!cpu_has("avx2"));
}
void targets_imply_nothing_that_is_not_asked_for() {}
#endif

}  // namespace

RUN_TESTS(unknown_names_are_features_that_no_processor_has, kernels_are_chosen_by_what_they_are_compiled_for,
          features_are_those_that_the_compiler_finds, targets_imply_nothing_that_is_not_asked_for)
