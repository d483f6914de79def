"""Training that begins with a packed file: its steps, its levels, and errors that change nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import diffq_fast
from diffq_fast import RateQuantizer, SizeTarget, UniformQuantizer, start_from_packed
from diffq_fast.packed.contents import read_packed
from diffq_fast.reference.groups import per_element


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 30, bias=False))


@pytest.fixture
def packed(tmp_path):
    """A file of the network, every weight with steps of 64 elements: two rows, or one."""
    path = tmp_path / "packed.safetensors"
    save_file(network().state_dict(), tmp_path / "float.safetensors")
    diffq_fast.pack_checkpoint(tmp_path / "float.safetensors", path, bits_per_weight=3.5, min_size=0)
    return path


def attached(**options):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    quantizer = RateQuantizer(model, min_size=0, **options)
    quantizer.setup_optimizer(optimizer)
    return model, quantizer, optimizer


def steps_of_elements(coded):
    return per_element(coded.steps(), coded.count, coded.group_size).view(coded.shape)


def packed_weights(quantizer):
    """All but the bias, which a packing keeps as it is."""
    return [weight for weight in quantizer.weights if weight.parameter.dim() == 2]


def shown(model):
    """The weights that eval sees."""
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _, name=name: seen.update({f"{name}.weight": layer.weight}))
        for name, layer in model.named_children()
        if hasattr(layer, "weight")
    ]
    with torch.no_grad():
        model.eval()(torch.arange(4))
    for hook in hooks:
        hook.remove()
    return {name: weight.clone() for name, weight in seen.items()}


def test_eval_sees_the_weights_of_the_file(packed):
    model, quantizer, _ = attached(group_size=32)  # each is a part of one of the file's
    start_from_packed(quantizer, packed)
    file = diffq_fast.load(packed)
    for name, weight in shown(model).items():
        assert torch.equal(weight, file[name]), name
    assert quantizer.bits_frozen


@pytest.mark.parametrize("within", [0.0, 0.1, 0.3])
def test_float_weights_are_moved_as_little_as_their_levels_need(packed, within):
    before = {name: each.detach().clone() for name, each in network().named_parameters()}
    _, quantizer, _ = attached(group_size=32)
    start_from_packed(quantizer, packed, within=within)
    stored = read_packed(packed).packed
    for weight in packed_weights(quantizer):
        steps = steps_of_elements(stored[weight.name])
        away = weight.parameter.detach() / steps - stored[weight.name].levels()
        assert away.abs().max() <= within + 1e-4
        inside = (before[weight.name] / steps - stored[weight.name].levels()).abs() < within
        assert torch.equal(weight.parameter[inside], before[weight.name][inside])


def test_with_half_a_step_no_weight_moves_that_was_rounded_to_the_nearest(packed):
    _, quantizer, _ = attached(group_size=32)
    start_from_packed(quantizer, packed, within=0.5)
    stored = read_packed(packed).packed
    for weight in packed_weights(quantizer):
        before = dict(network().named_parameters())[weight.name]
        steps = steps_of_elements(stored[weight.name])
        nearest = (before / steps - stored[weight.name].levels()).abs() <= 0.5
        assert nearest.float().mean() > 0.9
        assert torch.equal(weight.parameter[nearest], before[nearest])


def test_a_group_of_several_rows_has_the_geometric_mean_of_their_steps(packed):
    _, quantizer, _ = attached()  # one step for the embedding's table, one for each row of the others
    start_from_packed(quantizer, packed)
    stored, steps = read_packed(packed).packed, quantizer.steps()
    assert len(stored["0.weight"].steps()) == 25
    sixteenth = 2 ** (1 / 16)
    mean = stored["0.weight"].steps().log().mean().exp()
    assert mean / sixteenth < steps["0.weight"] < mean * sixteenth  # a file's steps are a sixteenth of an octave apart
    assert torch.equal(steps["1.weight"], stored["1.weight"].steps().repeat_interleave(2))


def test_what_the_file_keeps_as_it_is_keeps_the_steps_that_it_has(packed):
    _, quantizer, _ = attached(init_step=0.125)
    before = quantizer.steps()["1.bias"]
    start_from_packed(quantizer, packed)
    assert torch.equal(quantizer.steps()["1.bias"], before)


def test_training_from_there_keeps_to_a_size(packed):
    model, quantizer, optimizer = attached(group_size=32)
    start_from_packed(quantizer, packed)
    asked = 1.1 * quantizer.true_model_size()
    target = SizeTarget(quantizer, mb=asked, total_steps=40)
    for _ in range(40):
        optimizer.zero_grad()
        model.train()(torch.randint(50, (16,))).square().mean().backward()
        optimizer.step()
        target.step()
    assert 0.95 * asked < quantizer.true_model_size() <= asked
    assert quantizer.bits_frozen


def test_what_does_not_fit_is_refused_and_changes_nothing(packed, tmp_path):
    model, quantizer, _ = attached(group_size=32)
    before = copy.deepcopy(model.state_dict())

    def refused(error, text, path=packed, of=quantizer, **options):
        with pytest.raises(error, match=text):
            start_from_packed(of, path, **options)
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        assert not quantizer.bits_frozen

    refused(ValueError, "within must be from 0 to 0.5, got 0.6", within=0.6)
    refused(TypeError, "must be a RateQuantizer, got UniformQuantizer", of=UniformQuantizer(network()))
    part = {name: each for name, each in network().state_dict().items() if name != "3.weight"}
    other = part | {"3.weight": torch.randn(30, 32)}
    for name, tensors in {"part": part, "other": other}.items():
        save_file(tensors, tmp_path / name)
        options = {"bits_per_weight": 3.5, "min_size": 0}
        diffq_fast.pack_checkpoint(tmp_path / name, tmp_path / f"{name}.packed", **options)
    refused(ValueError, "3.weight is not in .*part.packed", tmp_path / "part.packed")
    refused(ValueError, r"3.weight: expected shape \[30, 64\], .* has \[30, 32\]", tmp_path / "other.packed")
    ranges = tmp_path / "ranges.packed"
    diffq_fast.save(UniformQuantizer(network(), bits=4, min_size=0), ranges)
    refused(ValueError, "0.weight has ranges in .*ranges.packed, expected steps", ranges)
