// Blocks of weights of any dtype as float32.
#pragma once

#include <cstring>

#include "core/runtime/dispatch.h"

namespace diffq_fast {

// The `count` elements from element `first` of `data` as float32: in `buffer`, or where they lie.
inline const float* load_floats(const void* data, DType dtype, int64_t first, int64_t count, float* buffer) {
    if (dtype == DType::float32) return static_cast<const float*>(data) + first;
    kernels().floats_from_halves(static_cast<const uint16_t*>(data) + first, dtype, count, buffer);
    return buffer;
}

inline void store_floats(const float* values, void* data, DType dtype, int64_t first, int64_t count) {
    if (dtype == DType::float32) {
        std::memcpy(static_cast<float*>(data) + first, values, static_cast<size_t>(count) * sizeof(float));
    } else {
        kernels().halves_from_floats(values, dtype, count, static_cast<uint16_t*>(data) + first);
    }
}

}  // namespace diffq_fast
