// What Pieces take of as many segments, each of which is a piece and a group.
DIFFQ_INLINE void take_groups(const PackedRow& row, int64_t segment, int64_t count, int* widths,
                              float* scales) {
    for (int64_t k = 0; k < count; ++k) widths[k] = width_of_segment(row.widths, segment + k);
    for (int64_t k = 0; k < count; ++k) scales[k] = row.steps[widths[k]] * row.scales[segment + k];
}
