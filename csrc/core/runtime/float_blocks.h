// Blocks of weights of any dtype as float32.
#pragma once

#include <cstring>

#include "core/runtime/dispatch.h"
#include "core/runtime/groups.h"

namespace diffq_fast {

// The span's elements as float32: in `buffer`, or where they lie.
inline const float* load_floats(const Floats& weight, Span span, float* buffer) {
    if (weight.dtype == DType::float32) return static_cast<const float*>(weight.data) + span.begin;
    const auto* const halves = static_cast<const uint16_t*>(weight.data) + span.begin;
    kernels().floats_from_halves(halves, weight.dtype, span.count, buffer);
    return buffer;
}

inline void store_floats(const float* values, const Floats& weight, Span span) {
    if (weight.dtype == DType::float32) {
        std::memcpy(static_cast<float*>(weight.data) + span.begin, values,
                    static_cast<size_t>(span.count) * sizeof(float));
    } else {
        auto* const halves = static_cast<uint16_t*>(weight.data) + span.begin;
        kernels().halves_from_floats(values, weight.dtype, span.count, halves);
    }
}

// Where float32 results of a span go: straight to the weight, or, if it has another dtype, to `buffer`, from
// which store_floats() takes them.
inline float* place_for_floats(const Floats& weight, Span span, float* buffer) {
    return weight.dtype == DType::float32 ? static_cast<float*>(weight.data) + span.begin : buffer;
}

}  // namespace diffq_fast
