"""An exception at any line of a forward, or of a checkpoint's recomputation, leaves the parameters in their places."""

import copy
import io
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import diffq_fast
from diffq_fast import LSQ, DiffQuantizer, RateQuantizer, UniformQuantizer

FILES = (str(Path(diffq_fast.__file__).parent), nn.modules.module.__file__, __file__)
X = torch.randn(3, 8)


class Net(nn.Module):
    def __init__(self, checkpointed=False):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(8, 8), nn.GRU(8, 8), nn.Linear(8, 4)
        self.checkpointed, self.watch = checkpointed, None

    def forward(self, x):
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        if self.watch is not None:
            self.watch()
        return self.last(x)

    def block(self, x):
        return self.cell(torch.relu(self.first(x)))[0]


QUANTIZERS = {
    "diffq": lambda model: DiffQuantizer(model, min_size=0, group_size=8, init_bits=3, float16=True),
    "uniform": lambda model: UniformQuantizer(model, bits=3, min_size=0, qat=True),
    "lsq": lambda model: LSQ(model, bits=3, min_size=0),
    "rate": lambda model: RateQuantizer(model, group_size=8, min_size=0),
}


def attach(name="diffq", checkpointed=False):
    torch.manual_seed(0)
    model = Net(checkpointed)
    quantizer = QUANTIZERS[name](model)
    quantizer.no_optimizer()
    return model, quantizer


class Interrupt:
    """Raises KeyboardInterrupt at the ``number``-th line that is run in ``FILES``. Notes every line."""

    def __init__(self, number=None):
        self.number, self.lines = number, []

    def first_and_last(self):
        """The numbers at which each line ran for the first and for the last time."""
        numbers = list(enumerate(self.lines, 1))
        first = {line: number for number, line in reversed(numbers)}
        return sorted({*first.values(), *{line: number for number, line in numbers}.values()})

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(FILES):
            return None
        if event == "line":
            self.lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.lines) == self.number:
                raise KeyboardInterrupt
        return self

    def run(self, function):
        """Whether ``function`` was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
            torch.set_grad_enabled(True)  # a with statement that is interrupted before its end does not end
        return False


def check_that_nothing_is_left(model):
    for name, module in model.named_modules():
        for key, param in module._parameters.items():
            assert key not in module.__dict__, f"{name}.{key}"
            assert getattr(module, key) is param
    flat = zip(model.cell._flat_weights_names, model.cell._flat_weights, strict=True)
    assert all(weight is model.cell._parameters[name] for name, weight in flat)


def interrupt_at_every_line(model, function):
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    function()
    counter = Interrupt()
    assert not counter.run(function)
    assert len(set(counter.lines)) > 100
    for number in counter.first_and_last():
        assert Interrupt(number).run(function), number
        check_that_nothing_is_left(model)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_an_interrupt_at_any_line_of_a_forward_leaves_the_parameters(name, training):
    model, _ = attach(name)
    model.train(training)
    interrupt_at_every_line(model, lambda: model(X))
    torch.manual_seed(1)
    found = model(X)
    other, _ = attach(name)
    torch.manual_seed(1)
    assert torch.equal(found, other.train(training)(X))  # and the next forward is as if there had been none


def test_after_an_interrupt_at_any_line_of_detach_another_detach_leaves_nothing():
    model, quantizer = attach()
    counter = Interrupt()
    counter.run(quantizer.detach)
    plain = [set(vars(module)) for module in model.modules()]
    for number in counter.first_and_last():
        model, quantizer = attach()
        model(X)
        assert Interrupt(number).run(quantizer.detach), number
        quantizer.detach()
        check_that_nothing_is_left(model)
        assert [set(vars(module)) for module in model.modules()] == plain, number
        assert not model._forward_hooks
        assert not any(name.endswith("_diffq") for name in model.state_dict())


def test_an_interrupt_at_any_line_of_a_recomputation_leaves_the_parameters():
    model, _ = attach(checkpointed=True)
    interrupt_at_every_line(model, lambda: model(X).sum().backward())


def test_an_interrupt_in_a_model_that_calls_itself_leaves_the_outer_call_alone():
    model, _ = attach()

    def call_again():
        model.watch = stop
        seen.append(model.first.weight)
        with pytest.raises(KeyboardInterrupt):
            model(X)
        seen.append(model.first.weight)

    def stop():
        raise KeyboardInterrupt

    seen = []
    model.watch = call_again
    model(X)
    assert seen[0] is seen[1]
    assert seen[0] is not model.first._parameters["weight"]
    check_that_nothing_is_left(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
def test_the_parameters_are_there_where_the_exception_is_handled(error):
    model, _ = attach()

    def stop():
        raise error

    model.watch = stop
    try:
        model(X)
    except error:
        check_that_nothing_is_left(model)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("make", [copy.deepcopy, saved_and_loaded, lambda model: copy.deepcopy(model.cell)])
@pytest.mark.parametrize("training", [True, False])
def test_a_copy_made_inside_a_forward_holds_parameters(make, training):
    model, _ = attach()
    model.train(training)
    copies = []

    def watch():
        model.watch = None
        copies.append(make(model))

    model.watch = watch
    model(X)
    assert "_call_impl" not in vars(copy.copy(model))
    (twin,) = copies
    if isinstance(twin, nn.GRU):
        assert [*map(id, twin._flat_weights)] == [id(twin._parameters[name]) for name in twin._flat_weights_names]
        return
    check_that_nothing_is_left(twin)
    twin.train()
    twin(X).sum().backward()
    assert twin.first.weight.grad.abs().sum() > 0
    assert twin.first.weight is not model.first.weight
    twin.watch = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):  # the copy is guarded too
        twin(X)
    check_that_nothing_is_left(twin)
    check_that_nothing_is_left(model)


def test_detaching_leaves_nothing_in_the_modules():
    model = Net()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    first = UniformQuantizer(model, bits=3, min_size=0, exclude=["last.*"])
    second = LSQ(model, bits=3, min_size=0, exclude=["first.*", "cell.*"])
    second.no_optimizer()
    model(X)
    first.detach()
    model.watch = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        model(X)
    check_that_nothing_is_left(model)
    second.detach()
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_an_interrupted_quantize_in_a_context_is_taken_back():
    model, quantizer = attach()
    model.eval()
    expected = {name: value.clone() for name, value in model.state_dict().items()}

    def enter():
        with quantizer.enter_quantize():
            pass

    counter = Interrupt()
    counter.run(enter)
    for number in counter.first_and_last():
        Interrupt(number).run(enter)
        quantizer.unquantize()  # for an interrupt of the way back
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items()), number
