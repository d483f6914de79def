// Products of packed rows with some vectors in floats: a few rows are unpacked at a time, which stay in the
// cache, and multiplied with all vectors.
#pragma once

#include "core/infer/packed_rows.h"

namespace diffq_fast {

// Whether the kernels in use multiply unpacked rows.
bool has_float_products();

// multiply_rows() with Activations::exact, where has_float_products(). Memory: kUnpackedBytes for each of
// some tasks, or four rows if they are more.
bool multiply_unpacked(const PackedRows& rows, const float* vectors, int64_t count, float* results,
                       int threads);

constexpr int64_t kUnpackedBytes = 1 << 18;  // which are to stay in the second-level cache, beside vectors

}  // namespace diffq_fast
