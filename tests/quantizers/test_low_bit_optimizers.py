"""Optimizers that keep their moments in a few bits: torchao's and bitsandbytes', where they are installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffq_fast import DiffQuantizer, RateQuantizer, SizeTarget

STEPS, BITS = 60, 3.0
SCHEMES = {"DiffQuantizer": {"group_size": 8}, "RateQuantizer": {}}
FEW_BITS = {"OptimState8bit", "OptimState4bit"}  # torchao's classes of moments


def optimizer_class(library, name):
    optimizers = pytest.importorskip(library, reason=f"{library} is not installed (pip install '.[optimizers]')")
    return getattr(optimizers, name)


def is_small(moment):
    return type(moment).__name__ in FEW_BITS or getattr(moment, "dtype", None) == torch.uint8


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("library", "name"),
    [("torchao.optim", "AdamW8bit"), ("torchao.optim", "AdamW4bit"), ("bitsandbytes.optim", "AdamW8bit")],
)
def test_a_training_reaches_its_size(library, name, scheme):
    make = optimizer_class(library, name)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 16))
    optimizer = make(model.parameters(), lr=1e-3)
    quantizer = {"DiffQuantizer": DiffQuantizer, "RateQuantizer": RateQuantizer}[scheme](
        model, min_size=0, **SCHEMES[scheme]
    )
    quantizer.setup_optimizer(optimizer)
    target = SizeTarget(quantizer, bits_per_weight=BITS, total_steps=STEPS)
    inputs, labels = torch.randn(64, 256), torch.randn(64, 16)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(inputs) - labels).square().mean()
        (loss + target.penalty()).backward()
        optimizer.step()
        target.step()
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]
    assert quantizer.true_model_size() == pytest.approx(target.mb, rel=0.005)
    learned = quantizer.learned_parameters()
    assert all(param.isfinite().all() for param in learned)
    largest = max(learned, key=torch.Tensor.numel)
    moments = [moment for moment in optimizer.state[largest].values() if isinstance(moment, torch.Tensor)]
    assert any(map(is_small, moments)) == (scheme == "DiffQuantizer")  # a few hundred log-steps stay in float32
