"""Optimizers, loss scales and averages of weights that people train with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from diffq_fast import DiffQuantizer, SizeTarget

STEPS = 40


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def inputs_and_labels():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 64, generator=generator)
    return inputs, (inputs[:, :8] + 0.1 * torch.randn(32, 8, generator=generator)).argmax(1)


# -- SizeTarget under a GradScaler -------------------------------------------------------------------------------------

OPTIMIZERS = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "AdamW fused": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "SGD fused": lambda params: torch.optim.SGD(params, lr=0.1, fused=True),
}


def train_to_size(make_optimizer, *, scaled, spoiled=()):
    """The prices and the logits of a training to a size. Nobody calls ``unscale_``; ``spoiled``: steps with an infinite
    loss, which a GradScaler passes over."""
    model = network()
    optimizer = make_optimizer(model.parameters())
    quantizer = DiffQuantizer(model, group_size=8, min_size=0)
    quantizer.setup_optimizer(optimizer, lr=0.02)
    target = SizeTarget(quantizer, bits_per_weight=4, total_steps=STEPS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=STEPS + 1, enabled=scaled)
    inputs, labels = inputs_and_labels()
    torch.manual_seed(3)
    prices = []
    for step in range(STEPS // 2 - 2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels) * (float("inf") if step in spoiled else 1)
        scaler.scale(loss + target.penalty()).backward()
        scaler.step(optimizer)
        target.step()
        scaler.update()
        prices.append(float(target.price))
    return prices, [logit.detach().clone() for logit in quantizer.learned_parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_size_target_needs_no_unscaling_by_hand(name):
    """scaler.step leaves the gradients unscaled behind it. The scale is a power of two, so all is equal to the bit."""
    prices, logits = train_to_size(OPTIMIZERS[name], scaled=True)
    expected = train_to_size(OPTIMIZERS[name], scaled=False)
    assert max(expected[0]) > 0
    assert prices == expected[0]
    for logit, other in zip(logits, expected[1], strict=True):
        assert torch.equal(logit, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_scaler_skips_leaves_the_price_finite(name):
    prices, logits = train_to_size(OPTIMIZERS[name], scaled=True, spoiled=(5, 8))
    assert all(0 <= price < 1e6 for price in prices)
    assert all(logit.isfinite().all() for logit in logits)


# -- optimizers with restrictions --------------------------------------------------------------------------------------


class EightBitAdam(torch.optim.Optimizer):
    """What 8-bit optimizers do, in short: float32 parameters of any shape, and moments as bytes with a scale for each
    block of 256, for parameters of at least 1,024 elements."""

    BLOCK, FEWEST = 256, 1024

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                assert param.dtype == torch.float32
                assert param.is_contiguous()
                state = self.state[param]
                mean = 0.9 * self._read(state, "mean", param) + 0.1 * param.grad
                square = 0.99 * self._read(state, "square", param) + 0.01 * param.grad**2
                state["step"] = state.get("step", 0) + 1
                unbiased = (square / (1 - 0.99 ** state["step"])).clamp(min=0).sqrt() + 1e-6
                param -= group["lr"] * (mean / (1 - 0.9 ** state["step"])) / unbiased
                self._write(state, "mean", mean)
                self._write(state, "square", square)

    def _read(self, state, name, like) -> Tensor:
        if name not in state:
            return torch.zeros_like(like)
        if like.numel() < self.FEWEST:
            return state[name]
        levels, scales = state[name]
        return (levels * scales).reshape(-1)[: like.numel()].view_as(like)

    def _write(self, state, name, value) -> None:
        if value.numel() >= self.FEWEST:
            blocks = nn.functional.pad(value.reshape(-1), (0, -value.numel() % self.BLOCK)).view(-1, self.BLOCK)
            scales = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
            value = (blocks / scales).round().to(torch.int8), scales
        state[name] = value


class OnlyMatrices(torch.optim.SGD):
    """Like Muon, Shampoo and others: it takes parameters of two dimensions and no others."""

    def add_param_group(self, param_group):
        wrong = [tuple(param.shape) for param in param_group["params"] if param.dim() != 2]
        if wrong:
            raise ValueError(f"OnlyMatrices: expected matrices, got {wrong[0]}")
        super().add_param_group(param_group)


def train(model, optimizers, steps=30):
    inputs, labels = inputs_and_labels()
    torch.manual_seed(4)
    losses = []
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("group_size", [1, 8])
def test_bits_train_with_an_8_bit_optimizer(group_size):
    """Logits of groups of 1 are kept in bytes too, those of groups of 8 are too few."""
    model = network()
    optimizer = EightBitAdam(model.parameters(), lr=3e-3)
    quantizer = DiffQuantizer(model, group_size=group_size, min_size=0)
    quantizer.setup_optimizer(optimizer, lr=0.02)
    start = quantizer.true_model_size()
    losses = train(model, [optimizer])
    assert losses[-1] < 0.7 * losses[0]
    assert all(logit.isfinite().all() for logit in quantizer.learned_parameters())
    largest = max(quantizer.learned_parameters(), key=Tensor.numel)
    assert largest.std() > 0
    assert isinstance(optimizer.state[largest]["mean"], tuple) == (group_size == 1)
    assert quantizer.true_model_size() != start


def test_an_optimizer_of_matrices_refuses_the_bits_and_takes_its_own_group():
    model = network()
    quantizer = DiffQuantizer(model, min_size=0)
    with pytest.raises(ValueError, match=r"expected matrices, got \(4096,\)"):
        quantizer.setup_optimizer(OnlyMatrices([model[0].weight, model[2].weight], lr=0.1))
    matrices, others, bits = quantizer.parameter_groups(lr=0.1, bits_lr=0.02, matrices=True)
    optimizers = [OnlyMatrices([matrices]), torch.optim.AdamW([others, bits])]
    losses = train(model, optimizers)
    assert losses[-1] < losses[0]
    assert all(logit.std() > 0 for logit in quantizer.learned_parameters())


# -- averages of weights -----------------------------------------------------------------------------------------------


class Average:
    """Like the averages of diffusers, timm and others: beside the model, and swapped in and out for an evaluation."""

    def __init__(self, parameters, decay=0.5):
        self.decay, self.kept = decay, None
        self.shadow = [param.detach().clone() for param in parameters]

    def step(self, parameters):
        for mean, param in zip(self.shadow, parameters, strict=True):
            mean.lerp_(param.detach(), 1 - self.decay)

    def copy_to(self, parameters, through_data):
        parameters = list(parameters)
        self.kept = [param.detach().clone() for param in parameters]
        self._write(parameters, self.shadow, through_data)

    def restore(self, parameters, through_data):
        self._write(parameters, self.kept, through_data)

    @staticmethod
    def _write(parameters, values, through_data):
        for param, value in zip(parameters, values, strict=True):
            if through_data:
                param.data.copy_(value)  # moves no version counter
            else:
                with torch.no_grad():
                    param.copy_(value)


@pytest.mark.parametrize("through_data", [False, True])
def test_an_average_that_is_copied_in_is_what_eval_sees_until_it_is_restored(through_data):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    quantizer = DiffQuantizer(model, group_size=8, min_size=0, init_bits=5)
    quantizer.setup_optimizer(optimizer, lr=5.0)
    average = Average(model.parameters())
    for _ in range(3):
        train(model, [optimizer], steps=1)
        average.step(model.parameters())
    inputs, _ = inputs_and_labels()
    model.eval()
    trained = model(inputs)
    average.copy_to(model.parameters(), through_data)
    averaged = model(inputs)
    average.restore(model.parameters(), through_data)
    assert torch.equal(model(inputs), trained)
    assert not torch.equal(averaged, trained)

    plain = copy.deepcopy(quantizer)  # the weights of the average, quantised by themselves
    average.copy_to(plain.model.parameters(), False)
    plain.bake()
    assert torch.equal(plain.model(inputs), averaged)


def test_an_averaged_model_can_be_swapped_into_a_training():
    """torch.optim.swa_utils.AveragedModel: its copy has a quantizer of its own, with averaged bits."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    quantizer = DiffQuantizer(model, group_size=8, min_size=0)
    quantizer.setup_optimizer(optimizer, lr=5.0)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        train(model, [optimizer], steps=1)
        averaged.update_parameters(model)
    logit, mean = model[0].weight_diffq, averaged.module[0].weight_diffq
    assert not torch.equal(logit, mean)
    inputs, _ = inputs_and_labels()
    expected = averaged.eval()(inputs)
    model.load_state_dict(averaged.module.state_dict())
    assert torch.equal(model.eval()(inputs), expected)
