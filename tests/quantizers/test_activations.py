"""ActivationQuantizer: noise of one step, rounding, ranges and learned bits, against formulas in plain torch."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from diffq_fast import ActivationQuantizer, DiffQuantizer, UniformQuantizer, functional
from support.no_reads import NoReads


def sequential():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def images():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.Linear(72, 3))


def observed(ranges, activations):
    """Give the inputs these ranges, as if training forwards had been seen."""
    for each, value in zip(activations.inputs.values(), ranges, strict=True):
        each.range.fill_(value)


def keys(count, seed):
    """The key of each input in the next training forward under ``torch.manual_seed(seed)``."""
    torch.manual_seed(seed)
    drawn = functional.draw_key(torch.zeros(1))
    torch.manual_seed(seed)
    return [drawn + index for index in range(count)]


def noise_of(key, x):
    return functional.noise(key, 0, x.numel(), noise_kind="uniform").view(x.shape)


def levels_of(x, range, bits):
    """Rounding by its definition, in float64."""
    most = 2 ** (bits - 1) - 1
    return torch.round(x.double().clamp(-range, range) / (range / most)).clamp(-most, most)


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_training_forward_adds_noise_of_one_step_within_the_range():
    model = sequential()
    observed([1.5, 2.0], ActivationQuantizer(model, bits=4))
    x = torch.randn(5, 6)
    first, second = keys(2, seed=7)
    found = model(x)
    inside = x.clamp(-1.5, 1.5) + 1.5 / 7 * noise_of(first, x)
    hidden = model[0].bias + inside @ model[0].weight.T
    hidden = hidden.relu().clamp(-2, 2) + 2.0 / 7 * noise_of(second, hidden)
    torch.testing.assert_close(found, model[2].bias + hidden @ model[2].weight.T)


@pytest.mark.parametrize("bits", [3, 5.5])
def test_gradients_are_those_of_the_formula(bits):
    """Of the input, zero outside of the range, and of the logit, through the step alone."""
    layer = nn.Linear(40, 3)
    activations = ActivationQuantizer(layer, bits=4, learn_bits=(2, 9))
    observed([1.0], activations)
    quantizer = activations.inputs[""]
    with torch.no_grad():
        quantizer.logit.copy_(functional.logits_from_bits(torch.tensor([bits]).double(), 2, 9))
    x = torch.randn(7, 40, requires_grad=True)
    (key,) = keys(1, seed=3)
    layer(x).square().sum().backward()

    logit, again = quantizer.logit.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    learned = 2 + 7 * torch.sigmoid(logit)
    noisy = again.clamp(-1, 1) + noise_of(key, x) / (2 ** (learned - 1) - 1)
    nn.functional.linear(noisy, layer.weight, layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad)
    torch.testing.assert_close(quantizer.logit.grad, logit.grad, rtol=1e-4, atol=1e-4)
    assert (x.grad[x.detach().abs() > 1] == 0).all()
    assert (x.detach().abs() > 1).any()


def test_the_first_forward_uses_its_own_range():
    layer = nn.Linear(6, 3)
    ActivationQuantizer(layer, bits=3)
    x = torch.randn(5, 6)
    (key,) = keys(1, seed=1)
    expected = layer.bias + (x + x.abs().max() / 3 * noise_of(key, x)) @ layer.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_without_noise_nothing_random_is_drawn():
    model = sequential()
    ActivationQuantizer(model, noise=None)
    before = torch.get_rng_state()
    model(torch.ones(4, 6))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bits", [2, 4, 8, 15])
def test_without_noise_training_rounds_and_gradients_go_straight_through(bits):
    layer = nn.Linear(6, 3)
    activations = ActivationQuantizer(layer, bits=bits, noise=None)
    observed([1.0], activations)
    x = torch.randn(50, 6, requires_grad=True)
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    out = layer(x)
    expected = levels_of(x.detach(), 1.0, bits) / (2 ** (bits - 1) - 1)
    torch.testing.assert_close(seen[0].double(), expected, rtol=1e-6, atol=1e-7)
    out.sum().backward()
    straight = layer.weight.detach().sum(0) * (x.detach().abs() <= 1)
    torch.testing.assert_close(x.grad, straight)
    observed([1.0], activations)
    layer.eval()(x)
    assert torch.equal(seen[0], seen[1])


def test_learned_bits_without_noise_are_whole_and_have_the_gradient_of_the_rounding_error():
    layer = nn.Linear(6, 1, bias=False)
    activations = ActivationQuantizer(layer, bits=4, learn_bits=True, noise=None)
    observed([1.0], activations)
    x = torch.rand(9, 6) * 2 - 1
    layer(x).sum().backward()
    logit = activations.inputs[""].logit.detach().clone().requires_grad_()
    learned = 2 + 13 * torch.sigmoid(logit)
    made = 1 / (2 ** (learned - 1) - 1)
    error = torch.round(x * 7) - x * 7  # in steps: what the input changes by, where the step does
    (made * (error * layer.weight.detach()).sum()).backward()
    torch.testing.assert_close(activations.inputs[""].logit.grad, logit.grad, rtol=1e-4, atol=1e-5)


def test_ranges_follow_the_largest_magnitudes_and_stand_still_in_eval():
    layer = nn.Linear(6, 3)
    quantizer = ActivationQuantizer(layer, momentum=0.75).inputs[""]
    layer(torch.full((2, 6), -4.0))
    assert quantizer.range.item() == 4
    layer(torch.full((2, 6), 8.0))
    assert quantizer.range.item() == 4 + 0.25 * (8 - 4)
    layer.eval()
    layer(torch.full((2, 6), 100.0))
    assert quantizer.range.item() == 5
    layer.train()
    layer(torch.tensor([[float("nan")] * 6]))
    layer(torch.tensor([[float("inf")] * 6]))
    assert quantizer.range.item() == 5
    layer(torch.zeros(0, 6))
    assert quantizer.range.item() == 5


def test_several_calls_of_one_layer_in_a_forward_see_one_range_and_one_noise():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x), self.layer(x), self.layer(3 * x)

    model = Twice()
    quantizer = ActivationQuantizer(model, momentum=0).inputs["layer"]
    quantizer.range.fill_(2.0)
    x = torch.rand(2, 4)
    first, second, _ = model(x)
    assert torch.equal(first, second)
    assert quantizer.range == (3 * x).max()


def test_a_layer_that_is_frozen_in_eval_mode_rounds_inside_a_training_forward():
    model = sequential()
    activations = ActivationQuantizer(model, bits=3, include="0")
    observed([2.0], activations)
    model[0].eval()
    x = torch.randn(4, 6)
    assert torch.equal(model(x), model(x))
    assert activations.inputs["0"].range == 2


def test_a_layer_called_outside_of_the_model_sees_its_input_as_it_is():
    model = sequential()
    observed([2.0, 2.0], ActivationQuantizer(model, bits=2))
    x = torch.randn(4, 6)
    assert torch.equal(model[0](x), nn.functional.linear(x, model[0].weight, model[0].bias))


# -- eval --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bits", [2, 3, 8, 15])
def test_eval_rounds_to_the_nearest_level(bits, dtype):
    layer = nn.Identity()
    model = nn.Sequential(nn.Linear(64, 64), layer).to(dtype).eval()
    activations = ActivationQuantizer(model, bits=bits)
    observed([0.75], activations)
    x = torch.cat([torch.randn(3, 64), torch.linspace(-0.9, 0.9, 64)[None], torch.zeros(1, 64)]).to(dtype)
    found = activations.inputs["0"](x)
    assert found.dtype == dtype
    levels = levels_of(x.to(torch.float32), 0.75, bits)
    step = torch.tensor(0.75) / (2 ** (bits - 1) - 1)
    unsure = (x.double() / step.double() % 1 - 0.5).abs() < 1e-3  # which level, decided by the last bit
    assert unsure.float().mean() < 0.1
    if dtype == torch.float64:
        torch.testing.assert_close(found[~unsure], (levels * step.double())[~unsure])
    else:
        assert torch.equal(found[~unsure], (levels.float() * step).to(dtype)[~unsure])
    assert len(found.unique()) <= 2**bits - 1


def test_eval_before_any_training_forward_changes_nothing():
    model = sequential().eval()
    x = torch.randn(4, 6)
    expected = model(x)
    ActivationQuantizer(model, bits=2)
    assert torch.equal(model(x), expected)


def test_eval_outputs_are_the_same_with_and_without_gradients_and_gradients_go_straight_through():
    layer = nn.Linear(6, 3).eval()
    observed([1.0], ActivationQuantizer(layer, bits=4))
    x = torch.randn(20, 6, requires_grad=True)
    out = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), out)
    out.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0) * (x.detach().abs() <= 1))


# -- learned bits ------------------------------------------------------------------------------------------------------


def trained(penalty, steps=60):
    torch.manual_seed(0)
    model = sequential()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    activations = ActivationQuantizer(model, bits=5, learn_bits=True)
    activations.setup_optimizer(optimizer, lr=0.05)
    teacher = sequential()
    for _ in range(steps):
        x = torch.randn(64, 6)
        loss = (model(x) - teacher(x).detach()).square().mean()
        step(optimizer, loss + penalty * activations.mean_bits())
    return activations.bits()


def test_bits_fall_under_a_penalty_and_rise_without():
    assert (trained(penalty=1.0) < 4).all()
    assert (trained(penalty=0.0) > 5.05).all()


def test_bits_are_learned_numbers_and_whole_ones_in_an_export():
    model = sequential()
    activations = ActivationQuantizer(model, bits=6, learn_bits=(3, 10))
    torch.testing.assert_close(activations.bits(), torch.full((2,), 6.0))
    with torch.no_grad():
        activations.inputs["0"].logit.fill_(0.1)
    assert activations.bits(exact=True).tolist() == [7, 6]
    torch.testing.assert_close(activations.mean_bits(), activations.bits().mean())
    assert torch.equal(ActivationQuantizer(sequential(), bits=6).bits(), torch.full((2,), 6.0))


def test_setup_optimizer_adds_one_group_and_refuses_a_second_time():
    model = sequential()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    activations = ActivationQuantizer(model, learn_bits=True)
    activations.setup_optimizer(optimizer, lr=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.5]
    assert optimizer.param_groups[1]["params"] == activations.learned_parameters()
    assert optimizer.param_groups[1]["weight_decay"] == 0
    with pytest.raises(RuntimeError, match="already holds the learned bits"):
        activations.setup_optimizer(optimizer)
    fixed = ActivationQuantizer(sequential())
    fixed.setup_optimizer(optimizer)
    assert len(optimizer.param_groups) == 2
    assert fixed.parameter_groups() == []


def test_a_scheduler_that_counts_groups_is_refused():
    model = sequential()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    with pytest.raises(RuntimeError, match=r"ActivationQuantizer\.setup_optimizer: the optimizer's OneCycleLR"):
        ActivationQuantizer(model, learn_bits=True).setup_optimizer(optimizer)
    del schedule


@pytest.mark.parametrize("make", [lambda model: DiffQuantizer(model, min_size=0), UniformQuantizer])
@pytest.mark.parametrize("first", [True, False])
def test_groups_of_weights_and_of_activations_hold_each_parameter_once(make, first):
    model = sequential()
    if first:
        activations = ActivationQuantizer(model, learn_bits=True)
    quantizer = make(model)
    if not first:
        activations = ActivationQuantizer(model, learn_bits=True)
    groups = quantizer.parameter_groups(lr=0.1) + activations.parameter_groups(lr=0.2)
    held = [id(param) for group in groups for param in group["params"]]
    assert sorted(held) == sorted(id(param) for param in model.parameters())
    assert groups[-1] == {"params": activations.learned_parameters(), "lr": 0.2, "weight_decay": 0.0}


# -- beside a quantizer of weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_sizes_and_weights_of_the_other_quantizer_stay(first):
    plain = DiffQuantizer(sequential(), min_size=0)
    model = sequential()
    if first:
        ActivationQuantizer(model, learn_bits=True)
    quantizer = DiffQuantizer(model, min_size=0)
    if not first:
        ActivationQuantizer(model, learn_bits=True)
    assert quantizer.true_model_size() == plain.true_model_size()
    assert [weight.name for weight in quantizer.weights] == [weight.name for weight in plain.weights]
    assert len(quantizer.learned_parameters()) == 4


def test_both_quantizers_train_together():
    torch.manual_seed(0)
    model = sequential()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    quantizer = DiffQuantizer(model, min_size=0, group_size=2)
    activations = ActivationQuantizer(model, bits=6, learn_bits=True)
    quantizer.setup_optimizer(optimizer)
    activations.setup_optimizer(optimizer)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        loss = model(torch.randn(4, 6)).square().mean() + quantizer.model_size() + 0.1 * activations.mean_bits()
        step(optimizer, loss)
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- state -------------------------------------------------------------------------------------------------------------


def test_training_goes_on_from_a_state_dict_bit_for_bit():
    def steps(model, activations, optimizer, count):
        for _ in range(count):
            step(optimizer, model(torch.randn(4, 6)).square().mean() + 0.1 * activations.mean_bits())

    def made():
        model = sequential()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        activations = ActivationQuantizer(model, bits=5, learn_bits=True)
        activations.setup_optimizer(optimizer)
        return model, activations, optimizer

    torch.manual_seed(0)
    one = made()
    steps(*one, 3)
    stream = io.BytesIO()
    torch.save({"model": one[0].state_dict(), "optimizer": one[2].state_dict()}, stream)
    state = torch.load(io.BytesIO(stream.getvalue()))
    other = made()
    other[0].load_state_dict(state["model"])
    other[2].load_state_dict(state["optimizer"])
    for each in (one, other):
        torch.manual_seed(9)
        steps(*each, 3)
    for name, value in one[0].state_dict().items():
        assert torch.equal(other[0].state_dict()[name], value), name
    assert {"0.input_quantizer.range", "0.input_quantizer.logit"} <= state["model"].keys()


def test_ranges_and_logits_stay_float32_in_half_precision():
    model = sequential()
    activations = ActivationQuantizer(model, bits=5, learn_bits=True)
    observed([1.23456789, 2.3456789], activations)
    values = [each.range.item() for each in activations.inputs.values()]
    model.bfloat16()
    for each, value in zip(activations.inputs.values(), values, strict=True):
        assert each.range.dtype == each.logit.dtype == torch.float32
        assert each.range.item() == value
    out = model(torch.randn(4, 6, dtype=torch.bfloat16))
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(each.logit.grad.abs() > 0 for each in activations.inputs.values())


def test_under_autocast_the_layer_sees_its_input_with_noise():
    model = sequential()
    activations = ActivationQuantizer(model, bits=5, learn_bits=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(4, 6)).float().square().sum().backward()
    assert all(each.logit.grad.isfinite().all() for each in activations.inputs.values())
    assert all(each.range > 0 for each in activations.inputs.values())


@pytest.mark.parametrize("copied", ["quantizer", "model", "pickle"])
def test_copies_go_their_own_way(copied):
    model = sequential()
    activations = ActivationQuantizer(model, bits=4)
    model(torch.randn(4, 6))
    if copied == "quantizer":
        other = copy.deepcopy(activations).model
    elif copied == "model":
        other = copy.deepcopy(model)
    else:
        stream = io.BytesIO()
        torch.save(model, stream)
        other = torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    x = torch.randn(4, 6)
    for seed in (3, 4):  # the second one with the ranges that the first one has moved
        torch.manual_seed(seed)
        found = other(10 * x)
        torch.manual_seed(seed)
        assert torch.equal(model(10 * x), found)
    for _ in range(2):
        other(1000 * x)
    assert activations.inputs["0"].range < 100
    assert ActivationQuantizer.on(other).inputs["0"].range > 10
    ActivationQuantizer.on(other).detach()
    assert ActivationQuantizer.on(model) is activations


def test_detach_leaves_the_model_as_it_was():
    model = sequential()
    names, x = list(model.state_dict()), torch.randn(4, 6)
    expected = model(x)
    activations = ActivationQuantizer(model, bits=3, learn_bits=True)
    assert not torch.equal(model(x), expected)
    activations.detach()
    for mode in (True, False):
        assert torch.equal(model.train(mode)(x), expected)
    assert list(model.state_dict()) == names
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    torch.testing.assert_close(activations.bits(), torch.full((2,), 3.0))
    ActivationQuantizer(model, bits=3)


def test_an_exception_in_the_model_ends_its_forward():
    model = sequential()
    activations = ActivationQuantizer(model, bits=3)
    model(torch.randn(4, 6))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(4, 5))
    assert all(each.shown is None and each.seen is None for each in activations.inputs.values())
    x = torch.randn(4, 6)
    torch.manual_seed(1)
    first = model(x)
    assert not torch.equal(model(x), first)


def test_nothing_in_a_training_step_reads_values_on_the_host():
    model = images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    activations = ActivationQuantizer(model, bits=5, learn_bits=True)
    activations.setup_optimizer(optimizer)
    with NoReads():
        for noise in ("uniform", None):
            for each in activations.inputs.values():
                each.noise = noise
            step(optimizer, model(torch.ones(2, 2, 6, 6)).square().mean() + activations.mean_bits())
        model.eval()(torch.ones(2, 2, 6, 6))


# -- which layers, and bad arguments -----------------------------------------------------------------------------------


def test_layers_are_chosen_by_patterns():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.convolution = images()
            self.embedding = nn.Embedding(4, 8)
            self.again = self.convolution[0]

    every = ["convolution.0", "convolution.1", "convolution.3"]
    assert list(ActivationQuantizer(Block()).inputs) == every
    assert list(ActivationQuantizer(Block(), exclude=["*.1"]).inputs) == [every[0], every[2]]
    assert list(ActivationQuantizer(Block(), include="*.[13]", exclude="*.1").inputs) == [every[2]]


def test_inputs_given_by_name_are_rounded():
    layer = nn.Linear(6, 3).eval()
    observed([1.0], ActivationQuantizer(layer, bits=2))
    x = torch.randn(4, 6)
    assert torch.equal(layer(input=x), layer(x))
    assert not torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"bits": 1},
            ValueError,
            r"bits must be a whole number from 2 \(one bit has no level beside zero\) to 15, got 1",
        ),
        ({"bits": 16}, ValueError, "bits must be a whole number from 2 .* to 15, got 16"),
        ({"bits": 4.5}, ValueError, "bits must be a whole number from 2 .* to 15, got 4.5"),
        ({"bits": "8"}, TypeError, "bits must be a number, got '8'"),
        ({"bits": float("inf")}, ValueError, "bits must be a whole number from 2 .* to 15, got inf"),
        ({"noise": "gaussian"}, ValueError, r"noise must be 'uniform' or None .*, got 'gaussian'"),
        ({"momentum": 1}, ValueError, "momentum must be from 0 to below 1, got 1"),
        ({"momentum": -0.1}, ValueError, "momentum must be from 0 to below 1, got -0.1"),
        ({"learn_bits": (1, 15)}, ValueError, "learn_bits: expected limits 2 <= low < high <= 15, got 1 and 15"),
        ({"learn_bits": (2, 16)}, ValueError, "learn_bits: expected limits 2 <= low < high <= 15, got 2 and 16"),
        ({"learn_bits": (2, 4, 9)}, TypeError, "learn_bits must be True, False or a pair of limits"),
        ({"learn_bits": 9}, TypeError, "learn_bits must be True, False or a pair of limits"),
        ({"learn_bits": (2, "9")}, TypeError, "learn_bits"),
        ({"learn_bits": (2, 8)}, ValueError, "learned bits start between .* 2 and 8; got bits=8"),
        ({"include": "5"}, ValueError, "include='5' means no linear or convolution layer"),
        ({"exclude": ["0", "x*"]}, ValueError, r"exclude='x\*' means no linear or convolution layer"),
        ({"exclude": "*"}, ValueError, "no linear or convolution layer that is not excluded"),
        ({"group_size": 8}, TypeError, "ActivationQuantizer: got an unexpected keyword argument 'group_size'"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, words):
    model = sequential()
    with pytest.raises(error, match=words):
        ActivationQuantizer(model, **arguments)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert len(model.state_dict()) == 4


def test_a_second_one_is_refused_on_the_model_and_on_a_part_of_it():
    model = nn.Sequential(sequential(), nn.Linear(3, 3))
    activations = ActivationQuantizer(model[0])
    with pytest.raises(RuntimeError, match="one is on this model already"):
        ActivationQuantizer(model[0])
    with pytest.raises(RuntimeError, match=r"0\.0 has an input_quantizer already"):
        ActivationQuantizer(model)
    assert list(ActivationQuantizer(model, exclude="0.*").inputs) == ["1"]
    assert ActivationQuantizer.on(model[0]) is activations
