"""Activation checkpointing computes a part of the model again with the noise of its own forward."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffq_fast import DiffQuantizer
from support.checkpointed import Net
from support.paths import ROOT


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
    quantizer._attachment.forwards.__init__(limit=2)
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


# -- numbers of several threads, several calls in one region ----------------------------------------------------------

SCRIPT = """
import sys, threading, torch
sys.path.insert(0, {tests!r})
from support.checkpointed import Net
from diffq_fast import DiffQuantizer

def run(mode, reentrant, on_a_thread):
    torch.manual_seed(0)
    model = Net(mode, reentrant)
    DiffQuantizer(model, min_size=0, group_size=8, init_bits=3).no_optimizer()
    inputs = [torch.randn(4, 16, requires_grad=True) for _ in range(3)]
    torch.manual_seed(1)
    loss = sum(model(x).square().sum() for x in inputs)
    if on_a_thread:
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    else:
        loss.backward()
    return [param.grad for param in model.parameters()]

found = run({mode!r}, {reentrant}, True)  # first in the process: the threads' numbers overlap
for left, right in zip(found, run("plain", False, False), strict=True):
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("mode", ["blocks", "nested"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_on_another_thread_finds_the_forwards(mode, reentrant):
    script = SCRIPT.format(tests=str(ROOT / "tests"), mode=mode, reentrant=reentrant)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def region_gradients(region, inside, reentrant, preserve):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    DiffQuantizer(model, min_size=0, group_size=8, init_bits=3).no_optimizer()
    stem, head = nn.Linear(16, 16), nn.Linear(16, 16)
    torch.manual_seed(4)
    x = torch.randn(5, 16, requires_grad=True)

    def function(x):
        return region(model, stem, head, x)

    options = {"use_reentrant": reentrant, "preserve_rng_state": preserve}
    (checkpoint(function, x, **options) if inside else function(x)).square().sum().backward()
    return [param.grad for part in (model, stem, head) for param in part.parameters() if param.grad is not None]


REGIONS = {
    "twice": lambda model, stem, head, x: model(model(x)),
    "side by side": lambda model, stem, head, x: model(x) * model(-x),
    "in the middle": lambda model, stem, head, x: torch.tanh(head(model(torch.tanh(stem(x))))),
}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", REGIONS)
def test_regions_that_call_the_whole_model_among_other_things(name, reentrant):
    expected = region_gradients(REGIONS[name], False, reentrant, True)
    found = region_gradients(REGIONS[name], True, reentrant, True)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "reentrant"), [("twice", False), ("twice", True), ("side by side", True)])
def test_an_ambiguous_region_without_the_generators_state_raises(name, reentrant):
    with pytest.raises(RuntimeError, match="more than one call of the whole model"):
        region_gradients(REGIONS[name], True, reentrant, False)


def test_a_region_that_cannot_be_told_without_the_generators_state_warns_or_is_right():
    with pytest.warns(UserWarning, match="its forward is not known"):
        region_gradients(REGIONS["side by side"], True, False, False)
    expected = region_gradients(REGIONS["in the middle"], False, True, False)
    for left, right in zip(region_gradients(REGIONS["in the middle"], True, True, False), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    with pytest.warns(UserWarning, match="its forward is not known"):
        region_gradients(REGIONS["in the middle"], True, False, False)
