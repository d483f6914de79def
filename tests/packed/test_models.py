"""packed_file: models and quantizers of unusual kinds are saved, and come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.save_load import load, save


def linear(count: int = 8) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(count, count)


def eval_weights(quantizer) -> dict[str, torch.Tensor]:
    with quantizer.enter_quantize():
        return {name: value.detach().clone() for name, value in quantizer.model.state_dict().items()}


@pytest.mark.parametrize(
    ("make", "given", "stated"),
    [
        (DiffQuantizer, {"group_size": np.int64(4)}, {"group_size": 4}),
        (DiffQuantizer, {"max_bits": np.float32(9.5)}, {"max_bits": 9.5}),
        (DiffQuantizer, {"exclude": {"b*", "a*"}}, {"exclude": ["a*", "b*"]}),
        (UniformQuantizer, {"min_size": float("inf")}, {"min_size": "inf"}),
        (UniformQuantizer, {"bits": torch.tensor(4.0)}, {"bits": 4.0}),
        (UniformQuantizer, {"bits": np.float64(4.5)}, {"bits": 4.5}),
        (LSQ, {"bits": np.int32(4)}, {"bits": 4}),
        (LSQ, {"bits": torch.tensor(4)}, {"bits": 4}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(map(str, value.keys())),
)
def test_arguments_of_every_kind_of_number_can_be_saved(make, given, stated, tmp_path):
    quantizer = make(linear(), **{"min_size": 0, **given})
    save(quantizer, tmp_path / "a")
    arguments = read_packed(tmp_path / "a").quantizer["arguments"]
    assert arguments == {"min_size": 0} | stated
    assert all(type(arguments[name]) is type(value) for name, value in stated.items())
    expected = eval_weights(quantizer)["weight"]
    assert torch.equal(load(tmp_path / "a")["weight"], expected)


def test_a_buffer_over_a_weights_memory_is_a_further_name_of_it(tmp_path):
    model = linear()
    model.register_buffer("again", model.weight.data)
    save(UniformQuantizer(model, min_size=0), tmp_path / "a")
    assert read_packed(tmp_path / "a").ties == {"again": "weight"}


def test_tied_weights_with_widths_of_their_own_are_saved_one_by_one(tmp_path):
    model = nn.Sequential(linear(), linear())
    model[1].weight = model[0].weight
    quantizer = DiffQuantizer(model, min_size=0, group_size=8, detect_bound=False, exclude=["bias"])
    with torch.no_grad():
        model[1].weight_diffq.sub_(3)
    save(quantizer, tmp_path / "a")
    contents = read_packed(tmp_path / "a")
    assert list(contents.packed) == ["0.weight", "1.weight"]
    assert contents.packed["0.weight"].widths.tolist() != contents.packed["1.weight"].widths.tolist()
    assert contents.ties == {}
    x = torch.randn(2, 8)
    plain = load(tmp_path / "a", nn.Sequential(linear(), linear()))
    assert torch.equal(plain.eval()(x), model.eval()(x))


def test_conjugate_and_negative_views_are_tensors_of_their_own(tmp_path):
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            value = torch.complex(torch.arange(3.0), torch.arange(3.0) + 1)
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.register_buffer("plain", value)
            self.register_buffer("conj", value.conj())
            self.register_buffer("imag", value.imag)
            self.register_buffer("neg", value.conj().imag)

    model = Complex()
    save(UniformQuantizer(model, min_size=0), tmp_path / "a")
    found = load(tmp_path / "a")
    for name in ("plain", "conj", "imag", "neg"):
        assert torch.equal(found[name], getattr(model, name).resolve_conj().resolve_neg()), name
    other = Complex()
    other.plain.zero_()
    load(tmp_path / "a", other)
    assert torch.equal(other.conj, model.conj)
    assert torch.equal(other.neg, model.neg)


@pytest.mark.parametrize("half", [False, True])
def test_names_that_the_model_gives_are_those_of_the_file(half, tmp_path):
    model, quantizer = prefixed(), None
    quantizer = DiffQuantizer(model, min_size=0, group_size=8, float16=half, exclude=["bias"])
    save(quantizer, tmp_path / "a", logits=True)
    contents = read_packed(tmp_path / "a")
    assert list(contents.packed) == ["net.weight"]
    assert set(contents.half) == ({"net.bias"} if half else set())
    expected = eval_weights(quantizer)
    other = load(tmp_path / "a", prefixed())
    assert torch.equal(other.weight, expected["net.weight"])
    assert torch.equal(other.bias, expected["net.bias"])


def prefixed() -> nn.Linear:
    class Prefixed(nn.Linear):
        def state_dict(self, *args, **kwargs):
            return {f"net.{name}": value for name, value in super().state_dict(*args, **kwargs).items()}

        def load_state_dict(self, state_dict, strict=True, assign=False):
            own = {name.removeprefix("net."): value for name, value in state_dict.items()}
            return super().load_state_dict(own, strict=strict, assign=assign)

    return Prefixed(8, 8)


def test_a_weight_that_the_state_dict_changes_is_refused(tmp_path):
    class Turned(nn.Linear):
        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[prefix + "weight"] = self.weight.detach().t().contiguous()

    with pytest.raises(ValueError, match="weight is quantised, but the model's state_dict makes other values of it"):
        save(UniformQuantizer(Turned(8, 8), min_size=0), tmp_path / "a")
