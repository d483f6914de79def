"""A training step of any quantizer reads no value on the host: nothing in it waits for a GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from diffq_fast import LSQ, ActivationQuantizer, DiffQuantizer, RateQuantizer, SizeTarget, UniformQuantizer
from diffq_fast.quantizers.base import BaseQuantizer
from support.no_reads import NoReads

STEPS = 6
QUANTIZERS = {
    "gaussian": partial(DiffQuantizer, group_size=8),
    "uniform": partial(DiffQuantizer, group_size=8, noise="uniform", param="noise"),
    "torch": partial(DiffQuantizer, group_size=8, rng="torch"),
    "one group": partial(DiffQuantizer, group_size=0),
    "ranges of groups": partial(DiffQuantizer, group_size=8, range_scope="group", float16=True),
    "learned ranges": partial(DiffQuantizer, group_size=8, learn_range=True),
    "short ranges": partial(DiffQuantizer, group_size=8, range_scope="group", learn_range=True, short_ranges=True),
    "lower dtype": partial(DiffQuantizer, group_size=8, noisy_dtype="auto"),
    "no training": partial(UniformQuantizer, bits=4),
    "whole levels": partial(UniformQuantizer, bits=4, qat=True),
    "fractional levels": partial(UniformQuantizer, bits=3.5, qat=True),
    "lsq": partial(LSQ, bits=4),
    "rate": RateQuantizer,
    "rate of weights": partial(RateQuantizer, group_size=8, rate_to_weights=True, noisy_dtype="auto"),
}
FREEZING = [name for name, made in QUANTIZERS.items() if hasattr(getattr(made, "func", made), "freeze_bits")]


def attached(name, device="cpu"):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.LSTM(16, 8)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    quantizer = QUANTIZERS[name](model, min_size=0)
    quantizer.setup_optimizer(optimizer)
    return model, optimizer, quantizer


def step(model, optimizer, penalty):
    optimizer.zero_grad()
    (model(torch.ones(4, 16, device=model[0].weight.device))[0].square().mean() + penalty()).backward()
    optimizer.step()


@pytest.fixture
def far(monkeypatch):
    """Weights count as those of a device whose values the host would have to wait for."""
    monkeypatch.setattr(BaseQuantizer, "_is_on_cpu", lambda quantizer: False)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_training_step(name, far):
    model, optimizer, quantizer = attached(name)
    with NoReads():
        for _ in range(2):
            step(model, optimizer, quantizer.model_size)


@pytest.mark.parametrize("learn_bits", [False, True])
@pytest.mark.parametrize("noise", ["uniform", None])
def test_a_training_step_with_quantised_inputs(noise, learn_bits, far):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    inputs = ActivationQuantizer(model, 6, noise=noise, learn_bits=learn_bits)
    inputs.setup_optimizer(optimizer)
    with NoReads():
        for _ in range(2):
            optimizer.zero_grad()
            (model(torch.ones(4, 16)).square().mean() + inputs.mean_bits()).backward()
            optimizer.step()


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("name", FREEZING)
def test_a_training_step_with_frozen_bits(name, straight_through, far):
    model, optimizer, quantizer = attached(name)
    quantizer.freeze_bits(straight_through=straight_through)
    with NoReads():
        for _ in range(2):
            step(model, optimizer, quantizer.model_size)


@pytest.mark.parametrize("straight_through", [False, True])
def test_a_training_step_with_a_size_target(straight_through, far):
    """All steps but the one that freezes the bits."""
    model, optimizer, quantizer = attached("gaussian")
    target = SizeTarget(quantizer, bits_per_weight=9, total_steps=STEPS, straight_through=straight_through)
    for number in range(1, STEPS + 1):
        if number == STEPS // 2:
            step(model, optimizer, target.penalty)
            target.step()
            assert quantizer.bits_frozen
            continue
        with NoReads():
            step(model, optimizer, target.penalty)
            target.step()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_training_step_on_a_device_without_values(name):
    model, optimizer, quantizer = attached(name, "meta")
    step(model, optimizer, quantizer.model_size)
    assert all(param.grad is not None for param in model.parameters())
    assert quantizer.model_size().device == model[0].weight.device
