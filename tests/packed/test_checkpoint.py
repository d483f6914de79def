"""packed_checkpoint: ordinary checkpoints in and out, with the values that diffq itself gets back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffq_fast.packed.checkpoint import (
    OneWidth,
    find_group_size,
    has_logits,
    pack_at_bits,
    pack_with_logits,
    unpack_file,
)
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.save_load import save
from diffq_fast.reference.logit_rule import LogitRule
from support.packed_examples import DATA, kinds
from support.packed_models import Net, trained

GOLDEN = DATA / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
RULE_ARGUMENTS = ("min_bits", "max_bits", "extra_bits", "param")


def golden_cases() -> list[str]:
    """Cases of DiffQuantizer with a float checkpoint, whose unquantised tensors diffq keeps in float32."""
    names = [name for name in CASES if (GOLDEN / f"{name}.float.safetensors").exists()]
    return [name for name in names if name.startswith("diffq_") and not CASES[name]["kwargs"].get("float16")]


@pytest.mark.parametrize("name", golden_cases())
def test_packing_and_unpacking_gives_what_diffq_restores(name, tmp_path):
    arguments = CASES[name]["kwargs"]
    rule = LogitRule(**{key: arguments[key] for key in RULE_ARGUMENTS if key in arguments})
    pack_with_logits(GOLDEN / f"{name}.float.safetensors", tmp_path / "packed", rule)
    assert read_packed(tmp_path / "packed").quantizer["arguments"]["group_size"] == arguments.get("group_size", 1)
    unpack_file(tmp_path / "packed", tmp_path / "plain.safetensors")
    ours, theirs = (
        load_file(tmp_path / "plain.safetensors"),
        load_file(GOLDEN / f"{name}.restored.safetensors"),
    )
    assert set(theirs) <= set(ours)
    for each, tensor in theirs.items():
        assert torch.equal(ours[each], tensor), each


def test_unpack_writes_every_name_in_its_own_dtype(tmp_path):
    kinds().write(tmp_path / "packed")
    unpack_file(tmp_path / "packed", tmp_path / "plain.safetensors")
    state, expected = load_file(tmp_path / "plain.safetensors"), read_packed(tmp_path / "packed").state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


def test_an_unpacked_file_loads_into_the_plain_model(tmp_path):
    model, quantizer = trained()
    save(quantizer, tmp_path / "packed")
    unpack_file(tmp_path / "packed", tmp_path / "plain.safetensors")
    plain = Net().eval()
    plain.load_state_dict(load_file(tmp_path / "plain.safetensors"))
    x = torch.randn(2, 3, 9)
    assert torch.equal(plain(x), model.eval()(x))


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ({"a": (3072, 384)}, 8),
        ({"a": (3070, 384)}, 8),
        ({"a": (64, 64)}, 1),
        ({"a": (7, 1)}, 0),
        ({"a": (16, 3), "b": (3072, 512)}, 6),
        ({"a": (5, 1), "b": (80, 10)}, 8),
        ({"a": (2**33, 2**30)}, 8),
    ],
)
def test_find_group_size_infers_the_only_one_that_fits(counts, size):
    assert find_group_size(counts) == size


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"a": (16, 3)}, "every group size from 6 to 7 fits the logits; give --group-size"),
        ({"a": (16, 2), "b": (64, 8)}, "every group size from 8 to 9 fits the logits"),
        ({"a": (64, 8), "b": (64, 16)}, "b: 16 logits for 64 elements need another group size than a"),
        ({"a": (640, 80), "b": (9, 1)}, "b: 1 logits for 9 elements need another group size than a"),
        ({"a": (9, 1), "b": (640, 80)}, "b: 80 logits for 640 elements need another group size than a"),
        ({"a": (4, 5)}, "a: 5 logits cannot be one per group of 4 elements"),
        ({"a": (0, 1)}, "a: 1 logits cannot be one per group of 0 elements"),
        ({"a": (4, 0)}, "a: 0 logits cannot be one per group of 4 elements"),
    ],
)
def test_find_group_size_refuses_to_guess(counts, words):
    with pytest.raises(ValueError, match=words):
        find_group_size(counts)


def test_find_group_size_checks_the_given_one():
    assert find_group_size({"a": (16, 3)}, 6) == 6
    assert find_group_size({"a": (16, 3)}, 7) == 7
    with pytest.raises(ValueError, match="a: group_size 8 gives 2 groups in 16 elements, found 3 logits"):
        find_group_size({"a": (16, 3)}, 8)


def test_pack_at_bits_packs_large_floats_and_keeps_the_rest(tmp_path):
    state = {
        "big": torch.randn(64, 64),
        "big.half": torch.randn(64, 64).half(),
        "big.brain": torch.randn(64, 64).bfloat16(),
        "big.kept": torch.randn(64, 64),
        "double": torch.randn(64, 64).double(),
        "index": torch.arange(4096),
        "small": torch.randn(64),
    }
    save_file(state, tmp_path / "plain")
    assert not has_logits(tmp_path / "plain", "_diffq")
    pack_at_bits(tmp_path / "plain", tmp_path / "packed", OneWidth(8, exclude=["kept"]))
    contents = read_packed(tmp_path / "packed")
    assert set(contents.packed) == {"big", "big.half", "big.brain"}
    loaded = contents.state_dict()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        step = (tensor.double().max() - tensor.double().min()) / 255
        error = (loaded[name].double() - tensor.double()).abs().max()
        assert error <= 0.51 * step + tensor.double().abs().max() / 256 if name in contents.packed else error == 0


def test_pack_at_bits_with_a_range_per_group_is_closer(tmp_path):
    weight = torch.randn(64, 64) * torch.logspace(-3, 0, 64)[:, None]
    save_file({"w": weight}, tmp_path / "plain")
    errors = []
    for scope in ("tensor", "group"):
        pack_at_bits(tmp_path / "plain", tmp_path / "packed", OneWidth(4, group_size=64, range_scope=scope))
        errors.append((read_packed(tmp_path / "packed").state_dict()["w"] - weight).abs()[:32].max().item())
    assert errors[1] < errors[0] / 10


def test_broken_checkpoints_are_refused_by_name(tmp_path):
    weight = torch.randn(4, 8)
    cases = {
        "w: expected finite elements": {"w": torch.full((4, 8), torch.nan), "w_diffq": torch.zeros(4)},
        "w_diffq: expected finite logits": {"w": weight, "w_diffq": torch.tensor([0, torch.nan, 0, 0])},
        "w_diffq: expected finite logits, found torch.int64": {"w": weight, "w_diffq": torch.zeros(4).long()},
        "no tensor has logits named NAME_diffq": {"w": weight, "v_diffq": torch.zeros(4)},
    }
    for words, state in cases.items():
        save_file(state, tmp_path / "plain")
        with pytest.raises(ValueError, match=words):
            pack_with_logits(tmp_path / "plain", tmp_path / "packed", LogitRule(), group_size=8)
    assert not (tmp_path / "packed").exists()


def test_a_packed_file_is_not_packed_again(tmp_path):
    with pytest.raises(PackedFileError, match="this file is packed already"):
        pack_at_bits(DATA / "packed_v1_kinds.safetensors", tmp_path / "packed", OneWidth(8))
