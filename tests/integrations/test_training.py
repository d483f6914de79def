"""What both callbacks do with a quantizer, without either ecosystem."""

from functools import partial

import pytest
import torch
from torch import nn

from diffq_fast import LSQ, DiffQuantizer, RateQuantizer
from diffq_fast.integrations.training import Goal, QuantizedTraining
from diffq_fast.quantizers.base import BaseQuantizer
from support.no_reads import NoReads

SMALL = partial(DiffQuantizer, group_size=8, min_size=0.0005)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))


def begun(model, goal, steps=20, made=torch.optim.Adam):
    """A training and the optimizer of a loop that is somebody else's."""
    training = QuantizedTraining("Callback", goal)
    training.attach(model)
    optimizer = made(model.parameters(), lr=1e-3)
    training.begin([optimizer], steps)
    return training, optimizer


def step(model, training, optimizer):
    training.add_price()
    model(torch.ones(4, 16)).square().mean().backward()
    optimizer.step()
    training.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("goal", [Goal(SMALL, penalty=3.0), Goal(SMALL, bits_per_weight=6.0)], ids=["penalty", "size"])
def test_a_step_reads_nothing_on_the_host(goal, monkeypatch):
    model = network()
    training, optimizer = begun(model, goal, made=torch.optim.SGD)  # Adam itself reads its count of steps
    step(model, training, optimizer)
    monkeypatch.setattr(BaseQuantizer, "_is_on_cpu", lambda quantizer: False)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))
    with NoReads():
        for _ in range(2):
            step(model, training, optimizer)


@pytest.mark.parametrize("scheme", [SMALL, partial(RateQuantizer, min_size=0.0005)])
def test_the_price_is_in_the_gradients_as_if_it_were_in_the_loss(scheme):
    gradients = []
    for beside in (False, True):
        model = network()
        training, _ = begun(model, Goal(scheme, penalty=7.0))
        quantizer = training.quantizer
        torch.manual_seed(1)
        loss = model(torch.ones(4, 16)).square().mean()
        if beside:
            training.add_price(lambda price: price * 0.5)
        else:
            loss = loss + 0.5 * 7.0 * quantizer.model_size()
        loss.backward()
        gradients.append({name: param.grad for name, param in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_what_is_learned_has_the_rate_of_bits_or_the_optimizers():
    for scheme, moved in ((SMALL, 0.02), (partial(LSQ, min_size=0.0005), 1e-3)):
        model = network()
        training, optimizer = begun(model, Goal(scheme))
        before = [param.detach().clone() for param in training.quantizer.learned_parameters()]
        step(model, training, optimizer)
        largest = max(
            float((param.detach() - start).abs().max())
            for param, start in zip(training.quantizer.learned_parameters(), before, strict=True)
        )
        assert largest == pytest.approx(moved, rel=0.01)  # a first step of Adam moves by the rate


def test_a_state_of_another_quantizer_is_refused():
    training, _ = begun(network(), Goal(SMALL, penalty=1.0))
    other, _ = begun(network(), Goal(partial(DiffQuantizer, group_size=4, min_size=0.0005), penalty=1.0))
    with pytest.raises(ValueError, match=r"was made with another quantizer: 0\.weight"):
        training.load_state_dict(other.state_dict())


def test_several_optimizers_without_the_bits_are_refused():
    model = network()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2])]
    training = QuantizedTraining("Callback", Goal(SMALL, penalty=1.0))
    training.attach(model)
    with pytest.raises(RuntimeError, match=r"none of 2 optimizers holds .* quantizer.parameter_groups"):
        training.begin(optimizers, 10)


def test_what_makes_no_quantizer_is_refused():
    with pytest.raises(
        TypeError, match="must be a quantizer of diffq_fast or make one of a model, got type, which gave"
    ):
        QuantizedTraining("Callback", Goal(nn.Sequential)).attach(network())


def test_arguments_of_a_size_target_without_a_size_are_refused():
    with pytest.raises(ValueError, match="size_target has arguments"):
        QuantizedTraining("Callback", Goal(SMALL, penalty=1.0, size_target={"freeze_at": 1.0}))
