"""Activation checkpointing computes a part of the model again with the noise of its own forward."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffq_fast import DiffQuantizer


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        return x + self.dropout(torch.relu(self.inner(self.norm(x))))


class Net(nn.Module):
    """Blocks that can be checkpointed, alone or in nested regions, and a head tied to the first layer."""

    def __init__(self, mode: str = "plain", reentrant: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16, bias=False)
        self.blocks = nn.ModuleList(Block(16) for _ in range(3))
        self.head = nn.Linear(16, 16, bias=False)
        self.head.weight = self.embed.weight
        self.mode, self.reentrant = mode, reentrant

    def region(self, function, x):
        return checkpoint(function, x, use_reentrant=self.reentrant)

    def run_blocks(self, x):
        for block in self.blocks:
            x = self.region(block, x) if self.mode != "plain" else block(x)
        return x

    def forward(self, x):
        x = self.embed(x)
        x = self.region(self.run_blocks, x) if self.mode == "nested" else self.run_blocks(x)
        return self.head(x)


def gradients(mode, reentrant, rng="philox", forwards=1, noise="gaussian"):
    torch.manual_seed(3)
    model = Net(mode, reentrant)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8, rng=rng, noise=noise)
    quantizer.no_optimizer()
    torch.manual_seed(4)
    loss = sum(model(torch.randn(5, 16)).square().mean() for _ in range(forwards))
    loss.backward()
    return {name: param.grad for name, param in model.named_parameters()}


@pytest.mark.parametrize("forwards", [1, 3])
@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize("mode", ["blocks", "nested"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_equal_those_of_the_plain_run(mode, reentrant, rng, forwards):
    plain = gradients("plain", reentrant, rng, forwards)
    found = gradients(mode, reentrant, rng, forwards)
    for name, grad in plain.items():
        assert found[name] is not None, name
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("preserve", [True, False])
def test_whole_model_in_a_region(reentrant, preserve):
    def run(inside):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        DiffQuantizer(model, min_size=0, group_size=8).no_optimizer()
        torch.manual_seed(4)
        x = torch.randn(5, 16, requires_grad=True)
        options = {"use_reentrant": reentrant, "preserve_rng_state": preserve}
        out = checkpoint(model, x, **options) if inside else model(x)
        out.square().sum().backward()
        return [param.grad for param in model.parameters()]

    for found, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_forgotten_forward_raises():
    torch.manual_seed(0)
    model = Net("blocks", reentrant=False)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.no_optimizer()
    quantizer._forwards.__init__(limit=2)
    x = torch.randn(2, 16)
    first = model(x).sum()
    for _ in range(3):
        model(x)
    with pytest.raises(RuntimeError, match="more than 2 forwards old"):
        first.backward()


def test_eval_forward_in_a_region_uses_the_quantised_weights():
    torch.manual_seed(0)
    model = Net("blocks").eval()
    quantizer = DiffQuantizer(model, min_size=0, group_size=8, init_bits=3)
    x = torch.randn(2, 16, requires_grad=True)
    model(x).square().sum().backward()
    with_regions, x.grad = x.grad, None
    model.mode = "plain"
    model(x).square().sum().backward()
    torch.testing.assert_close(with_regions, x.grad, rtol=1e-6, atol=1e-6)
    quantizer.detach()
    plain = torch.autograd.grad(model(x).square().sum(), x)[0]
    assert not torch.allclose(plain, x.grad, rtol=1e-3)


def test_a_submodule_called_directly_keeps_its_plain_weights_in_a_region():
    model = Net("blocks")
    DiffQuantizer(model, min_size=0, group_size=8).no_optimizer()
    block, x = model.blocks[0].eval(), torch.randn(2, 16, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    found, x.grad = x.grad, None
    block(x).sum().backward()
    assert torch.equal(found, x.grad)
