"""Packed tensors, files and what is loaded are the same, bit for bit, whatever torch's default dtype and device are."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import diffq_fast
from diffq_fast.legacy.state import load_legacy
from diffq_fast.packed.checkpoint import OneWidth, pack_at_bits, pack_with_logits, unpack_file
from diffq_fast.packed.contents import read_packed, write_packed
from diffq_fast.packed.tensor import pack_levels, pack_weight
from diffq_fast.reference.logit_rule import LogitRule
from support.defaults import DEFAULTS, default
from support.packed_examples import kinds
from support.paths import GOLDEN


def same(one: torch.Tensor, another: torch.Tensor) -> bool:
    equal = one.dtype == another.dtype and one.device == another.device and one.shape == another.shape
    return equal and torch.equal(one, another)


@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_weights_pack_and_unpack_alike(value):
    weight, widths = torch.linspace(-1, 3, 70), torch.tensor([3, 5, 16], dtype=torch.uint8)
    levels, ranges, scale = torch.arange(8, dtype=torch.int32), torch.tensor([-0.3, 0.7]), torch.tensor([0.3])

    def made():
        packed = [
            pack_weight(weight, widths, group_size=32),
            pack_weight(weight, widths, group_size=32, range_scope="group"),
            pack_levels(levels, 4, ranges, dtype=torch.float32, level_count=9),
            pack_levels(levels, 4, scale, dtype=torch.bfloat16, range_scope="scale"),
        ]
        return [each for one in packed for each in (one.words, one.widths, one.ranges, one.unpack())]

    expected = made()
    with default(value):
        found = made()
    assert all(same(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_files_are_the_same_and_read_alike(value, tmp_path):
    contents = kinds().contents()
    write_packed(tmp_path / "a", contents)
    expected = read_packed(tmp_path / "a").state_dict()
    with default(value):
        write_packed(tmp_path / "b", contents)
        found = read_packed(tmp_path / "b").state_dict()
        unpack_file(tmp_path / "b", tmp_path / "c")
        diffq_fast.inspect(tmp_path / "b").table()
    unpack_file(tmp_path / "a", tmp_path / "d")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()
    assert all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_checkpoints_pack_alike(value, tmp_path):
    weights = {"w": torch.randn(40, 8), "w_diffq": torch.randn(40), "b": torch.ones(3)}
    save_file(weights, tmp_path / "plain")

    def pack(name):
        pack_with_logits(tmp_path / "plain", tmp_path / f"{name}.logits", LogitRule())
        options = OneWidth(3, group_size=8, range_scope="group", min_size=0)
        pack_at_bits(tmp_path / "plain", tmp_path / f"{name}.bits", options)

    pack("a")
    with default(value):
        pack("b")
    for form in ("logits", "bits"):
        assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_models_load_alike(value, logits, tmp_path):
    quantizer = diffq_fast.DiffQuantizer(nn.Linear(16, 8), min_size=0, group_size=8)
    diffq_fast.save(quantizer, tmp_path / "a", logits=logits)

    def loaded(model):
        return diffq_fast.load(tmp_path / "a", model).state_dict()

    def attached():
        model = nn.Linear(16, 8)
        diffq_fast.DiffQuantizer(model, min_size=0, group_size=8)
        return model

    plain, learning = nn.Linear(16, 8), attached()
    expected = loaded(nn.Linear(16, 8)), loaded(attached())
    with default(value):
        found = loaded(plain), loaded(learning)
    for one, another in zip(found, expected, strict=True):
        assert all(same(one[name], another[name]) for name in another)


@pytest.mark.parametrize("name", ["demucs_v2.th", "demucs_v4.th", "demucs_hf.safetensors", "diffq_linear_g8.th"])
@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_legacy_files_read_alike(value, name):
    def tensors():
        loaded = load_legacy(GOLDEN / name)
        state = loaded.state if hasattr(loaded, "state") else loaded
        parts = [part for entry in state.quantized for part in entry if isinstance(part, torch.Tensor)]
        return [*parts, *state.float16, *state.others]

    expected = tensors()
    with default(value):
        found = tensors()
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
