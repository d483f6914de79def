// Products of unpacked rows with vectors: four rows with some vectors at a time, whose sums stay in
// registers. Included behind kTileVectors, as many vectors as that goes for, and sums_of_four().

constexpr int kTileRows = 4;
// Columns at once, of which a tile's vectors and rows stay in the first-level cache.
constexpr int64_t kColumnsAtOnce = 512;

// Some columns of four rows and of some vectors, and where their products are, or are added to.
struct FloatTile {
    FloatRows rows, vectors;
    int64_t columns;
    float* products;
    int64_t apart;
    bool is_first;
};

template <int kCount>
static void multiply_tile(const FloatTile& tile) {
    Float zero = splat(0.0f), sums[kCount][kTileRows];
    __asm__("" : DIFFQ_IN_REGISTER(zero));  // GCC would clear memory
    for (int v = 0; v < kCount; ++v)
        for (int r = 0; r < kTileRows; ++r) sums[v][r] = zero;
    for (int64_t i = 0; i < tile.columns; i += kLanes) {
        Float x[kCount];
        for (int v = 0; v < kCount; ++v) x[v] = load(tile.vectors.values + v * tile.vectors.stride + i);
        for (int r = 0; r < kTileRows; ++r) {
            const Float weights = load(tile.rows.values + r * tile.rows.stride + i);
            for (int v = 0; v < kCount; ++v) sums[v][r] = multiply_add(weights, x[v], sums[v][r]);
        }
    }
    for (int v = 0; v < kCount; ++v) {
        float* const to = tile.products + v * tile.apart;
        const FourFloats found = sums_of_four(sums[v]);
        store(tile.is_first ? found : found + load_as<FourFloats>(to), to);
    }
}

template <int kCount = kTileVectors>
static void multiply_tile_of(const FloatTile& tile) {
    if (tile.vectors.count == kCount) return multiply_tile<kCount>(tile);
    if constexpr (kCount > 1) multiply_tile_of<kCount - 1>(tile);
}

static void multiply_floats(const FloatRows& rows, const FloatRows& vectors, int64_t columns, float* products,
                            int64_t apart) {
    for (int64_t begin = 0; begin < columns; begin += kColumnsAtOnce)
        for (int64_t v = 0; v < vectors.count; v += kTileVectors)
            for (int64_t r = 0; r < rows.count; r += kTileRows)
                multiply_tile_of<>({{rows.values + r * rows.stride + begin, rows.stride, kTileRows},
                                    {vectors.values + v * vectors.stride + begin, vectors.stride,
                                     std::min<int64_t>(kTileVectors, vectors.count - v)},
                                    std::min(kColumnsAtOnce, columns - begin),
                                    products + v * apart + r,
                                    apart,
                                    begin == 0});
}
