// NEON, which every 64-bit Arm processor has: what differs from the other instruction sets.
#include "core/isa/kernels.h"
#include "core/runtime/memory.h"

#if defined(__aarch64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12))
#include <arm_neon.h>

namespace diffq_fast {
namespace neon {

constexpr const char* kName = "neon";
constexpr int kLanes = 4;

#include "core/simd/words.h"

// The low halves of 64-bit lanes times a constant.
DIFFQ_WORD Wide mul_wide(Wide a, uint32_t factor) {
    return (Wide)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(factor));
}
DIFFQ_WORD Word widen(Half value) {
    return (Word)vmovl_u16((uint16x4_t)value);
}
DIFFQ_WORD Doubles doubles_of(FewFloats value) {
    return (Doubles)vcvt_f64_f32((float32x2_t)value);
}
DIFFQ_WORD Float multiply_add(Float a, Float b, Float c) {
    return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
DIFFQ_WORD Float positive_root(Float a) {
    return (Float)vsqrtq_f32((float32x4_t)a);
}
// The second one where an argument is NaN.
DIFFQ_WORD Float lesser(Float a, Float b) {
    return a < b ? a : b;
}
DIFFQ_WORD Float greater(Float a, Float b) {
    return a > b ? a : b;
}
DIFFQ_WORD Word larger(Word a, Word b) {
    return (Word)vmaxq_u32((uint32x4_t)a, (uint32x4_t)b);
}
// table: 16 floats.
DIFFQ_WORD Float look_up(const float* table, Word index) {
    return Float{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
DIFFQ_WORD void store_past_cache(Float value, float* to) {
    store(value, to);
}

static void finish_writes() {}

#include "core/simd/algorithms.h"

}  // namespace neon

const Kernels* neon_kernels() {
    return &neon::kKernels;
}

}  // namespace diffq_fast

#else

namespace diffq_fast {

const Kernels* neon_kernels() {
    return nullptr;
}

}  // namespace diffq_fast

#endif
