"""Gradients of gradients through a model under the package's own noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer, functional
from diffq_fast.reference.add_noise import noisy_weight
from diffq_fast.reference.options import NoiseOptions
from support.models import Tied

KEY = torch.tensor(1234567)


def gradient_penalty(model, inputs):
    """The gradients of a loss that holds the gradients of another one, and the mean square of those."""
    params = list(model.parameters())
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


@pytest.mark.parametrize(
    "make",
    [
        lambda model: DiffQuantizer(model, min_size=0, group_size=8),
        lambda model: UniformQuantizer(model, min_size=0, bits=4, qat=True),
        lambda model: LSQ(model, min_size=0, bits=4),
    ],
)
def test_straight_through_weights_have_second_gradients(make):
    """Those of the function with the rounded weights, as if they were the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 5))
    quantizer = make(model)
    quantizer.no_optimizer()
    if isinstance(quantizer, DiffQuantizer):
        quantizer.freeze_bits(straight_through=True)
    inputs = torch.randn(3, 16)
    made = gradient_penalty(model, inputs)
    weights = [weight.parameter for weight in quantizer.weights]
    found = {id(param): grad for param, grad in zip(model.parameters(), made, strict=True)}
    quantizer.bake()
    model.train()
    plain = dict(zip(map(id, model.parameters()), gradient_penalty(model, inputs), strict=True))
    if isinstance(quantizer, LSQ):  # the gradient of a weight beyond the last index is cut off
        return
    for weight in weights:
        torch.testing.assert_close(found[id(weight)], plain[id(weight)], rtol=1e-4, atol=1e-7)
