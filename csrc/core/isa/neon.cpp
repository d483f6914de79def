// NEON, which every 64-bit Arm processor has: what differs from the other instruction sets.
#include "core/isa/kernels.h"
#include "core/isa/targets.h"
#include "core/isa/word_orders.h"
#include "core/runtime/memory.h"

#ifdef DIFFQ_NEON_VECTORS
#include <arm_neon.h>

#include <algorithm>
#include <limits>

namespace diffq_fast {
namespace neon {

constexpr const char* kName = "neon";
constexpr int kLanes = 4;

#include "core/simd/vectors.h"

// The low halves of 64-bit lanes times a constant.
DIFFQ_INLINE Wide mul_wide(Wide a, uint32_t factor) {
    return (Wide)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(factor));
}
DIFFQ_INLINE Uint widen(Half value) {
    return (Uint)vmovl_u16((uint16x4_t)value);
}
DIFFQ_INLINE Doubles doubles_of(FewFloats value) {
    return (Doubles)vcvt_f64_f32((float32x2_t)value);
}
DIFFQ_INLINE Float multiply_add(Float a, Float b, Float c) {
    return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
DIFFQ_INLINE Float positive_root(Float a) {
    return (Float)vsqrtq_f32((float32x4_t)a);
}
// The second one where an argument is NaN.
DIFFQ_INLINE Float lesser(Float a, Float b) {
    return a < b ? a : b;
}
DIFFQ_INLINE Float greater(Float a, Float b) {
    return a > b ? a : b;
}
DIFFQ_INLINE Uint larger(Uint a, Uint b) {
    return (Uint)vmaxq_u32((uint32x4_t)a, (uint32x4_t)b);
}
// table: 16 floats.
DIFFQ_INLINE Float look_up(const float* table, Uint index) {
    return Float{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
DIFFQ_INLINE bool any_bit(Uint value) {
    return vmaxvq_u32((uint32x4_t)value) != 0;
}
// table: 4096 slots.
DIFFQ_INLINE Uint look_up_slots(const uint32_t* table, Uint index) {
    return Uint{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
// Each state below 2^16 takes the next word: words go to the lanes that want one, in order.
DIFFQ_INLINE Uint take_words(Uint state, const uint16_t*& words) {
    const uint32x4_t low = vcltq_u32((uint32x4_t)state, vdupq_n_u32(1 << 16));
    const uint32x4_t places = {1, 2, 4, 8};
    const uint32_t wanted = vaddvq_u32(vandq_u32(low, places));
    const uint8x8_t next =
        vtbl1_u8(vld1_u8(reinterpret_cast<const uint8_t*>(words)), vld1_u8(kWordOrders4.bytes[wanted]));
    const uint32x4_t taken =
        vorrq_u32(vshlq_n_u32((uint32x4_t)state, 16), vmovl_u16(vreinterpret_u16_u8(next)));
    words += kWordOrders4.counts[wanted];
    return (Uint)vbslq_u32(low, taken, (uint32x4_t)state);
}
DIFFQ_INLINE void store_past_cache(Float value, float* to) {
    store(value, to);
}

static void finish_writes() {}

constexpr int kTileVectors = 6;
DIFFQ_INLINE FourFloats sums_of_four(const Float (&sums)[4]) {
    const float32x4_t first = vpaddq_f32((float32x4_t)sums[0], (float32x4_t)sums[1]);
    const float32x4_t second = vpaddq_f32((float32x4_t)sums[2], (float32x4_t)sums[3]);
    return (FourFloats)vpaddq_f32(first, second);
}

// clang-format off
#include "core/simd/algorithms.h"
#include "core/simd/segments.h"
#include "core/simd/narrow_levels.h"
#include "core/simd/narrow_rows.h"
#include "core/scalar/pieces.h"
#include "core/simd/pieces.h"
#include "core/simd/narrow_products.h"
#include "core/simd/four_vectors.h"
#include "core/simd/narrow_panels.h"
#include "core/simd/float_products.h"
#include "core/simd/table.h"
// clang-format on

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
