// The kernels of core/isa/kernels.h that reading needs, in WebAssembly's vectors of 128 bits. Those that
// train and pack are not linked.
#include "core/isa/kernels.h"

#include <wasm_simd128.h>

#include <algorithm>
#include <cstring>

#include "core/isa/word_orders.h"
#include "core/runtime/dispatch.h"
#include "core/runtime/memory.h"

namespace diffq_fast {
namespace scalar {

#include "core/scalar/vectors.h"
#include "core/scalar/words.h"
#undef DIFFQ_INLINE
#undef DIFFQ_MEMBER

}  // namespace scalar

namespace simd128 {

constexpr int kLanes = 4;

#include "core/simd/vectors.h"

DIFFQ_INLINE Float multiply_add(Float a, Float b, Float c) {
    return a * b + c;
}
// The second one where an argument is NaN.
DIFFQ_INLINE Float lesser(Float a, Float b) {
    return (Float)wasm_f32x4_pmin((v128_t)b, (v128_t)a);
}
DIFFQ_INLINE Float greater(Float a, Float b) {
    return (Float)wasm_f32x4_pmax((v128_t)b, (v128_t)a);
}
DIFFQ_INLINE bool any_bit(Uint value) {
    return wasm_v128_any_true((v128_t)value);
}
// table: 4096 slots.
DIFFQ_INLINE Uint look_up_slots(const uint32_t* table, Uint index) {
    return Uint{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
// Each state below 2^16 takes the next word: words go to the lanes that want one, in order.
DIFFQ_INLINE Uint take_words(Uint state, const uint16_t*& words) {
    const v128_t low = wasm_u32x4_lt((v128_t)state, wasm_i32x4_const_splat(1 << 16));
    const auto wanted = static_cast<uint32_t>(wasm_i32x4_bitmask(low));
    const v128_t next =
        wasm_i8x16_swizzle(wasm_v128_load64_zero(words), wasm_v128_load64_zero(kWordOrders4.bytes[wanted]));
    const v128_t taken = wasm_v128_or(wasm_i32x4_shl((v128_t)state, 16), wasm_u32x4_extend_low_u16x8(next));
    words += kWordOrders4.counts[wanted];
    return (Uint)wasm_v128_bitselect(taken, (v128_t)state, low);
}
DIFFQ_INLINE void store_past_cache(Float value, float* to) {
    store(value, to);
}
static void finish_writes() {}

// clang-format off
#include "core/simd/past_cache.h"
#include "core/simd/elementary.h"
#include "core/simd/floats.h"
#include "core/simd/quantize.h"
#include "core/simd/words.h"
#include "core/simd/coding.h"
#include "core/scalar/row_levels.h"
#include "core/scalar/packed_rows.h"
#include "core/scalar/row_products.h"
#include "wasm/packed_rows.h"
// clang-format on

// In double: eight lanes by i % 8, then pairwise.
static double sum(const float* values, int64_t count) {
    double lanes[8] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i % 8] += values[i];
    for (int half = 4; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

}  // namespace simd128

namespace {

constexpr Kernels reading_kernels() {
    Kernels made{};
    made.name = "simd128";
    made.finish_writes = simd128::finish_writes;
    made.sum = simd128::sum;
    made.floats_from_halves = simd128::floats_from_halves;
    made.halves_from_floats = simd128::halves_from_floats;
    made.dequantize = simd128::dequantize;
    made.unpack_words = simd128::unpack_words;
    made.decode_rows = simd128::decode_rows;
    made.multiply_row = simd128::multiply_row;
    made.row_vectors = 4;
    made.unpack_row = simd128::unpack_row;
    return made;
}

constexpr Kernels words_of_fewer_lanes() {
    Kernels made{};
    made.unpack_words = scalar::unpack_words;
    return made;
}

constexpr Kernels kReading = reading_kernels(), kFewer = words_of_fewer_lanes();

}  // namespace

const Kernels* scalar_kernels() {
    return &kFewer;
}

const Kernels& kernels() {
    return kReading;
}

}  // namespace diffq_fast
