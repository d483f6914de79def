"""Random rows of packed levels, of many forms, and what their levels stand for."""

from __future__ import annotations

import torch

from diffq_fast.reference.packed_rows import RowForm, pack_rows, segment_size

# rows, columns, group size of the widths, of the scales, centred, level count
FORMS = {
    "one width and scale": (5, 100, 0, 0, False, 0),
    "groups of 8": (5, 64, 8, 0, False, 0),
    "an odd number of groups": (7, 40, 8, 0, False, 0),
    "groups of 8 with a scale each": (6, 48, 8, 8, False, 0),
    "groups of 64 with a scale each": (3, 256, 64, 64, True, 0),
    "groups of two rows": (8, 64, 128, 128, True, 0),
    "groups cut by rows": (6, 96, 64, 64, False, 0),
    "rows that begin within an eight": (7, 27, 8, 8, False, 0),
    "columns alone": (9, 1, 8, 8, True, 0),
    "a number of levels": (3, 13, 0, 0, False, 11),
    "one scale, centred": (4, 31, 0, 0, True, 0),
    "groups of 32 with a scale each": (4, 96, 32, 32, False, 0),
    "segments longer than blocks of vectors": (3, 384, 192, 192, True, 0),
    "a row within its second sixteen": (2, 73, 0, 0, False, 0),
}


class Rows:
    """A random weight of one of FORMS: what the operators are given, and what its levels stand for."""

    def __init__(self, name, most_width=16, seed=0, least_width=1):
        rows, columns, group_size, scale_size, centred, level_count = FORMS[name]
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
        groups = -(-rows * columns // group_size) if group_size else 1
        group_of = torch.arange(rows * columns) // group_size if group_size else torch.zeros(rows * columns).long()
        width_of_group = (draw(groups) * (most_width + 1 - least_width)).long() + least_width
        if level_count:
            width_of_group[:] = 4
        self.segment = segment_size(columns, group_size)
        self.form = RowForm(columns, self.segment, scale_size, centred, level_count)
        width = width_of_group[group_of].view(rows, columns)
        self.widths = width.view(rows, -1, self.segment)[:, :, 0].to(torch.uint8)
        self.levels = (draw(rows, columns) * 2.0**width).int()
        if level_count:
            self.levels.clamp_(max=level_count - 1)
        count = self.form.group_count(rows)
        self.scales, self.offsets = draw(count) + 0.1, draw(count) - 0.5
        scale_group = group_of.view(rows, columns) if scale_size else torch.zeros(rows, columns).long()
        scale, offset = self.scales[scale_group], self.offsets[scale_group]
        steps = 1 / ((1 << width).float() - 1) if not level_count else torch.full_like(scale, 1 / (level_count - 1))
        self.weight = self.levels * steps * scale + offset
        self.offset = offset.expand(rows, columns)  # levels count from there on
        if centred:
            self.offset = -(1 << width - 1) * scale
            self.weight, self.offsets = (self.levels - (1 << width - 1)) * scale, torch.empty(0)
        self.rows = rows
        self.packed = pack_rows(self.levels, self.widths, self.segment)

    def arguments(self):
        return (*self.packed, self.scales, self.offsets, [int(each) for each in self.form])
