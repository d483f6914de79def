"""diffq's entries: against its own files, round trips in every form, and entries that must be refused."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from diffq_fast import functional
from diffq_fast.legacy.entries import (
    decode_diffq_entry,
    decode_lsq_entry,
    decode_uniform_entry,
    encode_diffq_entry,
    encode_lsq_entry,
    encode_uniform_entry,
    width_base,
)
from diffq_fast.legacy.state import load_legacy
from support.paths import GOLDEN

CASES = json.loads((GOLDEN / "cases.json").read_text())
STATES = [name for name in CASES if (GOLDEN / f"{name}.th").exists() and not name.startswith("demucs")]


def cases_of(quantizer):
    return [name for name in STATES if CASES[name]["quantizer"] == quantizer]


def selected(name):
    """The state of a golden case, and (name, what diffq restored) of its quantised parameters in order."""
    state = load_legacy(GOLDEN / f"{name}.th")
    restored = load_file(GOLDEN / f"{name}.restored.safetensors")
    kwargs = CASES[name]["kwargs"]
    order = in_module_order(restored)
    chosen = [key for key in order if restored[key].numel() > kwargs.get("min_size", 0.01) * 2**18]
    chosen = [key for key in chosen if not (kwargs.get("exclude") and key.endswith("bias"))]
    assert len(chosen) == len(state.quantized)
    return state, [(key, restored[key]) for key in chosen]


def in_module_order(restored):
    """Module by module, an LSTM layer by layer, weights before biases; safetensors files sort by name."""

    def place(key):
        module, _, own = key.rpartition(".")
        return module, own.partition("_l")[2], "bias" in own, "_hh" in own

    return sorted(restored, key=place)


def dequantized(entry, group_size):
    found = torch.tensor([entry.ranges], dtype=torch.float32)
    return functional.dequantize([entry.levels], [entry.widths], found, group_size=group_size)[0]


def random_entry(shape, widths, group_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    limit = 2 ** widths.to(torch.float64).repeat_interleave(group_size or torch.Size(shape).numel())
    levels = (torch.rand(len(limit), generator=generator, dtype=torch.float64) * limit).to(torch.int32)
    return levels.view(shape)


def same(ours, diffqs):
    """Equal values, dtypes, shapes and container types, down to the last part."""
    assert type(ours) is type(diffqs)
    if isinstance(ours, torch.Tensor):
        assert (ours.dtype, ours.shape) == (diffqs.dtype, diffqs.shape)
        assert torch.equal(ours, diffqs)
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(diffqs)
        for our_part, their_part in zip(ours, diffqs, strict=True):
            same(our_part, their_part)
    else:
        assert ours == diffqs


# -- diffq's own files ----------------------------------------------------------------------


@pytest.mark.parametrize("name", cases_of("DiffQuantizer"))
def test_diffq_files_decode_to_what_diffq_restored_and_encode_to_the_same_entry(name):
    state, parameters = selected(name)
    kwargs = state.init_kwargs
    group_size, min_bits = kwargs.get("group_size", 1), kwargs.get("min_bits", 2)
    assert state.klass == "diffq.diffq.DiffQuantizer"
    for entry, (key, restored) in zip(state.quantized, parameters, strict=True):
        decoded = decode_diffq_entry(entry, restored.shape, group_size=group_size, min_bits=min_bits, name=key)
        assert torch.equal(dequantized(decoded, group_size), restored)
        form = {"packed": state.packed, "torch_pack": state.torch_pack}
        same(
            encode_diffq_entry(decoded.levels, decoded.widths, decoded.ranges, min_bits=min_bits, **form),
            entry,
        )


@pytest.mark.parametrize("name", cases_of("UniformQuantizer"))
def test_uniform_files_decode_to_what_diffq_restored_and_encode_to_the_same_entry(name):
    state, parameters = selected(name)
    bits = state.init_kwargs.get("bits", 8)
    for entry, (key, restored) in zip(state.quantized, parameters, strict=True):
        decoded = decode_uniform_entry(entry, restored.shape, bits=bits, packed=state.packed, name=key)
        same(decode_uniform_entry(entry, restored.shape, bits=bits), decoded)
        widths = torch.tensor([bits], dtype=torch.uint8)
        found = torch.tensor([decoded.ranges], dtype=torch.float32)
        assert torch.equal(functional.dequantize([decoded.levels], [widths], found, group_size=0)[0], restored)
        same(encode_uniform_entry(decoded.levels, decoded.ranges, bits=bits), entry)


@pytest.mark.parametrize("name", cases_of("LSQ"))
def test_lsq_files_decode_to_what_diffq_restored_and_encode_to_the_same_entry(name):
    state, parameters = selected(name)
    bits = state.init_kwargs["bits"]
    for entry, (key, restored) in zip(state.quantized, parameters, strict=True):
        decoded = decode_lsq_entry(entry, restored.shape, bits=bits, packed=state.packed, name=key)
        same(decode_lsq_entry(entry, restored.shape, bits=bits), decoded)
        assert torch.equal(decoded.indices * decoded.scale, restored)
        same(encode_lsq_entry(*decoded, bits=bits, torch_pack=state.torch_pack), entry)


# -- round trips ----------------------------------------------------------------------

FORMS = [{"packed": False}, {"packed": True}, {"packed": True, "torch_pack": True}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("group_size", [0, 1, 4])
def test_diffq_entries_round_trip(count, group_size, form):
    shape = (count, group_size or 3)
    groups = count if group_size else 1
    widths = torch.randint(2, 15, (groups,), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
    levels = random_entry(shape, widths, group_size)
    entry = encode_diffq_entry(levels, widths, (-1.5, 2.5), min_bits=2, **form)
    decoded = decode_diffq_entry(entry, shape, group_size=group_size, min_bits=2)
    assert decoded.levels.dtype == torch.int32
    assert decoded.widths.dtype == torch.uint8
    assert torch.equal(decoded.levels, levels)
    assert torch.equal(decoded.widths, widths)
    assert decoded.ranges == (-1.5, 2.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("min_bits", "lowest", "highest"),
    [
        (2, 2, 14),
        (2.0, 2, 14),
        (2.5, 2, 9),
        (0.5, 1, 9),
        (1.5, 1, 3),
        (5, 1, 9),
        (5, 5, 5),
        (4.5, 1, 3),
        (15, 1, 2),
    ],
)
def test_widths_on_and_beside_min_bits_round_trip(min_bits, lowest, highest, form):
    widths = torch.arange(lowest, highest + 1, dtype=torch.uint8).repeat(9)
    levels = random_entry((len(widths), 4), widths, 4)
    entry = encode_diffq_entry(levels, widths, (0.0, 1.0), min_bits=min_bits, **form)
    decoded = decode_diffq_entry(entry, levels.shape, group_size=4, min_bits=min_bits)
    assert torch.equal(decoded.widths, widths)
    assert torch.equal(decoded.levels, levels)


def test_unpacked_levels_are_int16_from_9_bits_on():
    levels = torch.zeros(4, 2, dtype=torch.int32)
    for highest, dtype in ((8, torch.uint8), (9, torch.int16)):
        widths = torch.tensor([2, 3, highest, 1], dtype=torch.uint8)
        assert encode_diffq_entry(levels, widths, (0, 1), min_bits=2, packed=False)[0].dtype == dtype


@pytest.mark.parametrize("torch_pack", [False, True])
def test_width_15_is_a_15th_entry_and_says_so(torch_pack):
    widths = torch.tensor([15, 2, 15], dtype=torch.uint8)
    levels = random_entry((3, 8), widths, 8)
    levels[0, 0] = 32767
    with pytest.warns(UserWarning, match="conv.weight: .*15 bits are written as a 15th list entry"):
        entry = encode_diffq_entry(levels, widths, (0, 1), min_bits=2, torch_pack=torch_pack, name="conv.weight")
    assert len(entry[0]) == 15
    decoded = decode_diffq_entry(entry, (3, 8), group_size=8, min_bits=2)
    assert torch.equal(decoded.levels, levels)


def test_without_width_15_there_are_14_entries_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entry = encode_diffq_entry(
            torch.zeros(1, 8, dtype=torch.int32), torch.tensor([14], dtype=torch.uint8), (0, 1), min_bits=2
        )
    assert [planes is None for planes in entry[0]] == 13 * [True] + [False]


def test_older_widths_with_a_second_dimension_decode():
    entry = (
        torch.tensor([[1, 2], [3, 0]], dtype=torch.uint8),
        (0.0, 3.0),
        torch.tensor([[2], [2]], dtype=torch.uint8),
    )
    decoded = decode_diffq_entry(entry, (4,), group_size=2, min_bits=2)
    assert decoded.levels.tolist() == [1, 2, 3, 0]
    assert decoded.widths.tolist() == [2, 2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [1, 2, 8, 8.5, 9.6, 14.2, 15])
@pytest.mark.parametrize("shape", [(1,), (65,), (3, 5, 7), (64, 33)])
def test_uniform_entries_round_trip(shape, bits, form):
    count = torch.Size(shape).numel()
    levels = (torch.arange(count, dtype=torch.int32) % int(2**bits)).view(shape)
    levels.view(-1)[-1] = int(2**bits) - 1
    entry = encode_uniform_entry(levels, (-1.0, 1.0), bits=bits, **form)
    for told in (form["packed"], None):
        decoded = decode_uniform_entry(entry, shape, bits=bits, packed=told)
        assert decoded.levels.dtype == torch.int32
        assert torch.equal(decoded.levels, levels)
        assert decoded.ranges == (-1.0, 1.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [2, 4, 8, 15])
@pytest.mark.parametrize("shape", [(1,), (65,), (3, 5, 7), (64, 33)])
def test_lsq_entries_round_trip(shape, bits, form):
    half = 2 ** (bits - 1)
    indices = (torch.arange(torch.Size(shape).numel(), dtype=torch.int32) % (2 * half) - half).view(shape)
    indices.view(-1)[-1] = half - 1
    scale = torch.nn.Parameter(torch.tensor(0.01))
    entry = encode_lsq_entry(indices, scale, bits=bits, **form)
    assert not entry[1].requires_grad
    for told in (form["packed"], None):
        decoded = decode_lsq_entry(entry, shape, bits=bits, packed=told)
        assert torch.equal(decoded.indices, indices)
        assert torch.equal(decoded.scale, scale.detach())


@pytest.mark.parametrize(("min_bits", "base"), [(2, 2), (2.0, 2), (2.5, 2), (1, 1), (0.3, 1), (14.9, 14)])
def test_width_base_is_the_whole_number_below(min_bits, base):
    assert width_base(min_bits) == base
    assert width_base(base) == base


# -- refusals ----------------------------------------------------------------------

WIDTHS = torch.tensor([2, 9], dtype=torch.uint8)
LEVELS = torch.tensor([[0, 3], [511, 0]], dtype=torch.int32)
UNPACKED = encode_diffq_entry(LEVELS, WIDTHS, (-1.0, 1.0), min_bits=2, packed=False)
PACKED = encode_diffq_entry(LEVELS, WIDTHS, (-1.0, 1.0), min_bits=2)


def replaced(entry, index, part):
    return (*entry[:index], part, *entry[index + 1 :])


def two_full_values(nbits):
    """Planes of bitpack that hold two values of all ones, and zeros."""
    planes = torch.zeros(1, nbits, 32, dtype=torch.int64)
    planes[..., :2] = 1
    return planes


def without_planes(width):
    return [None if number == width else planes for number, planes in enumerate(PACKED[0], start=1)]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (UNPACKED[:2], "an entry of 3 parts, found 2 parts"),
        (None, "an entry of 3 parts, found NoneType"),
        (torch.zeros(3), "an entry of 3 parts, found torch.float32"),
        (replaced(UNPACKED, 0, torch.zeros(2, 2)), "integer tensor of levels, found torch.float32"),
        (
            replaced(UNPACKED, 0, torch.zeros(2, 3, dtype=torch.int16)),
            "2 widths and 4 levels .* found 2 and 6",
        ),
        (replaced(UNPACKED, 2, torch.ones(3, dtype=torch.uint8)), "found 3 and 4"),
        (replaced(UNPACKED, 2, torch.tensor([0, 9], dtype=torch.uint8)), "between 1 and 15 bits, found 0"),
        (replaced(UNPACKED, 2, torch.tensor([2, 16], dtype=torch.uint8)), "between 1 and 15 bits, found 16"),
        (replaced(UNPACKED, 0, torch.tensor([[0, 4], [0, 0]])), "found level 4"),
        (replaced(UNPACKED, 0, torch.tensor([[0, -1], [0, 0]])), "found level -1"),
        (replaced(UNPACKED, 0, torch.tensor([[0, 2**32 + 1], [0, 0]])), "found level 2147483647"),
        (replaced(UNPACKED, 1, (1.0, -1.0)), "lo <= hi"),
        (replaced(UNPACKED, 1, (float("nan"), 1.0)), "a finite number as the weight's range"),
        (replaced(UNPACKED, 1, (0.0, float("inf"))), "a finite number"),
        (replaced(UNPACKED, 1, ("a", 1.0)), "a finite number as the weight's range, found str"),
        (replaced(UNPACKED, 1, 3.0), "an entry of 2 parts"),
        (replaced(PACKED, 0, "planes"), "a list of at most 15 packed tensors"),
        (replaced(PACKED, 0, 16 * [None]), "a list of at most 15"),
        (replaced(PACKED, 0, without_planes(9)), "has groups of 9 bits, but no levels"),
        (replaced(PACKED, 0, PACKED[0][:8]), "has groups of 9 bits, but no levels"),
        (replaced(PACKED, 0, 14 * [torch.zeros(3, 2, 32, dtype=torch.int64)]), "expected 2 packed values"),
        (replaced(PACKED, 0, 14 * [torch.zeros(1, 17, 32, dtype=torch.int64)]), "expected 2 packed values"),
        (replaced(PACKED, 0, 14 * [torch.zeros(2, dtype=torch.int64)]), "a packed tensor, found torch.int64"),
        (replaced(PACKED, 0, 14 * [two_full_values(16)]), "does not fit its width"),
        (replaced(PACKED, 0, 14 * [torch.full((1, 16, 32), -1)]), "expected 2 packed values, found more"),
        (replaced(PACKED, 2, torch.zeros(2, 2)), "a packed tensor, found torch.float32"),
        (replaced(PACKED, 2, two_full_values(15)), "has groups of"),
    ],
)
def test_decode_diffq_entry_refuses(entry, words):
    with pytest.raises(ValueError, match="legacy state: conv.weight: .*" + words):
        decode_diffq_entry(entry, (2, 2), group_size=2, min_bits=2, name="conv.weight")


def test_a_file_of_diffqs_that_lost_its_15_bit_groups_is_refused_with_the_reason():
    entry = (14 * [None], (0.0, 1.0), two_full_values(1))  # each width is base + 1
    with pytest.raises(ValueError, match=r"groups of 14 bits, but no levels for them$"):
        decode_diffq_entry(entry, (4,), group_size=2, min_bits=13)
    with pytest.raises(ValueError, match=r"groups of 15 bits.*diffq 0.2.4 does not save groups of 15 bits"):
        decode_diffq_entry(entry, (4,), group_size=2, min_bits=14)


@pytest.mark.parametrize(("shape", "group_size"), [((3, 3), 2), ((0,), 2), ((2, 2), -1)])
def test_decode_diffq_entry_refuses_a_weight_without_whole_groups(shape, group_size):
    with pytest.raises(ValueError, match="no whole number of groups"):
        decode_diffq_entry(UNPACKED, shape, group_size=group_size, min_bits=2)


@pytest.mark.parametrize(
    ("levels", "widths", "words"),
    [
        ([0, 1, 2], [2, 2], "expected whole groups, got 3 levels in 2 groups.*the native format"),
        ([], [], "expected whole groups"),
        ([0, 4], [2, 2], "found level 4"),
        ([0, -1], [2, 2], "found level -1"),
        ([0, 1], [2, 16], "between 1 and 15 bits, found 16"),
        ([0, 1], [0, 2], "between 1 and 15 bits, found 0"),
    ],
)
def test_encode_diffq_entry_refuses(levels, widths, words):
    levels, widths = torch.tensor(levels, dtype=torch.int32), torch.tensor(widths, dtype=torch.uint8)
    with pytest.raises(ValueError, match="legacy state: conv.weight: .*" + words):
        encode_diffq_entry(levels, widths, (0, 1), min_bits=2, name="conv.weight")


@pytest.mark.parametrize("bits", [0, 0.5, 15.5, 16])
def test_uniform_bits_outside_1_to_15_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be between 1 and 15, got {bits}"):
        encode_uniform_entry(LEVELS, (0, 1), bits=bits)
    with pytest.raises(ValueError, match=f"bits must be between 1 and 15, got {bits}"):
        decode_uniform_entry((LEVELS, (0, 1)), (2, 2), bits=bits)


@pytest.mark.parametrize("bits", [1, 16])
def test_lsq_bits_outside_2_to_15_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be between 2 and 15, got {bits}"):
        encode_lsq_entry(LEVELS, torch.tensor(1.0), bits=bits)


def test_levels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="found level 511"):
        encode_uniform_entry(LEVELS, (0, 1), bits=8)
    with pytest.raises(ValueError, match="found level 511"):
        decode_uniform_entry((LEVELS.to(torch.int16), (0.0, 1.0)), (2, 2), bits=8)
    with pytest.raises(ValueError, match="does not fit its width"):
        encode_lsq_entry(LEVELS, torch.tensor(1.0), bits=9)
    with pytest.raises(ValueError, match="does not fit its width"):
        decode_lsq_entry((LEVELS.to(torch.int16), torch.tensor(1.0)), (2, 2), bits=9)


def test_unpacked_levels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"the weight's shape \[4\], found torch.int32 \[2, 2\]"):
        decode_uniform_entry((LEVELS, (0.0, 1.0)), (4,), bits=9, packed=False)


def test_a_scale_that_is_no_number_is_refused():
    for scale in (torch.tensor(float("nan")), torch.zeros(2), "1"):
        with pytest.raises(ValueError, match="a finite number as scale"):
            decode_lsq_entry((LEVELS.to(torch.int16), scale), (2, 2), bits=12)
