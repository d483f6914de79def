"""``quantizer.parameter_groups``: groups for optimizers that other code makes."""

import pytest
import torch
from torch import nn

from diffq_fast import LSQ, DiffQuantizer, RateQuantizer, UniformQuantizer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 4))


def train(model, optimizers, steps=3, schedulers=()):
    inputs, labels = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    torch.manual_seed(2)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        for each in [*optimizers, *schedulers]:
            each.step()
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def test_one_optimizer_of_the_groups_trains_as_setup_optimizer_does():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    DiffQuantizer(model, min_size=0).setup_optimizer(optimizer, lr=0.05)
    expected = train(model, [optimizer])

    model = network()
    groups = DiffQuantizer(model, min_size=0).parameter_groups(lr=1e-3, bits_lr=0.05)
    found = train(model, [torch.optim.AdamW(groups, weight_decay=0.1)])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("scheme", [DiffQuantizer, RateQuantizer, LSQ])
def test_what_is_learned_has_a_group_of_its_own(scheme):
    model = network()
    quantizer = scheme(model, min_size=0)
    weights, learned = quantizer.parameter_groups(lr=1e-3, bits_lr=0.05)
    assert [id(param) for param in learned["params"]] == [id(param) for param in quantizer.learned_parameters()]
    assert (learned["lr"], learned["weight_decay"], weights["lr"]) == (0.05, 0.0, 1e-3)
    assert "weight_decay" not in weights
    names = {id(param): name for name, param in model.named_parameters()}
    assert {names[id(param)] for param in weights["params"]} == set(dict(network().named_parameters()))


def test_rates_that_are_not_given_are_those_of_the_optimizer():
    groups = DiffQuantizer(network(), min_size=0).parameter_groups()
    optimizer = torch.optim.SGD(groups, lr=0.25, weight_decay=0.5)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.25, 0.5), (0.25, 0.0)]


def test_a_quantizer_that_learns_nothing_has_the_one_group():
    model = network()
    (group,) = UniformQuantizer(model, min_size=0).parameter_groups(lr=1e-3)
    assert len(group["params"]) == len(list(model.parameters()))


def test_a_module_around_the_model_brings_its_own_parameters():
    model = network()
    around = nn.ModuleDict({"encoder": model, "head": nn.Linear(4, 2)})
    weights, learned = DiffQuantizer(model, min_size=0).parameter_groups(around, lr=1e-3)
    assert len(weights["params"]) + len(learned["params"]) == len(list(around.parameters()))


def test_another_model_is_refused():
    quantizer = DiffQuantizer(network(), min_size=0)
    with pytest.raises(ValueError, match=r"DiffQuantizer.parameter_groups: model must hold .* got a Linear"):
        quantizer.parameter_groups(nn.Linear(2, 2))


def test_a_second_call_is_refused_and_clearing_allows_it():
    quantizer = DiffQuantizer(network(), min_size=0)
    optimizer = torch.optim.SGD(quantizer.parameter_groups(), lr=0.1)
    with pytest.raises(RuntimeError, match="set up already"):
        quantizer.parameter_groups()
    quantizer.clear_optimizer(optimizer)
    assert len(quantizer.parameter_groups()) == 2


def test_schedulers_that_count_groups_take_them():
    model = network()
    optimizer = torch.optim.AdamW(DiffQuantizer(model, min_size=0).parameter_groups(lr=1e-3, bits_lr=0.1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(model, [optimizer], steps=2, schedulers=[scheduler])
    assert scheduler.get_last_lr() == [2.5e-4, 0.025]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no torch.optim.Muon (2.9 brought it)")
def test_matrices_go_to_muon_and_the_rest_to_another_optimizer():
    model = network()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    quantizer = DiffQuantizer(model, min_size=0, exclude=["*bias", "2.*"])
    matrices, others, learned = quantizer.parameter_groups(lr=1e-3, bits_lr=0.05, matrices=True)
    assert {param.dim() for param in matrices["params"]} == {2}
    with pytest.raises(ValueError, match="2D"):  # why the groups are split
        torch.optim.Muon([*others["params"]])
    after = train(model, [torch.optim.Muon([matrices]), torch.optim.AdamW([others, learned])])
    for name, value in before.items():
        assert not torch.equal(after[name], value), name
    assert any(logit.std() > 0 for logit in quantizer.learned_parameters())
