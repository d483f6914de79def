"""torch.compile: one graph, fresh noise at each step, the same numbers as eager."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import nn

from diffq_fast import DiffQuantizer
from support.checkpointed import ResidualNet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Net(nn.Module):
    """A weight used through its module and through another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 32)
        self.b = nn.Linear(32, 16)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) + nn.functional.linear(x, self.b.weight @ self.a.weight)


def sequential():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def called_by_a_function(model, **options):
    return torch.compile(lambda x: model(x), **options)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("make", [Net, sequential])
@pytest.mark.parametrize("compiler", [torch.compile, called_by_a_function])
def test_steps_equal_eager_without_new_graphs(make, compiler):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8, init_bits=4)
    quantizer.setup_optimizer(optimizer, lr=1.0)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 16)

    def train(forward):
        model.load_state_dict(start)
        torch.manual_seed(5)
        losses, seen = [], []
        for _ in range(4):
            loss = forward(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen.append(graphs())
        return losses, [value.clone() for value in model.state_dict().values()], seen

    eager_losses, eager_state, _ = train(model)
    losses, state, seen = train(compiler(model, fullgraph=True, backend="aot_eager"))
    assert losses == pytest.approx(eager_losses, rel=1e-5)
    for found, expected in zip(state, eager_state, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert seen == [seen[0]] * 4
    assert not any("weight" in module.__dict__ for module in model.modules())


def test_noise_is_fresh_at_each_compiled_forward():
    model = sequential()
    DiffQuantizer(model, min_size=0, group_size=8, init_bits=3).no_optimizer()
    forward = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 16)
    assert not torch.equal(forward(x), forward(x))


@pytest.mark.parametrize("make", [Net, sequential])
def test_compiled_eval_follows_the_weights(make):
    model = make().eval()
    DiffQuantizer(model, min_size=0, group_size=8, init_bits=3)
    forward = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 16)
    for _ in range(2):
        torch.testing.assert_close(forward(x), model(x))
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)


def compile_blocks(model):
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize("mode", ["plain", "non-reentrant", "reentrant"])
@pytest.mark.parametrize(
    "compiler",
    [
        compile_blocks,
        lambda model: torch.compile(model, backend="aot_eager"),
        lambda model: torch.compile(model, backend="aot_eager", fullgraph=True),
    ],
    ids=["blocks", "root", "root in one graph"],
)
def test_checkpoints_around_and_inside_compiled_regions(mode, compiler):
    def run(mode, compiler):
        torch.manual_seed(0)
        model = ResidualNet(mode)
        DiffQuantizer(model, min_size=0, group_size=8, init_bits=4).no_optimizer()
        forward = compiler(model)
        torch.manual_seed(1)
        x = torch.randn(4, 16, requires_grad=True)
        for _ in range(2):
            forward(x).square().mean().backward()
        return [param.grad for param in model.parameters()]

    for found, expected in zip(run(mode, compiler), run("plain", lambda model: model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_non_finite_logit_gradients_are_counted_in_a_compiled_graph_too():
    model = sequential()
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.no_optimizer()
    forward = torch.compile(model, fullgraph=True, backend="aot_eager")
    (forward(torch.randn(4, 16)).sum() * float("inf")).backward()
    with pytest.warns(UserWarning, match="non-finite gradients reached the logits"):
        quantizer.true_model_size()


def test_attaching_while_another_thread_imports_dynamo(monkeypatch):
    """A module that is being imported is in sys.modules already, without most of its names."""
    half_made = ModuleType("torch._dynamo")
    half_made.__spec__ = ModuleSpec("torch._dynamo", None)
    half_made.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, "torch._dynamo", half_made)
    quantizer = DiffQuantizer(sequential(), min_size=0)
    quantizer.freeze_bits()
    quantizer.detach()


# -- attaching and freezing after something was compiled ---------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + 1


def held_by_a_wrapper(model, **options):
    return torch.compile(Wrapped(model), **options)


@pytest.mark.parametrize("make", [Net, sequential])
@pytest.mark.parametrize("compiler", [torch.compile, called_by_a_function, held_by_a_wrapper])
def test_a_model_that_ran_compiled_before_is_noisy_once_a_quantizer_is_attached(make, compiler):
    model = make()
    forward = compiler(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 16)
    assert torch.equal(forward(x), forward(x))
    quantizer = DiffQuantizer(model, min_size=0, group_size=8, init_bits=3)
    quantizer.no_optimizer()
    assert not torch.equal(forward(x), forward(x))
    quantizer.freeze_bits(straight_through=True)
    assert torch.equal(forward(x), forward(x))
    quantizer.unfreeze_bits()
    assert not torch.equal(forward(x), forward(x))


def test_a_block_that_ran_compiled_before_is_noisy_too():
    model = compile_blocks(ResidualNet("plain"))
    x = torch.randn(4, 16)
    assert torch.equal(model(x), model(x))
    DiffQuantizer(model, min_size=0, group_size=8, init_bits=3).no_optimizer()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("compiler", [torch.compile, called_by_a_function])
def test_a_strangers_graphs_stay(compiler):
    stranger = ResidualNet("plain")
    forward = compiler(stranger, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 16)
    forward(x)
    seen = graphs()
    quantizer = DiffQuantizer(Net(), min_size=0, group_size=8)
    quantizer.no_optimizer()
    quantizer.freeze_bits()
    quantizer.unfreeze_bits()
    forward(x)
    assert graphs() == seen
