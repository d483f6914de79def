"""A group of their own for parameters, in an optimizer that somebody else made."""

import pytest
import torch
from torch import nn

from diffq_fast.integrations.own_group import OwnGroup


def of(optimizer):
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def steps(optimizer, params, count=3, scheduler=None):
    for number in range(count):
        for param in params:
            param.grad = torch.full_like(param, 0.5 + number)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_a_step_is_that_of_a_group_made_at_first(kind):
    results = []
    for own in (False, True):
        weight, bits = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3))
        if own:
            optimizer = kind([weight, bits], lr=0.01, weight_decay=0.1)
            OwnGroup(optimizer, [bits], lr=0.3)
        else:
            optimizer = kind(
                [{"params": [weight]}, {"params": [bits], "lr": 0.3, "weight_decay": 0.0}], lr=0.01, weight_decay=0.1
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        steps(optimizer, [weight, bits], scheduler=scheduler)
        results.append((weight.detach(), bits.detach()))
    torch.testing.assert_close(results[1], results[0])


def test_between_steps_the_optimizer_is_as_it_was_made():
    weight, bits = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([bits, weight], lr=0.01)
    before = of(optimizer)
    group = OwnGroup(optimizer, [bits], lr=0.3)
    steps(optimizer, [weight, bits])
    assert of(optimizer) == before
    assert [id(param) for param in optimizer.param_groups[0]["params"]] == [id(bits), id(weight)]
    assert optimizer.state_dict()["state"].keys() == {0, 1}
    value = bits.detach().clone()
    group.remove()
    steps(optimizer, [weight, bits], count=1)
    assert float((bits.detach() - value).abs().max()) < 0.011


def test_a_step_that_fails_leaves_no_group_behind_in_the_next():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no step")

    weight, bits = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3))
    optimizer = Failing([weight, bits], lr=0.01)
    group = OwnGroup(optimizer, [bits], lr=0.3)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no step"):
            optimizer.step()
    assert len(optimizer.param_groups) == 2
    group.take()
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_what_tells_nothing_of_its_steps_is_refused():
    class Wrapped:
        param_groups = ()

    with pytest.raises(TypeError, match=r"expected an optimizer of torch .* got a Wrapped"):
        OwnGroup(Wrapped(), [], lr=0.3)


def test_a_group_that_holds_nothing_else_stays():
    weight, bits = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [bits], "lr": 0.5}], lr=0.01)
    OwnGroup(optimizer, [bits], lr=0.3)
    steps(optimizer, [weight, bits], count=1)
    assert torch.allclose(bits, torch.full((3,), 0.75))


def test_undecayed_parameters_keep_their_learning_rate_and_lose_the_decay():
    bits, ends, weight = (nn.Parameter(torch.ones(1)) for _ in range(3))
    optimizer = torch.optim.SGD([bits, ends, weight], lr=0.5, weight_decay=0.25)
    OwnGroup(optimizer, [bits], 0.125, [ends])
    for param in (bits, ends, weight):
        param.grad = torch.ones(1)
    optimizer.step()
    assert [param.item() for param in (bits, ends, weight)] == [1 - 0.125, 1 - 0.5, 1 - 0.5 * 1.25]
    assert [len(group["params"]) for group in optimizer.param_groups] == [3]
