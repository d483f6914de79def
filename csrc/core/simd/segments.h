// Segments of a row of packed levels, for kernels that take eight levels at a time.

// Segments that are no whole eights, before others: those of weights whose rows do not begin with a group.
DIFFQ_INLINE bool has_broken_eights(const PackedRow& row) {
    return row.segment % 8 != 0 && row.segments > 1;
}

// What a level of a segment stands for is level * scale + offset.
struct RowScale {
    float scale, offset;

    DIFFQ_MEMBER RowScale(const PackedRow& row, int width, int64_t group)
        : scale(row.steps[width] * row.scales[group]),
          offset(row.offsets ? row.offsets[group] : -row.halves[width] * scale) {}
};
