"""levels: integers, scales and offsets from which every kind of packed weight is made again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffq_fast.exporters.levels import levels_of
from diffq_fast.packed.contents import read_packed
from support.packed_examples import DATA, GOLDEN


@pytest.mark.parametrize("name", GOLDEN)
def test_every_weight_is_its_levels_scaled(name):
    contents = read_packed(DATA / f"{name}.safetensors")
    for each, weight in contents.packed.items():
        levels = levels_of(contents, each)
        expected = weight.unpack(torch.float32).reshape(-1)
        values = torch.from_numpy(levels.values())
        assert len(levels.scales) == len(levels.offsets) >= (1 if weight.count else 0)
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
        if weight.count:
            lowest, highest = int(levels.levels.min()), int(levels.levels.max())
            half = 1 << levels.bits - 1
            assert (-half <= lowest <= highest < half) if levels.signed else (0 <= lowest <= highest < 2 * half)
            assert levels.signed == (weight.range_scope in ("steps", "scale"))
            assert not levels.signed or not np.any(levels.offsets)
