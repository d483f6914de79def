"""What holds for every operator: its words, its shape rule, and what it refuses before it touches memory."""

from __future__ import annotations

import pytest
import torch

from diffq_fast import functional
from diffq_fast.backends import cpu
from diffq_fast.reference.packed_rows import pack_rows
from support.operators import KEY, check, leaves, ops, options_of

WEIGHT, LEVELS = torch.linspace(-1, 1, 20), torch.arange(20, dtype=torch.int32) % 8
WIDTHS, RANGES = torch.tensor([3, 4, 5], dtype=torch.uint8), torch.tensor([[-1.0, 1.0]])
LOGITS, EXTREMES = torch.zeros(3), torch.tensor([[0, 19, 1, 1]])
WORDS = functional.pack(LEVELS, WIDTHS)
PLANES = functional.pack_planes(LEVELS, 3)
CODED = functional.encode_levels(LEVELS)
ROWS = *pack_rows(LEVELS.view(2, 10), torch.full((2, 1), 3, dtype=torch.uint8), 10), *RANGES.mT, [10, 10, 0, 0, 0]
LEVELS_OF_WIDTH = [0, 0, 8, 8, 4] + [0] * 11
FLOAT = torch.float32
NOISE = [WEIGHT], [LOGITS], KEY, [0]

# operator: arguments that fit one another; the group size, where there is one, is 8
CALLS = {
    "noise": (KEY, 3, 0, 20, "gaussian"),
    "weight_range": ([WEIGHT, WEIGHT[:9]], 8, True),
    "add_noise": (*NOISE, None, *options_of(8)),
    "add_noise_backward": ([WEIGHT], [WEIGHT], [LOGITS], RANGES, EXTREMES, KEY, [0], *options_of(8)),
    "add_uniform_noise": ([WEIGHT], [LOGITS], KEY, [0], [8]),
    "add_uniform_noise_backward": ([WEIGHT], [LOGITS], KEY, [0], [8]),
    "weight_sizes": ([LOGITS, LOGITS], [20, 17], 8, 2.0, 15.0, "bits", 0.0),
    "weight_sizes_backward": (torch.ones(2), [LOGITS, LOGITS], [20, 17], 8, 2.0, 15.0, "bits"),
    "widths_from_logits": (LOGITS, 2.0, 15.0, "bits", 0.0),
    "count_widths": (WIDTHS,),
    "quantize": ([WEIGHT], [WIDTHS], RANGES, 8, False),
    "dequantize": ([LEVELS], [WIDTHS], RANGES, 8, False, FLOAT),
    "fake_quantize": ([WEIGHT], [WIDTHS], RANGES, 8, False),
    "pack": (LEVELS, WIDTHS, 8, len(WORDS)),
    "quantize_pack": (WEIGHT, WIDTHS, RANGES, 8, False, len(WORDS)),
    "unpack": (WORDS, WIDTHS, 8, 20),
    "unpack_dequantize": (WORDS, WIDTHS, RANGES, 8, False, [20], FLOAT),
    "encode_levels": (LEVELS, 0, 3, [], False, 17),
    "decode_levels": (CODED, 20),
    "pack_rows": (LEVELS.view(2, 10), torch.full((2, 1), 3, dtype=torch.uint8), ROWS[1], 10, len(ROWS[0])),
    "unpack_rows": (torch.tensor([1, 0]), *ROWS),
    "packed_linear": (torch.ones(2, 10), *ROWS),
    "pack_planes": (LEVELS, 3, 64, 32),
    "pack_planes_seen": (LEVELS, 3, 64, 32),
    "quantize_planes": (WEIGHT, WIDTHS, RANGES, 8, LEVELS_OF_WIDTH),
    "unpack_planes": (PLANES, 20),
}
SCHEMAS = {
    schema.name.removeprefix("diffq_fast::"): schema
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("diffq_fast::")
}


def grouped():
    """(operator, place of its group size)."""
    names = {name: [argument.name for argument in SCHEMAS[name].arguments] for name in CALLS}
    return [(name, given.index("group_size")) for name, given in names.items() if "group_size" in given]


def with_choices():
    """(operator, place of a choice, its name)."""
    return [
        (name, place, argument.name)
        for name in CALLS
        for place, argument in enumerate(SCHEMAS[name].arguments)
        if argument.name in ("param", "noise_kind")
    ]


