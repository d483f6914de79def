// Rows of packed levels where there are no instructions for them.

constexpr int64_t kVectorsOfRow = 4;

static void unpack_row(const PackedRow& row, float* values) {
    unpack_row_by_level(row, values);
}

static void multiply_row(const PackedRow& row, const RowVectors& vectors, float* products) {
    multiply_row_by_level(row, vectors, products);
}
