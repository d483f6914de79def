"""packed_logits: training goes on from a packed file, with its logits or with such as give its widths."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from diffq_fast.packed.contents import PackedContents, read_packed, write_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.report import inspect
from diffq_fast.packed.save_load import load, save
from diffq_fast.packed.tensor import pack_weight
from diffq_fast.quantizers.diffq import DiffQuantizer
from diffq_fast.reference.logit_rule import LogitRule
from support.packed_models import Net, trained, widths_of


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"param": "noise"},
        {"extra_bits": 1.5},
        {"extra_bits": -2},
        {"min_bits": 2.4, "max_bits": 8.6, "init_bits": 4},
        {"min_bits": 4, "max_bits": 4.4, "init_bits": 4.2},
        {"group_size": 0},
        {"suffix": "_bits"},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.5, 3, 30])
def test_without_stored_logits_the_same_widths_come_out_again(arguments, spread, tmp_path):
    _, quantizer = trained(spread, **arguments)
    save(quantizer, tmp_path / "a")
    other, again = trained(0, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "a", other)
    assert widths_of(again) == widths_of(quantizer)
    low, high = again.min_bits, again.max_bits
    for record in again._qparams:
        bits = again._get_bits(record.logit)
        assert bool(((bits > low) & (bits < high)).all())
    save(again, tmp_path / "b")
    assert read_packed(tmp_path / "b").packed["conv.weight"].widths.tolist() == widths_of(quantizer)["conv.weight"]


def test_stored_logits_are_restored_exactly(tmp_path):
    model, quantizer = trained()
    save(quantizer, tmp_path / "a", logits=True)
    other, _ = trained(0)
    load(tmp_path / "a", other)
    for name, tensor in model.state_dict().items():
        if name.endswith("_diffq"):
            assert torch.equal(other.state_dict()[name], tensor)
    assert inspect(tmp_path / "a").bytes_by_purpose["learned values"] == 4 * (12 + 13)


def test_a_plain_model_passes_over_stored_logits(tmp_path):
    model, quantizer = trained()
    save(quantizer, tmp_path / "a", logits=True)
    loaded = load(tmp_path / "a", Net().eval())
    assert torch.equal(loaded(torch.ones(1, 3, 9)), model.eval()(torch.ones(1, 3, 9)))
    assert "conv.weight_diffq" in load(tmp_path / "a")


def test_widths_out_of_the_rules_reach_are_told(tmp_path):
    packed = {"weight": pack_weight(torch.randn(4, 8), torch.tensor([3, 16, 5, 4], dtype=torch.uint8))}
    quantizer = {"class": "none", "arguments": {"min_bits": 4}}
    write_packed(tmp_path / "a", PackedContents(packed, {}, quantizer=quantizer))
    model = nn.Linear(8, 4, bias=False)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8, min_bits=4)
    with pytest.warns(UserWarning, match="weight_diffq: 2 of 4 groups have widths that bits strictly between 4 and"):
        load(tmp_path / "a", model)
    assert widths_of(quantizer)["weight"] == [4, 15, 5, 4]


@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize(("low", "high"), [(2, 15), (2, 8.503), (1.499, 15), (7.4, 7.6)])
@pytest.mark.parametrize("extra", [0, 0.5, -3, 4])
def test_every_width_that_a_rule_can_give_has_a_logit(param, low, high, extra):
    rule = LogitRule(low, high, extra, param)
    reachable = rule.widths(torch.linspace(-12, 12, 20001)).unique()
    assert torch.equal(rule.widths(rule.logits(reachable)), reachable)
    bits = torch.arange(1, 17, dtype=torch.uint8)
    assert bool(torch.isfinite(rule.logits(bits)).all())
    assert set(rule.widths(rule.logits(bits)).tolist()) == set(reachable.tolist())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_bits": "2"}, "must be numbers"),
        ({"max_bits": True}, "must be numbers"),
        ({"extra_bits": 1e9}, "must be numbers"),
        ({"min_bits": 15}, "expected 0 < min_bits < max_bits"),
        ({"min_bits": 0}, "expected 0 < min_bits < max_bits"),
        ({"param": "steps"}, "param must be one of"),
        ({"suffix": ""}, "param must be one of .* and suffix a text"),
        ({"suffix": []}, "param must be one of .* and suffix a text"),
    ],
)
def test_impossible_quantizer_arguments_are_refused(arguments, words, tmp_path):
    quantizer = {"class": "DiffQuantizer", "arguments": arguments}
    write_packed(tmp_path / "a", PackedContents({}, {}, quantizer=quantizer))
    with pytest.raises(PackedFileError, match=f"a: quantizer: .*{words}"):
        load(tmp_path / "a", nn.Linear(1, 1))