def with_one_on_meta(arguments):
    """The arguments with one tensor after the other on the meta device, where others are not."""
    for place, argument in enumerate(arguments):
        for index, tensor in enumerate(argument if isinstance(argument, list) else [argument]):
            if isinstance(tensor, torch.Tensor):
                moved = tensor.to("meta")
                if isinstance(argument, list):
                    moved = [*argument[:index], moved, *argument[index + 1 :]]
                yield (*arguments[:place], moved, *arguments[place + 1 :])


def test_every_operator_has_a_call():
    assert set(CALLS) == set(SCHEMAS) - {"draw_key"}  # which is random


def test_schemas_use_one_word_an_idea():
    words = {argument.name for schema in SCHEMAS.values() for argument in (*schema.arguments, *schema.returns)}
    assert not words & {"first", "kind", "range", "found", "bounds", "rows_of", "tally", "nbits", "seed", "scale"}
    assert {"ranges", "noise_kind", "begin", "nonfinite", "width"} <= words


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    check(getattr(ops, name).default, *CALLS[name])


@pytest.mark.parametrize("name", [name for name in CALLS if len(list(with_one_on_meta(CALLS[name]))) > 1])
def test_a_meta_tensor_among_others_is_refused(name):
    """The dispatcher sends such a call to the shape rule, and nobody would ever write the results."""
    for arguments in with_one_on_meta(CALLS[name]):
        with pytest.raises(ValueError, match=f"{name}: .*on one device"):
            getattr(ops, name)(*arguments)


def test_a_meta_tensor_among_weights_that_learn_is_refused():
    weight, logit = leaves([WEIGHT, LOGITS])
    for arguments in with_one_on_meta(([weight], [logit], KEY)):
        with pytest.raises(ValueError, match=r"add_noise: .*on one device"):
            ops.add_noise(*arguments, [0], None, *options_of(8))


@pytest.mark.parametrize(("name", "place", "choice"), with_choices())
def test_an_unknown_choice_is_refused(name, place, choice):
    arguments = [*CALLS[name][:place], "bogus", *CALLS[name][place + 1 :]]
    with pytest.raises(ValueError, match=f"{choice} must be one of '.*', got 'bogus'"):
        getattr(ops, name)(*arguments)


@pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])
@pytest.mark.parametrize("group_size", [-1, -8, -1024, -(2**63)])
@pytest.mark.parametrize(("name", "place"), grouped())
def test_a_negative_group_size_is_refused(name, place, group_size):
    """Also one larger than the weight, with as many widths as such groups would have: none."""
    arguments = [*CALLS[name][:place], group_size, *CALLS[name][place + 1 :]]
    with pytest.raises(ValueError, match=f"{name}: group_size must be 0 .* or positive, got {group_size}"):
        getattr(ops, name)(*arguments)
    nothing = [without_groups(argument) for argument in arguments]
    with pytest.raises(ValueError, match=f"{name}: .*group_size"):
        getattr(ops, name)(*nothing)


def without_groups(argument):
    """The widths and logits emptied; everything else as it is."""
    if isinstance(argument, list):
        return [without_groups(each) for each in argument]
    return argument[:0] if argument is WIDTHS or argument is LOGITS else argument


@pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])
@pytest.mark.parametrize("count", [-1, -1024, -(2**62)])
def test_negative_counts_are_refused(count):
    calls = {
        "noise": (KEY, 0, 0, count, "uniform"),
        "pack": (LEVELS, WIDTHS, 8, count),
        "unpack": (WORDS, WIDTHS, 8, count),
        "quantize_pack": (WEIGHT, WIDTHS, RANGES, 8, False, count),
        "unpack_dequantize": (WORDS, WIDTHS, RANGES, 8, False, [count], FLOAT),
        "decode_levels": (CODED, count),
        "pack_planes": (LEVELS, 3, 64, count),
        "unpack_planes": (PLANES, count),
        "quantize_planes": (WEIGHT, WIDTHS, RANGES, 8, [count] * 16),
    }
    for name, arguments in calls.items():
        with pytest.raises(ValueError, match=f"{name}: "):
            getattr(ops, name)(*arguments)
