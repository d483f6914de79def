"""packed_file: a quantizer on the model gives the file's weights again after loading, or load refuses, naming why."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer
from diffq_fast.packed.save_load import load, save
from support.packed_models import trained, widths_of


def attached(make, seed: int = 0, **arguments):
    torch.manual_seed(seed)
    quantizer = make(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), **{"min_size": 0, **arguments})
    if hasattr(quantizer, "no_optimizer"):
        quantizer.no_optimizer()
    return quantizer


def spread(quantizer) -> None:
    with torch.no_grad():
        for entry in quantizer._qparams:
            entry.logit.add_(3 * torch.randn_like(entry.logit))


CASES = [
    (UniformQuantizer, {"bits": 4}, UniformQuantizer, {"bits": 7}, "has 4 bits, this UniformQuantizer has bits=7"),
    (UniformQuantizer, {"bits": 4.5}, UniformQuantizer, {"bits": 5}, "has 22 levels, this UniformQuantizer has bits=5"),
    (LSQ, {"bits": 8}, LSQ, {"bits": 4}, "has 8 bits and a scale, this LSQ has bits=4 and a scale"),
    (DiffQuantizer, {}, UniformQuantizer, {}, "has groups of .* bits, this UniformQuantizer has bits=8"),
    (LSQ, {}, UniformQuantizer, {}, "has 8 bits and a scale, this UniformQuantizer has bits=8"),
    (DiffQuantizer, {}, DiffQuantizer, {"max_bits": 6, "init_bits": 4}, "DiffQuantizer with max_bits=6.0 cannot give"),
    (DiffQuantizer, {}, DiffQuantizer, {"min_bits": 7}, "DiffQuantizer with min_bits=7.0 cannot give"),
    (DiffQuantizer, {}, DiffQuantizer, {"extra_bits": 4}, "DiffQuantizer with extra_bits=4.0 cannot give"),
    (DiffQuantizer, {"range_scope": "group"}, DiffQuantizer, {}, "range_scope='group', this .* range_scope='tensor'"),
    (DiffQuantizer, {"group_size": 40}, DiffQuantizer, {"group_size": 41}, "group_size=40, .* has group_size=41"),
]


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("make", "saved", "other", "arguments", "words"), CASES)
def test_other_arguments_are_refused_and_named(make, saved, other, arguments, words, logits, strict, tmp_path):
    quantizer = attached(make, **saved, exclude=["bias"])
    if make is DiffQuantizer:
        spread(quantizer)
    save(quantizer, tmp_path / "a", logits=logits)
    reader = attached(other, 1, **arguments, exclude=["bias"])
    before = {name: value.clone() for name, value in reader.model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load(tmp_path / "a", reader.model, strict=strict)
    if not (strict and logits and other is UniformQuantizer and make is not UniformQuantizer):
        caught.match(words)
        caught.match("attach one with the arguments of the file")
    assert all(torch.equal(value, before[name]) for name, value in reader.model.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "arguments"),
    [
        ({}, {"param": "noise"}),
        ({"param": "noise"}, {}),
        ({"max_bits": 12}, {}),
        ({}, {"suffix": "_other"}),
        ({"suffix": "_other"}, {"param": "noise", "extra_bits": 0.25}),
    ],
)
@pytest.mark.parametrize("logits", [False, True])
def test_other_arguments_that_can_give_the_widths_do(saved, arguments, logits, tmp_path):
    model, quantizer = trained(1.5, **saved)
    save(quantizer, tmp_path / "a", logits=logits)
    other, reader = trained(0, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "a", other)
    assert widths_of(reader) == widths_of(quantizer)
    x = torch.randn(2, 3, 9)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_a_weight_that_the_file_has_as_floats_is_missing_there(tmp_path):
    save(attached(UniformQuantizer, exclude=["0.*"]), tmp_path / "a")
    reader = attached(UniformQuantizer)
    with pytest.raises(ValueError, match=r"0\.weight: this UniformQuantizer quantises it, but in the file"):
        load(tmp_path / "a", reader.model)
    load(tmp_path / "a", reader.model, strict=False)


@pytest.mark.parametrize("bits", [4, 5])
def test_two_quantizers_on_one_model_each_see_their_own_weights(bits, tmp_path):
    def both(seed, bits):
        first = attached(UniformQuantizer, seed, bits=bits, exclude=["1.*"])
        LSQ(first.model, bits=5, min_size=0, exclude=["0.*"]).no_optimizer()
        return first

    quantizer, reader = both(0, 4), both(1, bits)
    save(quantizer, tmp_path / "a")
    if bits == 4:
        x = torch.randn(2, 8)
        assert torch.equal(load(tmp_path / "a", reader.model).eval()(x), quantizer.model.eval()(x))
    else:
        with pytest.raises(ValueError, match=r"0\.weight: the file .* has 4 bits, this UniformQuantizer has bits=5"):
            load(tmp_path / "a", reader.model)


def test_a_quantizer_on_a_part_of_the_model_counts_too(tmp_path):
    save(attached(UniformQuantizer, bits=4), tmp_path / "a")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    UniformQuantizer(model[1], bits=7, min_size=0)
    with pytest.raises(ValueError, match=r"1\.weight: the file \(UniformQuantizer\) has 4 bits"):
        load(tmp_path / "a", model)
