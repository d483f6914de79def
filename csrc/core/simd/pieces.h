// A row cut into pieces of as many elements each, within segments: the widths of some pieces, and what a
// level of theirs is worth.
struct Pieces {
    static constexpr int64_t kAtOnce = 64;

    DIFFQ_MEMBER Pieces(const PackedRow& of, int64_t size)
        : row(of), at(of), of_segment(of.segments == 1 ? INT64_MAX : of.segment / size) {}

    // Each segment is one piece, and one group.
    DIFFQ_MEMBER bool are_groups() const {
        return of_segment == 1 && row.group_size == row.segment && row.before == 0;
    }

    DIFFQ_MEMBER void take(int64_t count) {
        if (are_groups()) {
            take_groups(row, segment, count, widths, scales);
            segment += count;
            return;
        }
        GroupCursor here = at;
        int64_t s = segment, number = taken;
        for (int64_t k = 0; k < count; ++k) {
            widths[k] = width_of_segment(row.widths, s);
            scales[k] = row.steps[widths[k]] * row.scales[here.group];
            if (++number < of_segment) continue;
            number = 0;
            ++s;
            here.next_segment();
        }
        at = here, segment = s, taken = number;
    }

    DIFFQ_MEMBER bool all_have(int width, int64_t count) const {
        int other = 0;
        for (int64_t k = 0; k < count; ++k) other |= widths[k] ^ width;
        return other == 0;
    }

    DIFFQ_MEMBER bool are_at_most(int width, int64_t count) const {
        int most = 0;
        for (int64_t k = 0; k < count; ++k) most = std::max(most, widths[k]);
        return most <= width;
    }

    int widths[kAtOnce];
    float scales[kAtOnce];
    const PackedRow& row;
    GroupCursor at;
    int64_t of_segment, segment = 0, taken = 0;
};
