"""Ranges that fit: those of groups in 16 bits, and clipping by squared error."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import diffq_fast
from diffq_fast import functional
from diffq_fast.files.safetensors_writer import TensorSource, write_safetensors
from diffq_fast.files.tensor_bytes import tensor_bytes
from diffq_fast.packed.checkpoint import OneWidth, pack_at_bits
from diffq_fast.packed.coding import code_packed
from diffq_fast.packed.contents import PackedContents, packed_bytes, read_packed, write_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.ranges import RangeOptions, ShortRanges
from diffq_fast.packed.report import inspect
from diffq_fast.packed.tensor import PackedTensor, pack_weight
from diffq_fast.reference.short_ranges import decode_ranges, encode_ranges
from support.packed_examples import DATA
from support.packed_forgery import Forgery

GOLDEN = DATA / "packed_v2_short_ranges.safetensors"
GROUPS = (0, 1, 2, 3, 7, 8, 9, 16, 17)


def bell(*shape: int, outliers: float = 0.0) -> torch.Tensor:
    """Gaussian elements; every 1,000th of another size."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * 0.05
    if outliers:
        weight.view(-1)[::1000] *= outliers
    return weight


def packed_with(
    options: RangeOptions | None, weight: torch.Tensor, bits: int = 4, scope: str = "group", size: int = 64
):
    groups = -(-weight.numel() // size) if size else 1
    widths = torch.full((groups,), bits, dtype=torch.uint8)
    return pack_weight(weight, widths, group_size=size, range_scope=scope, options=options)


def error_of(packed: PackedTensor, weight: torch.Tensor) -> float:
    return float((packed.unpack(torch.float32) - weight.float()).double().square().sum())


# -- 16 bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("each", [1, 2, 8, 1 << 30])
def test_short_ranges_hold_the_ranges_and_little_more(groups, each):
    ranges = torch.randn(groups, 2, generator=torch.Generator().manual_seed(groups)).sort(1).values
    codes, units = encode_ranges(ranges, each)
    made = decode_ranges(codes, units, each)
    assert len(units) == -(-groups // each)
    for group in range(groups):
        unit = units[group // each]
        assert unit == ranges[group // each * each :][:each].abs().max() / 127
        slack = 1e-6 * float(unit) * 127
        assert ranges[group, 0] - unit - slack <= made[group, 0] <= ranges[group, 0] + slack
        assert ranges[group, 1] - slack <= made[group, 1] <= ranges[group, 1] + unit + slack


def test_ranges_of_zeros_and_of_the_smallest_numbers():
    ranges = torch.tensor([[0, 0], [0, 1e-45], [-3e38, 0], [0, 1e38]])
    codes, units = encode_ranges(ranges, 2)
    assert codes.tolist() == [[0, 0], [0, 0], [-127, 0], [0, 43]]
    assert bool(decode_ranges(codes, units, 2).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "size"), [((40, 128), 64), ((33, 31), 16), ((5,), 8), ((), 4), ((9, 7), 0)])
def test_a_file_gives_the_weight_that_was_packed(shape, size, dtype, tmp_path):
    weight = bell(*shape).to(dtype)
    packed = packed_with(RangeOptions(groups_per_unit=3), weight, size=size)
    contents = PackedContents({"w": packed, "coded": code_packed(packed)}, {})
    write_packed(tmp_path / "a", contents)
    read = read_packed(tmp_path / "a")
    for name in ("w", "coded"):
        assert torch.equal(read.tensor(name), packed.unpack())
        assert torch.equal(read.packed[name].ranges, packed.ranges)
    assert packed_bytes(contents) == (tmp_path / "a").stat().st_size
    sizes = inspect(tmp_path / "a").bytes_by_purpose
    assert (
        sizes["ranges"]
        == 2 * packed.size["ranges"] // 8
        == 2 * (4 * -(-len(packed.widths) // 3) + 2 * len(packed.widths))
    )


def test_short_ranges_are_nearly_as_good_as_float_ones_at_a_third_of_their_bytes():
    weight = bell(200, 384)
    plain, short = packed_with(None, weight), packed_with(RangeOptions(groups_per_unit=16), weight)
    assert error_of(plain, weight) < error_of(short, weight) < 1.03 * error_of(plain, weight)
    assert short.size["ranges"] * 3.5 < plain.size["ranges"]


def test_files_without_short_ranges_stay_of_version_1(tmp_path):
    weight = bell(20, 64)
    write_packed(tmp_path / "a", PackedContents({"w": packed_with(None, weight)}, {}))
    write_packed(tmp_path / "b", PackedContents({"w": packed_with(RangeOptions(), weight)}, {}))
    assert b'"version":"1"' in (tmp_path / "a").read_bytes()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_packed(tmp_path / "c", PackedContents({"w": packed_with(RangeOptions(groups_per_unit=4), weight)}, {}))
    assert b'"version":"2"' in (tmp_path / "c").read_bytes()


def test_moving_keeps_short_ranges():
    packed = packed_with(RangeOptions(groups_per_unit=4), bell(20, 64))
    moved = packed.to("cpu")
    assert isinstance(moved.short, ShortRanges)
    assert torch.equal(moved.short.codes, packed.short.codes)
    assert code_packed(packed).to("cpu").short.groups_per_unit == 4


def test_load_gives_the_weights(tmp_path):
    model = torch.nn.Linear(128, 64, bias=False)
    packed = packed_with(RangeOptions(clip=True, groups_per_unit=4), model.weight.detach())
    write_packed(tmp_path / "a", PackedContents({"weight": packed}, {}))
    assert torch.equal(diffq_fast.load(tmp_path / "a", model).weight, packed.unpack())


FITTED = [None, RangeOptions(clip=True), RangeOptions(groups_per_unit=4), RangeOptions(clip=True, groups_per_unit=4)]


@pytest.mark.parametrize("options", FITTED)
def test_a_quantizer_makes_the_same_weights_of_the_loaded_ones(options, tmp_path):
    """The outermost elements become the ends of the range, so these are found in the weights again."""
    model = torch.nn.Linear(128, 64, bias=False)
    quantizer = diffq_fast.DiffQuantizer(model, group_size=64, min_size=0, range_scope="group")
    packed = packed_with(options, bell(64, 128, outliers=5))
    write_packed(tmp_path / "a", PackedContents({"weight": packed}, {}))
    diffq_fast.load(tmp_path / "a", model, strict=False)
    assert torch.equal(model.weight, packed.unpack())
    ranges = functional.weight_range([model.weight.detach()], group_size=64, range_scope="group")
    assert torch.allclose(ranges, packed.ranges, rtol=1e-6, atol=0)
    quantizer.detach()


def test_ranges_that_a_quantizer_would_not_find_again_are_refused(tmp_path):
    """With many levels an end of a short range, which lies a bit further out, is no element's nearest level."""
    model = torch.nn.Linear(128, 64, bias=False)
    quantizer = diffq_fast.DiffQuantizer(model, group_size=64, min_size=0, range_scope="group")
    packed = packed_with(RangeOptions(groups_per_unit=4), bell(64, 128), 12)
    before = model.weight.detach().clone()
    for weight in (packed, code_packed(packed)):
        write_packed(tmp_path / "a", PackedContents({"weight": weight}, {}))
        with pytest.raises(ValueError, match=r"weight: .* ranges that its weights do not reach"):
            diffq_fast.load(tmp_path / "a", model, strict=False)
    quantizer.detach()
    assert torch.equal(model.weight, before)


BAD_OPTIONS = [
    (RangeOptions(groups_per_unit=-1), "group", "groups_per_unit from 0 to 1,073,741,824, got -1"),
    (RangeOptions(groups_per_unit=2**31), "group", "groups_per_unit from 0"),
    (RangeOptions(groups_per_unit=4), "tensor", "those of groups, got range_scope='tensor'"),
]


@pytest.mark.parametrize(("options", "scope", "problem"), BAD_OPTIONS)
def test_options_that_cannot_be_are_refused(options, scope, problem):
    with pytest.raises(ValueError, match=rf"pack_weight: weight: .*{problem}"):
        packed_with(options, bell(64), scope=scope)


def change_range(place: int, data: bytes):
    def change(forgery, _):
        made = bytearray(forgery.data["some.range"])
        first = place % len(made)
        made[first : first + len(data)] = data
        forgery.data["some.range"] = bytes(made)

    return change


def cut(forgery, _):
    forgery.data["some.range"] = forgery.data["some.range"][:-1]
    forgery.tensors["some.range"]["shape"] = [len(forgery.data["some.range"])]


FORGERIES = {
    "negative unit": (change_range(0, b"\0\0\x80\xbf"), "units that are finite and not negative"),
    "infinite unit": (change_range(4, b"\0\0\x80\x7f"), "units that are finite"),
    "not a number": (change_range(4, b"\0\0\xc0\x7f"), "units that are finite"),
    "too far apart": (change_range(0, b"\0\0\x80\x7e"), "ranges lo <= hi, finite"),
    "lo above hi": (change_range(-2, b"\x05\x04"), "codes lo <= hi from -127 to 127"),
    "code -128": (change_range(-2, b"\x80\x04"), "codes lo <= hi from -127 to 127"),
    "cut off": (cut, "bytes of ranges, found"),
    "other number for a unit": (lambda f, w: w.update(groups_per_unit=1), "bytes of ranges, found"),
    "nothing for a unit": (lambda f, w: w.update(groups_per_unit=0), "groups_per_unit must be from 1 to"),
    "text for a unit": (lambda f, w: w.update(groups_per_unit="4"), "groups_per_unit must be from 1 to"),
    "too many for a unit": (lambda f, w: w.update(groups_per_unit=2**40), "groups_per_unit must be from 1 to"),
    "not of groups": (lambda f, w: w.update(range="tensor"), 'groups_per_unit needs range "group"'),
    "floats": (lambda f, w: w.pop("groups_per_unit"), "must be F32, found U8"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_file_that_lies_is_refused(name, tmp_path):
    change, problem = FORGERIES[name]
    forgery = Forgery(GOLDEN)
    change(forgery, forgery.layout["weights"]["some"])
    with pytest.raises(PackedFileError, match=problem):
        read_packed(forgery.write(tmp_path / "forged"))


def test_version_1_knows_no_short_ranges(tmp_path):
    forgery = Forgery(GOLDEN)
    forgery.metadata["version"] = "1"
    with pytest.raises(PackedFileError, match="the layout must state"):
        read_packed(forgery.write(tmp_path / "forged"))


# -- clipping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("scope", "each"), [("tensor", 0), ("group", 0), ("group", 4)])
def test_clipping_lowers_the_squared_error(bits, scope, each):
    weight = bell(60, 256, outliers=12)
    plain = packed_with(RangeOptions(groups_per_unit=each), weight, bits, scope)
    clipped = packed_with(RangeOptions(clip=True, groups_per_unit=each), weight, bits, scope)
    least = 0.9 if scope == "group" and bits < 8 else 1.0
    assert error_of(clipped, weight) <= least * error_of(plain, weight)
    lengths = [(each.ranges[..., 1] - each.ranges[..., 0]).sum() for each in (clipped, plain)]
    assert lengths[0] <= lengths[1]


def test_one_outlier_no_longer_costs_a_tensor_its_levels():
    weight = bell(100, 100)
    weight[3, 5] = 1.0  # twenty deviations
    plain = packed_with(None, weight, 4, "tensor", 0)
    clipped = packed_with(RangeOptions(clip=True), weight, 4, "tensor", 0)
    assert error_of(clipped, weight) < 0.4 * error_of(plain, weight)
    assert clipped.ranges[1] < 0.5 < plain.ranges[1]


@pytest.mark.parametrize("values", [[0.0] * 9, [0.3] * 9, [-1e-45, 1e-45, 0.0], [3e38, -1e37, 2.0]])
def test_clipping_of_constants_and_extremes_does_no_harm(values):
    weight = torch.tensor(values)
    for scope in ("tensor", "group"):
        plain = packed_with(None, weight, 3, scope, 4)
        clipped = packed_with(RangeOptions(clip=True), weight, 3, scope, 4)
        assert error_of(clipped, weight) <= error_of(plain, weight)


def test_clipping_is_exact_about_what_a_file_gives(tmp_path):
    """The errors that are compared are those of the weights that come back."""
    weight = bell(30, 64).to(torch.bfloat16)
    packed = packed_with(RangeOptions(clip=True, groups_per_unit=2), weight, 3)
    write_packed(tmp_path / "a", PackedContents({"w": packed}, {}))
    ranges = read_packed(tmp_path / "a").packed["w"].ranges
    made = functional.fake_quantize([weight], [packed.widths], ranges, group_size=64, range_scope="group")[0]
    assert torch.equal(read_packed(tmp_path / "a").tensor("w"), made)


def test_pack_at_bits_takes_both(tmp_path):
    state = {"w": bell(300, 256, outliers=8), "bias": torch.ones(4)}
    sources = [
        TensorSource(name, "F32", tuple(each.shape), partial(tensor_bytes, each)) for name, each in state.items()
    ]
    write_safetensors(tmp_path / "plain", sources, {})
    errors, sizes = [], []
    for ranges in (None, RangeOptions(True), RangeOptions(True, 16)):
        options = OneWidth(3, group_size=64, range_scope="group", ranges=ranges)
        assert pack_at_bits(tmp_path / "plain", tmp_path / "packed", options)[0] == ["w"]
        errors.append(error_of(read_packed(tmp_path / "packed").packed["w"], state["w"]))
        sizes.append((tmp_path / "packed").stat().st_size)
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 1.05 * errors[1]
    assert sizes[2] < sizes[1] == sizes[0]
