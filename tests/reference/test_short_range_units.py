"""Short ranges stay as they are when they are made short once more."""

import pytest
import torch

from diffq_fast.reference.short_ranges import decode_ranges, nearest_codes, units_of_ranges


def test_a_unit_of_any_mantissa_is_found_again():
    """All of them: 2**23 largest ends of a binade, whose units are the quotients by 127."""
    ends = (torch.arange(2**23, dtype=torch.int32) + (127 << 23)).view(torch.float32)
    units = ends / 127
    assert torch.equal(units * 127 / 127, units)


@pytest.mark.parametrize("groups", [0, 1, 15, 16, 17, 333])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_nearest_ranges_are_their_own_nearest(groups, size):
    ranges = torch.randn(groups, 2, generator=torch.Generator().manual_seed(groups)).sort(1).values * size
    units = units_of_ranges(ranges, 16)
    codes = nearest_codes(ranges, units, 16)
    made = decode_ranges(codes, units, 16)
    assert torch.equal(units_of_ranges(made, 16), units)
    assert torch.equal(nearest_codes(made, units, 16), codes)
    unit = units.repeat_interleave(16)[:groups, None]
    assert bool(((made - ranges).abs() <= unit * (0.5 + 1e-5)).all())
