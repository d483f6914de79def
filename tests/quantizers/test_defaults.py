"""Training, evaluation, sizes, files and states are the same, bit for bit, under every default dtype and device."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast import LSQ, ActivationQuantizer, DiffQuantizer, RateQuantizer, SizeTarget, UniformQuantizer
from support.defaults import DEFAULTS, default

STEPS, FROZEN_FROM = 8, 5
QUANTIZERS = {
    "gaussian": partial(DiffQuantizer, group_size=8),
    "uniform": partial(DiffQuantizer, group_size=8, noise="uniform", param="noise"),
    "torch": partial(DiffQuantizer, group_size=8, rng="torch"),
    "ranges of groups": partial(DiffQuantizer, group_size=8, range_scope="group"),
    "learned ranges": partial(DiffQuantizer, group_size=8, learn_range=True),
    "float16": partial(DiffQuantizer, group_size=8, float16=True),
    "target": partial(DiffQuantizer, group_size=8),
    "frozen": partial(DiffQuantizer, group_size=8),
    "straight through": partial(DiffQuantizer, group_size=8),
    "whole levels": partial(UniformQuantizer, bits=4, qat=True),
    "fractional levels": partial(UniformQuantizer, bits=3.5, qat=True),
    "lsq": partial(LSQ, bits=4),
    "rate": RateQuantizer,
    "rate of weights": partial(RateQuantizer, group_size=8, rate_to_weights=True),
    "frozen rate": RateQuantizer,
    "inputs": partial(DiffQuantizer, group_size=8),
    "inputs of learned bits": partial(DiffQuantizer, group_size=8),
}
NOT_IN_DIFFQ = ("ranges of groups", "rate", "rate of weights", "frozen rate")  # its states do not hold them


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))


def life(name, plain, batch, folder):
    """Everything that a training leaves, with models that were made before."""
    trained, fresh, restored = plain
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    quantizer = QUANTIZERS[name](trained, min_size=0)
    quantizer.setup_optimizer(optimizer, lr=0.5)
    inputs = None
    if name.startswith("inputs"):
        inputs = ActivationQuantizer(trained, 6, learn_bits=name == "inputs of learned bits")
        inputs.setup_optimizer(optimizer, lr=0.1)
    target = SizeTarget(quantizer, bits_per_weight=9, total_steps=STEPS) if name == "target" else None
    torch.manual_seed(2)
    for step in range(STEPS):
        if name in ("frozen", "straight through", "frozen rate") and step == FROZEN_FROM:
            quantizer.freeze_bits(straight_through=name == "straight through")
        optimizer.zero_grad()
        penalty = quantizer.model_size() if target is None else target.penalty()
        if inputs is not None:
            penalty = penalty + inputs.mean_bits()
        (trained(batch).square().mean() + penalty).backward()
        optimizer.step()
        if target is not None:
            target.step()
    trained.eval()
    size = quantizer.model_size().detach()
    exact = quantizer.model_size(exact=True)
    diffq_fast.save(quantizer, folder / "file", logits=isinstance(quantizer, DiffQuantizer))
    diffq_fast.load(folder / "file", fresh)
    if name not in NOT_IN_DIFFQ:
        state = quantizer.get_quantized_state()
        quantizer.restore_quantized_state(state)
        diffq_fast.restore_quantized_state(restored, state)
    learned = [*quantizer.learned_parameters(), *([] if inputs is None else inputs.learned_parameters())]
    made = [trained(batch).detach(), size, exact, *learned]
    return [*made, *fresh.state_dict().values(), *restored.state_dict().values()], (folder / "file").read_bytes()


@cache
def usual(name, folder):
    return life(name, [model() for _ in range(3)], batch(), folder)


def batch():
    return torch.linspace(-1, 1, 64).view(4, 16)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_the_main_flows(value, name, tmp_path, tmp_path_factory):
    expected, expected_file = usual(name, tmp_path_factory.getbasetemp())
    models, data = [model() for _ in range(3)], batch()
    with default(value):
        made, file = life(name, models, data, tmp_path)
    assert file == expected_file
    for one, another in zip(made, expected, strict=True):
        assert (one.dtype, one.device) == (another.dtype, another.device)
        assert torch.equal(one, another)
