"""What is computed again sees the noise and the ranges of its own forward; compiled models have the same numbers."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffq_fast import ActivationQuantizer, DiffQuantizer
from support.checkpointed import Net, ResidualNet

NOISES = pytest.mark.parametrize("noise", ["uniform", None])
REENTRANT = pytest.mark.parametrize("reentrant", [False, True])


def run(mode, reentrant, noise, forwards, with_weights=False):
    """Gradients, and ranges at the end. The inputs grow, so that ranges move between forward and backward."""
    torch.manual_seed(3)
    model = Net(mode, reentrant)
    activations = ActivationQuantizer(model, bits=3, learn_bits=True, noise=noise, momentum=0.5)
    if with_weights:
        DiffQuantizer(model, min_size=0, group_size=8).no_optimizer()
    model(torch.randn(5, 16))
    torch.manual_seed(4)
    loss = sum(model((2 + index) * torch.randn(5, 16)).square().mean() for index in range(forwards))
    loss.backward()
    ranges = [each.range.clone() for each in activations.inputs.values()]
    return {name: param.grad for name, param in model.named_parameters()}, ranges


@NOISES
@REENTRANT
@pytest.mark.parametrize("forwards", [1, 3])
@pytest.mark.parametrize("mode", ["blocks", "nested"])
def test_gradients_and_ranges_equal_those_of_the_plain_run(mode, reentrant, forwards, noise):
    plain, ranges = run("plain", reentrant, noise, forwards)
    found, moved = run(mode, reentrant, noise, forwards)
    for name, grad in plain.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-6, msg=name)
    torch.testing.assert_close(moved, ranges)


@REENTRANT
def test_beside_a_quantizer_of_weights(reentrant):
    plain, _ = run("plain", reentrant, "uniform", 2, with_weights=True)
    found, _ = run("blocks", reentrant, "uniform", 2, with_weights=True)
    for name, grad in plain.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-6, msg=name)


@NOISES
@REENTRANT
@pytest.mark.parametrize("preserve", [True, False])
def test_the_whole_model_in_a_region(reentrant, preserve, noise):
    def gradients(inside):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        activations = ActivationQuantizer(model, bits=3, learn_bits=True, noise=noise, momentum=0.5)
        model(torch.randn(5, 16))
        torch.manual_seed(4)
        x = (5 * torch.randn(5, 16)).requires_grad_()
        options = {"use_reentrant": reentrant, "preserve_rng_state": preserve}
        out = checkpoint(model, x, **options) if inside else model(x)
        out.square().sum().backward()
        ranges = [each.range.clone() for each in activations.inputs.values()]
        return [*(param.grad for param in model.parameters()), x.grad, *ranges]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_two_forwards_from_one_seed_are_told_apart_by_their_nodes():
    """Both draw the same key, and see different ranges."""

    def gradients(inside):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        ActivationQuantizer(model, bits=3, momentum=0.5)
        x = torch.randn(5, 16, requires_grad=True)
        loss = 0
        for factor in (1.0, 9.0):
            torch.manual_seed(4)
            out = checkpoint(model, factor * x, use_reentrant=False) if inside else model(factor * x)
            loss = loss + out.square().sum()
        loss.backward()
        return [*(param.grad for param in model.parameters()), x.grad]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_calls_in_one_region_that_nothing_tells_apart_are_refused():
    model = nn.Linear(16, 16)
    ActivationQuantizer(model, bits=3, noise=None, momentum=0.5)
    x = torch.randn(5, 16, requires_grad=True)
    out = checkpoint(lambda x: model(9 * model(x)), x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="more than one call of the whole model"):
        out.sum().backward()


def test_a_training_forward_on_another_thread_is_refused_while_one_runs():
    inside, leave = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x):
            inside.set()
            assert leave.wait(60)
            return x

    model = nn.Sequential(nn.Linear(4, 4), Slow())
    ActivationQuantizer(model)
    other = threading.Thread(target=model, args=(torch.ones(2, 4),))
    other.start()
    try:
        assert inside.wait(60)
        with pytest.raises(RuntimeError, match="another thread was inside the model"):
            model(torch.ones(2, 4))
    finally:
        leave.set()
        other.join()
    model(torch.ones(2, 4))


# -- torch.compile -----------------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def steps(model, forward, activations, start):
    """Losses and graphs of four steps, and the state after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.load_state_dict(start)
    torch.manual_seed(5)
    losses, seen = [], []
    for index in range(4):
        loss = forward((1 + index) * torch.randn(4, 16)).square().mean() + 0.1 * activations.mean_bits()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append(graphs())
    return losses, [value.clone() for value in model.state_dict().values()], seen


def same_training(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@NOISES
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_steps_equal_eager_ones_in_one_graph(noise):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    activations = ActivationQuantizer(model, bits=5, learn_bits=True, noise=noise, momentum=0.5)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected = steps(model, model, activations, start)
    found = steps(model, torch.compile(model, fullgraph=True, backend="aot_eager"), activations, start)
    same_training(found, expected)
    assert found[2] == [found[2][0]] * 4
    model.eval()
    x = torch.randn(4, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("_fresh_compiler")
def test_blocks_that_are_compiled_by_themselves_share_a_graph():
    torch.manual_seed(0)
    model = ResidualNet("plain")
    activations = ActivationQuantizer(model, bits=5, learn_bits=True, momentum=0.5)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected = steps(model, model, activations, start)
    for block in model.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    found = steps(model, model, activations, start)
    same_training(found, expected)
    assert found[2][-1] == found[2][0] <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_fresh_compiler")
def test_checkpoints_inside_of_a_compiled_model_break_its_graph_and_keep_the_numbers():
    torch.manual_seed(0)
    model = ResidualNet("checkpointed")
    activations = ActivationQuantizer(model, bits=5, learn_bits=True, momentum=0.5)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected = steps(model, model, activations, start)
    same_training(steps(model, torch.compile(model, backend="aot_eager"), activations, start), expected)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="side effect"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(4, 16))


def test_traces_and_exports_in_eval_mode_take_the_rounding_along():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    activations = ActivationQuantizer(model, bits=3)
    model(torch.randn(4, 16))
    model.eval()
    x = torch.randn(4, 16)
    with torch.no_grad():
        expected, traced = model(x), torch.jit.trace(model, x)
        exported = torch.export.export(model, (x,)).module()
        activations.detach()
        assert not torch.equal(model(x), expected)
        assert torch.equal(traced(x), expected)
        assert torch.equal(exported(x), expected)
