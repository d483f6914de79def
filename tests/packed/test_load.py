"""packed_file: load fills models of every kind, or says why not and leaves them alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer
from diffq_fast.packed.contents import PackedContents, write_packed
from diffq_fast.packed.save_load import load, save
from support.packed_models import Net, trained


def linear(count: int = 8) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(count, count)


def eval_weights(quantizer) -> dict[str, torch.Tensor]:
    with quantizer.enter_quantize():
        return {name: value.detach().clone() for name, value in quantizer.model.state_dict().items()}


@pytest.mark.parametrize("make", [DiffQuantizer, LSQ])
def test_logits_of_a_shared_module_are_passed_over_by_a_plain_model(make, tmp_path):
    shared = linear()
    quantizer = make(nn.Sequential(shared, shared), min_size=0)
    save(quantizer, tmp_path / "a", logits=True)
    plain = linear()
    model = load(tmp_path / "a", nn.Sequential(plain, plain))
    assert torch.equal(model[1].weight, eval_weights(quantizer)["1.weight"])


class Aliased(nn.Module):
    """A weight, with its whole memory or a part of it as a buffer too."""

    def __init__(self, part: slice | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("again", self.weight.data if part is None else self.weight.data[part])


@pytest.mark.parametrize("part", [None, slice(2, 4)])
@pytest.mark.parametrize("make", [DiffQuantizer, UniformQuantizer, LSQ])
def test_a_buffer_in_a_weights_memory_does_not_overwrite_it(make, part, tmp_path):
    quantizer = make(Aliased(part), min_size=0)
    expected = eval_weights(quantizer)["weight"]
    save(quantizer, tmp_path / "a")
    assert torch.equal(load(tmp_path / "a")["weight"], expected)
    model = load(tmp_path / "a", Aliased(part))
    assert torch.equal(model.weight, expected)
    assert model.again.data_ptr() == model.weight[part or slice(0, None)].data_ptr()


class Copying(nn.Linear):
    """Its state_dict holds copies, and what it keeps beside its tensors."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__(8, 8)
        self.scale, self.history = scale, torch.zeros(0)

    def get_extra_state(self):
        return torch.cat([torch.tensor([self.scale]), self.history])

    def set_extra_state(self, state):
        self.scale, self.history = float(state[0]), state[1:].clone()

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight.detach().clone()
        destination[prefix + "doubled"] = self.bias.detach() * 2
        del destination[prefix + "bias"]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict = dict(state_dict)
        state_dict[prefix + "bias"] = state_dict.pop(prefix + "doubled") / 2
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_extra_state_and_states_of_a_models_own_making_are_loaded(tmp_path):
    model = nn.Sequential(Copying(3.0))
    model[0].history = torch.arange(3.0)
    quantizer = UniformQuantizer(model, min_size=0, exclude=["bias"])
    with torch.no_grad():
        model[0].bias.fill_(0.3)
    save(quantizer, tmp_path / "a")
    other = load(tmp_path / "a", nn.Sequential(Copying()))
    assert other[0].scale == 3
    assert other[0].history.tolist() == [0, 1, 2]
    assert torch.equal(other[0].bias, model[0].bias)
    with quantizer.enter_quantize():
        assert torch.equal(other[0].weight, model[0].weight)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("strict", [True, False])
def test_what_cannot_be_written_is_seen_before_anything_is_changed(strict, tmp_path):
    _, quantizer = trained()
    quantizer.model.register_buffer("ones", torch.ones(5))
    save(quantizer, tmp_path / "a")
    model = Net()
    model.register_buffer("ones", torch.ones(1).expand(5))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"ones: several elements of the model's entry share their memory; .*clone"):
        load(tmp_path / "a", model, strict=strict)
    assert_unchanged(model, before)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("attached", [True, False])
def test_a_weight_of_another_shape_is_refused_also_where_names_may_differ(attached, strict, tmp_path):
    _, quantizer = trained()
    save(quantizer, tmp_path / "a", logits=True)
    model = Net()
    name, weight = next(each for each in model.named_parameters() if each[1].dim() == 2)
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, nn.Parameter(torch.zeros(weight.shape[0] + 1, weight.shape[1])))
    if attached:
        DiffQuantizer(model, **quantizer.arguments)
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"does not fit the model: {name}: expected shape \[{weight.shape[0] + 1}"):
        load(tmp_path / "a", model, strict=strict)
    assert_unchanged(model, before)


class Refusing(nn.Linear):
    """Its extra state is never right."""

    def get_extra_state(self):
        return torch.zeros(1)

    def set_extra_state(self, state):
        raise RuntimeError("no such state")


def test_a_model_that_raises_while_it_loads_is_put_back(tmp_path):
    save(UniformQuantizer(nn.Sequential(linear(), Refusing(8, 8)), min_size=0), tmp_path / "a")
    model = nn.Sequential(nn.Linear(8, 8), Refusing(8, 8))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"a: the model's load_state_dict failed: RuntimeError: no such state"):
        load(tmp_path / "a", model)
    assert_unchanged(model, before)


def test_a_model_that_does_not_take_its_own_names_is_refused(tmp_path):
    class Renamed(nn.Linear):
        def state_dict(self, *args, **kwargs):
            return {f"net.{name}": value.clone() for name, value in super().state_dict(*args, **kwargs).items()}

    state = {f"net.{name}": value for name, value in linear().state_dict().items()}
    write_packed(tmp_path / "a", PackedContents({}, state))
    model = Renamed(8, 8)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"load_state_dict failed: .*it does not take net\.weight, net\.bias"):
        load(tmp_path / "a", model)
    assert_unchanged(model, before)


def test_a_lazy_model_is_refused(tmp_path):
    save(UniformQuantizer(linear(), min_size=0), tmp_path / "a")
    with pytest.raises(ValueError, match="weight: the model's entry has no shape yet; run one forward before loading"):
        load(tmp_path / "a", nn.LazyLinear(8))


def test_what_is_no_module_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(TypeError, match=r"load: expected a torch.nn.Module, got DiffQuantizer"):
        load(tmp_path / "missing", DiffQuantizer(nn.Linear(8, 8), min_size=0))
