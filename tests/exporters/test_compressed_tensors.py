"""export to compressed-tensors: unpacked bit by bit, the levels times their scales are what the report says."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffq_fast.exporters.export import export
from diffq_fast.exporters.options import ExportError
from diffq_fast.packed.coding import code_levels
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.tensor import pack_levels
from support.packed_examples import Example, example_weight


def unpacked_levels(words, bits, shape):
    """Signed levels, by shifting each out of its word: 32 / bits to a word, the lowest bits first."""
    rows, columns = shape
    table = words.numpy().astype(np.uint32)
    a_word = 32 // bits
    found = [
        [(int(table[row, column // a_word]) >> bits * (column % a_word)) % (1 << bits) for column in range(columns)]
        for row in range(rows)
    ]
    return np.array(found) - (1 << bits - 1)


def stepped(rows, columns, most, group_size=None, seed=3):
    size = group_size or columns
    levels = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * most / 3
    levels = levels.round().clamp(-most, most - 1).int()
    return code_levels(levels, torch.arange(rows * columns // size) % 7 - 90, group_size=size)


def example():
    packed = {
        "rows.weight": stepped(6, 37, 8),
        "groups.weight": stepped(4, 64, 8, 16),
        "eight.weight": stepped(5, 33, 128),
        "scaled.weight": pack_levels(
            torch.arange(24).int().reshape(3, 8) % 16, 4, torch.tensor([0.25]), dtype=torch.float32, range_scope="scale"
        ),
        "mixed.weight": example_weight((4, 256), [2, 5, 7, 3], 8),
        "conv.weight": example_weight((4, 3, 3), [6], 8),
    }
    plain = {"rows.bias": torch.linspace(-1, 1, 6), "count": torch.tensor(7)}
    return Example(packed, plain, {"tied.weight": "rows.weight"})


def exported(tmp_path, contents=None, **options):
    path = (contents or example()).write(tmp_path / "a")
    report = export(path, tmp_path / "out.safetensors", to="compressed-tensors", **options)
    config = json.loads((tmp_path / "out.quantization_config.json").read_text())
    return read_packed(path).state_dict(), report, load_file(tmp_path / "out.safetensors"), config


def value_of(written, name, group):
    """A matrix as a program of this format makes it."""
    weights = group["weights"]
    shape = written[name + "_shape"].tolist()
    levels = unpacked_levels(written[name + "_packed"], weights["num_bits"], shape)
    scale = written[name + "_scale"].double().numpy()
    if weights["strategy"] == "group":
        assert scale.shape == (shape[0], shape[1] // weights["group_size"])
        scale = np.repeat(scale, weights["group_size"], 1)
    elif weights["strategy"] == "channel":
        assert scale.shape == (shape[0], 1)
    else:
        assert scale.shape == (1,)
    return levels * scale


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_levels_times_scales_are_the_weights_to_the_error_that_is_told(dtype, tmp_path):
    state, report, written, config = exported(tmp_path, dtype=dtype)
    group_of = {name: group for group in config["config_groups"].values() for name in group["targets"]}
    assert set(group_of) == {"rows", "groups", "eight", "scaled", "mixed", "tied"}
    told = {each.name: each for each in report.tensors}
    assert set(told) == set(state)
    for name, value in state.items():
        module = name.removesuffix(".weight")
        if module in group_of:
            assert name not in written
            made = value_of(written, name, group_of[module])
        else:
            made = written[name].double().numpy()
            assert written[name].dtype == (getattr(torch, dtype) if value.is_floating_point() else value.dtype)
        error = made - value.double().numpy()
        norm = np.square(value.double().numpy()).sum()
        assert told[name].error.relative == pytest.approx((np.square(error).sum() / norm) ** 0.5, rel=1e-5, abs=1e-7)
        assert told[name].error.relative <= 0.01
    assert config["quant_method"], config["format"] == ("compressed-tensors", "pack-quantized")
    assert config["ignore"] == []


def test_levels_of_steps_and_scales_are_kept_as_they_are(tmp_path):
    _, report, _, config = exported(tmp_path)
    errors = {each.name: each.error.relative for each in report.tensors}
    assert [errors[f"{each}.weight"] for each in ("rows", "groups", "eight", "scaled", "tied")] == [0] * 5
    assert 0 < errors["mixed.weight"] < 0.01
    forms = {
        tuple(group["targets"]): tuple(group["weights"][each] for each in ("num_bits", "strategy", "group_size"))
        for group in config["config_groups"].values()
    }
    assert forms == {
        ("rows", "tied"): (4, "channel", None),
        ("groups",): (4, "group", 16),
        ("eight",): (8, "channel", None),
        ("scaled",): (4, "tensor", None),
        ("mixed",): (8, "group", 128),
    }


def test_what_has_no_such_form_is_refused_or_kept_in_floats(tmp_path):
    path = example().write(tmp_path / "a")
    with pytest.raises(ExportError, match=r"mixed.weight: .* rounded to such it is 0.00\d+ off; --tolerance allows 0"):
        export(path, tmp_path / "out.safetensors", to="compressed-tensors", tolerance=0)
    assert os.listdir(tmp_path) == ["a"]
    for options in ({"tolerance": 0, "keep_float": True}, {"floats": ("mixed*",)}):
        state, _, written, config = exported(tmp_path, **options)
        assert torch.equal(written["mixed.weight"], state["mixed.weight"])
        assert config["ignore"] == ["mixed"]
    unnamed = Example({"table": stepped(4, 8, 8)}).write(tmp_path / "b")
    with pytest.raises(ExportError, match=r"table: .* its name does not end with .weight"):
        export(unnamed, tmp_path / "no.safetensors", to="compressed-tensors")


def test_the_packages_own_function_unpacks_the_same(tmp_path):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    state, _, written, _ = exported(tmp_path)
    for name, bits in (("rows.weight", 4), ("eight.weight", 8)):
        shape = torch.Size(written[name + "_shape"].tolist())
        levels = helpers.unpack_from_int32(written[name + "_packed"], bits, shape)
        assert torch.equal(levels.float() * written[name + "_scale"], state[name])
