"""Gradients of gradients through a model under the package's own noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from diffq_fast import LSQ, DiffQuantizer, RateQuantizer, UniformQuantizer, functional
from diffq_fast.reference.add_noise import noisy_weight
from diffq_fast.reference.options import NoiseOptions
from support.models import Tied

KEY = torch.tensor(1234567)


def gradient_penalty(model, inputs, params=None):
    """The gradients of a loss that holds the gradients of another one, and the mean square of those."""
    params = list(model.parameters()) if params is None else params
    loss = model(inputs).tanh().square().mean()
    first = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    penalty = sum(each.square().sum() for each in first if each is not None)
    return torch.autograd.grad(penalty, params, allow_unused=True)


class Noisy(nn.Module):
    """A model with the oracle's noise in its quantised weights, written down without any hook."""

    def __init__(self, model, quantizer, options):
        super().__init__()
        self.model, self.options = model, options
        self.entries = quantizer.weights

    def parameters(self, recurse=True):
        return self.model.parameters()

    def forward(self, inputs):
        untied = [each for each in self.entries if each.tied_to is None]
        made = {}
        for stream, weight in enumerate(untied):
            noise = functional.noise(KEY, stream, weight.parameter.numel(), noise_kind=self.options.noise_kind)
            made[weight.name] = noisy_weight(weight.parameter, weight.learned, noise, self.options)
        return functional_call(self.model, made, (inputs,))


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
@pytest.mark.parametrize("scope", ["tensor", "group"])
@pytest.mark.parametrize("group_size", [0, 8])
@pytest.mark.parametrize("make", [Tied, lambda: nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 5))])
def test_a_gradient_penalty_equals_the_oracles(make, group_size, scope, noise, monkeypatch):
    torch.manual_seed(0)
    model = make()
    inputs = torch.randn(3, next(model.parameters()).shape[1])
    options = {"group_size": group_size, "range_scope": scope}
    quantizer = DiffQuantizer(model, min_size=0, init_bits=3, noise=noise, **options)
    quantizer.no_optimizer()
    monkeypatch.setattr(functional, "draw_key", lambda like: KEY)
    made = gradient_penalty(model, inputs)
    plain = Noisy(model, quantizer, NoiseOptions(min_bits=2, max_bits=15, noise_kind=noise, **options))
    quantizer._attachment.detach()
    expected = gradient_penalty(plain, inputs)
    for one, another in zip(made, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-3, atol=1e-6)


STRAIGHT_THROUGH = [
    lambda model: DiffQuantizer(model, min_size=0, group_size=8),
    lambda model: RateQuantizer(model, min_size=0),
    lambda model: UniformQuantizer(model, min_size=0, bits=4, qat=True),
    lambda model: LSQ(model, min_size=0, bits=8),
]


@pytest.mark.parametrize("make", STRAIGHT_THROUGH)
def test_straight_through_weights_have_second_gradients(make):
    """Those of the function with the rounded weights, as if they were the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 5))
    quantizer = make(model)
    quantizer.no_optimizer()
    if hasattr(quantizer, "freeze_bits"):
        quantizer.freeze_bits(straight_through=True)
    inputs = torch.randn(3, 16)
    weights = [weight.parameter for weight in quantizer.weights]
    made = gradient_penalty(model, inputs, weights)
    quantizer.bake()
    model.train()
    expected = gradient_penalty(model, inputs, weights)
    for one, another in zip(made, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-7)


def test_a_gradient_penalty_under_the_noise_of_learned_steps(monkeypatch):
    """In the weights and the log-steps: the noisy weights are ``weight + exp(log_step) * z``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 5))
    quantizer = RateQuantizer(model, min_size=0, group_size=0)
    quantizer.no_optimizer()
    monkeypatch.setattr(functional, "draw_key", lambda like: KEY)
    inputs = torch.randn(3, 16)
    made = gradient_penalty(model, inputs)
    parameters, noisy = list(model.parameters()), {}
    for stream, weight in enumerate(quantizer.weights):
        noise = functional.noise(KEY, stream, weight.parameter.numel(), noise_kind="uniform")
        noisy[weight.name] = weight.parameter + weight.learned.exp() * noise.view_as(weight.parameter)
    quantizer.detach()
    expected = gradient_penalty(lambda inputs: functional_call(model, noisy, (inputs,)), inputs, parameters)
    for one, another in zip(made, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-6)
