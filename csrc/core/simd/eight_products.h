// Products of rows with vectors, eight levels at a time, and what their offsets add.

#include "core/simd/segments.h"

DIFFQ_INLINE float sum_of_eight(__m256 value) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// Segments of whole eights: each eight becomes a vector of weights, so that nothing has to be summed up
// between segments.
template <int kCount>
DIFFQ_INLINE void multiply_eights(const PackedRow& row, const RowVectors& vectors, float* products) {
    constexpr int kSums = kCount == 1 ? 4 : 2;
    const uint8_t* from = row.data;
    const float* vector = vectors.values;
    const int64_t eights = row.segment / 8;
    __m256 sums[kCount][kSums];
    for (int v = 0; v < kCount; ++v)
        for (int k = 0; k < kSums; ++k) sums[v][k] = _mm256_setzero_ps();
    const auto take = [&](int k, const EightReader& eight, int width, __m256 scale, __m256 offset) {
        const __m256 weights = _mm256_fmadd_ps(eight.levels(from), scale, offset);
        for (int v = 0; v < kCount; ++v)
            sums[v][k] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(vector + v * vectors.stride), sums[v][k]);
        from += width;
        vector += 8;
    };
    GroupCursor at(row);
    for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
        const int width = width_of_segment(row.widths, s);
        const RowScale found(row, width, at.group);
        const __m256 scale = _mm256_set1_ps(found.scale), offset = _mm256_set1_ps(found.offset);
        const EightReader eight(width);
        int64_t e = 0;
        for (; e + kSums <= eights; e += kSums)
            for (int k = 0; k < kSums; ++k) take(k, eight, width, scale, offset);
        for (; e < eights; ++e) take(static_cast<int>(s % 2), eight, width, scale, offset);
    }
    for (int v = 0; v < kCount; ++v) {
        for (int k = 1; k < kSums; ++k) sums[v][0] = _mm256_add_ps(sums[v][0], sums[v][k]);
        products[v] = sum_of_eight(sums[v][0]);
    }
}

// Segments of eight levels where all have one scale and one offset, which counts once: two segments, whose
// widths are one byte, at a time.
template <int kCount>
DIFFQ_INLINE void multiply_eights_of_one_scale(const PackedRow& row, const RowVectors& vectors,
                                               float* products) {
    const uint8_t* from = row.data;
    __m256 sums[kCount][2];
    for (int v = 0; v < kCount; ++v) sums[v][0] = sums[v][1] = _mm256_setzero_ps();
    const auto take = [&](int64_t s, int half, int width) {
        const __m256 scale = _mm256_broadcast_ss(row.scaled + width);
        const __m256 weights = _mm256_mul_ps(EightReader(width).levels(from), scale);
        for (int v = 0; v < kCount; ++v) {
            const __m256 x = _mm256_loadu_ps(vectors.values + v * vectors.stride + 8 * s);
            sums[v][half] = _mm256_fmadd_ps(weights, x, sums[v][half]);
        }
        from += width;
    };
    for (int64_t s = 0; s + 2 <= row.segments; s += 2) {
        const int widths = row.widths[s / 2];
        take(s, 0, (widths & 15) + 1);
        take(s + 1, 1, (widths >> 4) + 1);
    }
    if (row.segments % 2 != 0) take(row.segments - 1, 0, width_of_segment(row.widths, row.segments - 1));
    for (int v = 0; v < kCount; ++v)
        products[v] =
            sum_of_eight(_mm256_add_ps(sums[v][0], sums[v][1])) + row.offsets[0] * vectors.totals[v];
}

// products[v] = what the offsets of a row's segments add to the product with each vector.
template <int kCount>
DIFFQ_INLINE void multiply_offsets(const PackedRow& row, const RowVectors& vectors, float* products) {
    float sums[kCount];
    for (int v = 0; v < kCount; ++v) sums[v] = 0.0f;
    if (row.group_size == 0 && row.offsets) {
        for (int v = 0; v < kCount; ++v) sums[v] = row.offsets[0] * vectors.totals[v];
    } else if (row.group_size == row.segment && row.before == 0 && row.offsets) {
        for (int v = 0; v < kCount; ++v) {
            const float* const of = vectors.sums + v * row.segments;
            __m256 eights = _mm256_setzero_ps();
            int64_t s = 0;
            for (; s + 8 <= row.segments; s += 8)
                eights = _mm256_fmadd_ps(_mm256_loadu_ps(row.offsets + s), _mm256_loadu_ps(of + s), eights);
            for (; s < row.segments; ++s) sums[v] += row.offsets[s] * of[s];
            sums[v] += sum_of_eight(eights);
        }
    } else {
        GroupCursor at(row);
        for (int64_t s = 0; s < row.segments; ++s, at.next_segment()) {
            const float offset = RowScale(row, width_of_segment(row.widths, s), at.group).offset;
            for (int v = 0; v < kCount; ++v) sums[v] += offset * vectors.sums[v * row.segments + s];
        }
    }
    for (int v = 0; v < kCount; ++v) products[v] = sums[v];
}
