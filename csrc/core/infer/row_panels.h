// Products of packed rows with many vectors in whole numbers: some rows are unpacked to bytes, which stay in
// the cache, and multiplied with all vectors.
#pragma once

#include "core/infer/packed_rows.h"

namespace diffq_fast {

// Whether rows can be multiplied so: segments are whole ones of 32, or one for a row.
bool fit_panels(const PackedRows& rows);

// Whether the kernels in use do that faster than products of floats are made.
bool are_panels_fast(const PackedRows& rows);

// multiply_rows() with Activations::int8, for rows that fit_panels(), and `bias` (of each row, or null)
// added.
bool multiply_panels(const PackedRows& rows, const float* vectors, int64_t count, const float* bias,
                     float* results, int threads);

}  // namespace diffq_fast
