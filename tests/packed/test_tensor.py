"""packed_tensor: a weight comes back as its quantised self, whatever its shape, dtype, groups and widths."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffq_fast import functional
from diffq_fast.packed.tensor import pack_levels, pack_weight

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def ones(groups: int, width: int = 4) -> torch.Tensor:
    return torch.full((groups,), width, dtype=torch.uint8)


@st.composite
def weights(draw):
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    group_size = draw(st.integers(0, 12))
    scope = draw(st.sampled_from(["tensor", "group"]))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(shape, generator=generator).to(dtype)
    groups = -(-weight.numel() // (group_size or max(weight.numel(), 1)))
    widths = torch.tensor(draw(st.lists(st.integers(1, 16), min_size=groups, max_size=groups)), dtype=torch.uint8)
    return weight, widths, group_size, scope


@settings(deadline=None)
@given(weights())
def test_unpack_gives_the_quantised_weight(case):
    weight, widths, group_size, scope = case
    packed = pack_weight(weight, widths, group_size=group_size, range_scope=scope)
    options = {"group_size": group_size, "range_scope": scope}
    found = functional.weight_range([weight], **options)
    levels = functional.quantize([weight], [widths], found, **options)
    expected = functional.dequantize(levels, [widths], found, **options, dtype=weight.dtype)[0]
    assert packed.unpack().dtype == weight.dtype
    assert packed.unpack().shape == weight.shape
    assert torch.equal(packed.unpack(), expected)
    assert packed.count == weight.numel()


def test_error_is_at_most_half_a_step():
    weight = torch.linspace(-1, 1, 999)
    for width in range(1, 17):
        unpacked = pack_weight(weight, ones(1, width), group_size=0).unpack()
        assert (unpacked - weight).abs().max() <= 1 / (2**width - 1) + 1e-6


def test_unpack_casts_to_another_dtype():
    packed = pack_weight(torch.tensor([0.0, 0.1, 1.0], dtype=torch.bfloat16), ones(1, 8), group_size=0)
    assert packed.dtype == torch.bfloat16
    assert packed.unpack(torch.float32).dtype == torch.float32
    assert torch.equal(packed.unpack(torch.float32).bfloat16(), packed.unpack())


def test_groups_follow_the_logical_order_of_a_channels_last_weight():
    weight = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    widths = torch.arange(38, dtype=torch.uint8) % 15 + 1
    packed = pack_weight(weight, widths)
    assert torch.equal(packed.unpack(), pack_weight(weight.contiguous(), widths).unpack())


def test_size_counts_bits_by_purpose():
    packed = pack_weight(torch.randn(70), torch.tensor([3, 3, 5], dtype=torch.uint8), group_size=32)
    assert packed.size == {"levels": 32 * (3 * 2 + 5 * 1), "widths": 24, "ranges": 64}
    assert packed.words.dtype == torch.int32


def test_to_moves_the_tensors():
    packed = pack_weight(torch.randn(8), ones(1)).to("meta")
    assert {packed.words.device.type, packed.widths.device.type, packed.ranges.device.type} == {"meta"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scope", ["tensor", "group"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_weight_refuses_what_is_not_finite(bad, scope, dtype):
    weight = torch.zeros(20, dtype=dtype)
    weight[13] = bad
    with pytest.raises(ValueError, match=r"pack_weight: encoder.weight: expected finite elements"):
        pack_weight(weight, ones(3), range_scope=scope, name="encoder.weight")


def test_pack_weight_refuses_a_range_beyond_float32():
    with pytest.raises(ValueError, match=r"weight: its elements reach from -3e\+38 to 3e\+38"):
        pack_weight(torch.tensor([-3e38, 3e38]), ones(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64])
def test_pack_weight_refuses_other_dtypes(dtype):
    with pytest.raises(TypeError, match="expected float32, float16 or bfloat16, got torch"):
        pack_weight(torch.zeros(8, dtype=dtype), ones(1))


@pytest.mark.parametrize(
    ("widths", "words"),
    [(ones(2), r"\[1\]"), (ones(1, 0), "between 1 and 16"), (ones(1, 17), "between 1 and 16")],
)
def test_pack_weight_refuses_widths_that_do_not_fit(widths, words):
    with pytest.raises(ValueError, match=words):
        pack_weight(torch.zeros(8), widths)


def test_pack_weight_refuses_a_weight_without_values():
    with pytest.raises(ValueError, match="pack_weight: gain must hold values, got a meta tensor"):
        pack_weight(torch.zeros(8, device="meta"), ones(1), name="gain")


@pytest.mark.parametrize(("range_scope", "found"), [("tensor", [1.0]), ("tensor", []), ("scale", [0.0, 1.0])])
def test_pack_levels_refuses_a_range_of_another_length(range_scope, found):
    levels = torch.zeros(8, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"pack_levels: weight: expected a range of \d numbers, got \[\d\]"):
        pack_levels(levels, 3, torch.tensor(found), dtype=torch.float32, range_scope=range_scope)


@pytest.mark.parametrize("options", [{"range_scope": "scale"}, {"level_count": 3}, {}], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0, 2), (2, 3)])
def test_pack_levels_keeps_every_shape(shape, options):
    found = torch.tensor([0.5] if "range_scope" in options else [0.0, 1.5])
    packed = pack_levels(torch.ones(shape, dtype=torch.int32), 2, found, dtype=torch.bfloat16, **options)
    back = packed.unpack()
    assert back.shape == shape
    assert back.dtype == torch.bfloat16
