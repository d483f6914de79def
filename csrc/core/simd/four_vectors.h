// Products of rows of packed levels with at most four vectors at a time: those of multiply_some().

static void multiply_row(const PackedRow& row, const RowVectors& vectors, float* products) {
    if (has_broken_eights(row)) return multiply_row_by_level(row, vectors, products);
    switch (vectors.count) {
        case 1:
            return multiply_some<1>(row, vectors, products);
        case 2:
            return multiply_some<2>(row, vectors, products);
        case 3:
            return multiply_some<3>(row, vectors, products);
        default:
            return multiply_some<4>(row, vectors, products);
    }
}
