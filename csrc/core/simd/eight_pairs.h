// Products of rows whose segments are eight levels of up to eight bits and one scale, in vectors of 512 bits:
// two segments, whose widths are one byte, at a time.

// Two segments: the bytes that each lane takes of the sixteen from the first level's on, the bits that are
// kept, and what a level's are worth, but for the scale: the step of its width over its place among the bits.
struct PairTable {
    alignas(64) uint8_t bytes[64];
    alignas(64) uint32_t masks[16];
    alignas(64) float factors[16];
};

constexpr int kPairs = 0x78;  // two half bytes, each up to 7

struct PairTables {
    PairTable of[kPairs];
    uint8_t sizes[kPairs];

    constexpr PairTables() : of(), sizes() {
        for (int pair = 0; pair < kPairs; ++pair) {
            const int first = (pair & 7) + 1, second = (pair >> 4) + 1;
            sizes[pair] = static_cast<uint8_t>(first + second);
            for (int lane = 0; lane < 16; ++lane) {
                const int width = lane < 8 ? first : second;
                fill(of[pair], lane, width, lane < 8 ? lane * first : 8 * first + (lane - 8) * second);
            }
        }
    }

  private:
    static constexpr void fill(PairTable& table, int lane, int width, int bit) {
        const uint32_t top = (uint32_t{1} << width) - 1;
        table.masks[lane] = top << bit % 8;
        table.factors[lane] = 1.0f / static_cast<float>(top) / static_cast<float>(1 << bit % 8);
        for (int byte = 0; byte < 4; ++byte)
            table.bytes[lane * 4 + byte] = static_cast<uint8_t>(bit / 8 + byte < 16 ? bit / 8 + byte : 0x80);
    }
};
static constexpr PairTables kPairTables{};

// Whether the row's segments are such, and no width is above eight.
DIFFQ_INLINE bool has_pairs_of_eights(const PackedRow& row) {
    if (row.segment != 8 || !row.scaled || !row.own_steps) return false;
    const int64_t pairs = (row.segments + 1) / 2;
    __m512i all = _mm512_setzero_si512();
    for (int64_t p = 0; p < pairs; p += 64) {
        const __mmask64 read = ~uint64_t{0} >> (64 - std::min<int64_t>(64, pairs - p));
        all = _mm512_or_si512(all, _mm512_maskz_loadu_epi8(read, row.widths + p));
    }
    return _mm512_test_epi8_mask(all, _mm512_set1_epi8(static_cast<char>(0x88))) == 0;
}

template <int kCount>
DIFFQ_INLINE void multiply_pairs_of_eights(const PackedRow& row, const RowVectors& vectors, float* products) {
    const uint8_t* from = row.data;
    __m512 sums[kCount][2];
    for (int v = 0; v < kCount; ++v) sums[v][0] = sums[v][1] = _mm512_setzero_ps();
    const auto take = [&](int64_t p, int k) {
        const int pair = row.widths[p];
        const PairTable& table = kPairTables.of[pair];
        const __m512i bytes =
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_128(from)), load_512(table.bytes));
        const __m512i kept = _mm512_and_si512(bytes, load_512(table.masks));
        const __m512 weights = _mm512_mul_ps(_mm512_cvtepi32_ps(kept), _mm512_load_ps(table.factors));
        for (int v = 0; v < kCount; ++v) {
            const __m512 x = _mm512_loadu_ps(vectors.values + v * vectors.stride + 16 * p);
            sums[v][k] = _mm512_fmadd_ps(weights, x, sums[v][k]);
        }
        from += kPairTables.sizes[pair];
    };
    const int64_t pairs = (row.segments + 1) / 2;
    int64_t p = 0;
    for (; p + 2 <= pairs; p += 2) {
        ask_for_row(from);
        take(p, 0);
        take(p + 1, 1);
    }
    if (p < pairs) take(p, 0);
    for (int v = 0; v < kCount; ++v) {
        const float sum = _mm512_reduce_add_ps(_mm512_add_ps(sums[v][0], sums[v][1]));
        products[v] = row.scales[0] * sum + row.offsets[0] * vectors.totals[v];
    }
}
