"""post_training.calibration: the moments foretell how far a model's outputs move, and leave the model as it was."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from diffq_fast.post_training.calibration import CalibrationFile, calibrate, save_calibration


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.inner = nn.Linear(16, 32)
        self.outer = nn.Linear(32, 8)

    def forward(self, tokens, mask=None):
        values = self.outer(torch.tanh(self.inner(self.tokens(tokens))))
        return values if mask is None else values * mask[..., None]


@pytest.fixture
def model() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def batches(count: int = 40) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 20, (8, 6), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", ["tokens.weight", "inner.weight", "outer.weight"])
def test_moments_foretell_how_far_the_outputs_move(name, model):
    with torch.no_grad():
        model.tokens.weight *= 0.1  # where tanh is nearly linear, so that inputs and gradients are independent
    data = batches()
    found, weight = calibrate(model, data), model.get_parameter(name)
    rows, columns = found[name + ".rows"], found[name + ".columns"]
    if name == "tokens.weight":  # tokens from 20 on do not occur: what they got is what was spread evenly
        rows = (rows - rows[20:].mean()) * 2
    generator, foretold, moved = torch.Generator().manual_seed(2), 0.0, 0.0
    with torch.no_grad():
        before = [model(each) for each in data]
        for _ in range(10):
            change = 1e-3 * torch.randn(weight.shape, generator=generator)
            foretold += float(rows @ ((change @ columns) * change).sum(1))
            weight += change
            moved += sum(float((model(each) - old).square().sum()) for each, old in zip(data, before, strict=True))
            weight -= change
    assert foretold == pytest.approx(moved, rel=0.1)


def test_what_the_output_ignores_does_not_count(model):
    data = batches(4)
    padded = [(torch.cat([each, torch.full_like(each, 49)], 1), torch.arange(12).expand(8, 12) < 6) for each in data]
    ours, theirs = calibrate(model, padded), calibrate(model, data)
    for name in ("inner.weight.columns", "outer.weight.columns"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_a_loss_takes_the_place_of_random_products(model):
    found = calibrate(model, batches(2), loss=lambda output: output[..., 0].sum())
    assert found["outer.weight.rows"][0] == 2 * 8 * 6
    assert found["outer.weight.rows"][1:].tolist() == [0] * 7


def test_the_model_is_left_as_it_was(model):
    model.train()
    model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = calibrate(model, [{"tokens": each} for each in batches(2)])
    assert model.training
    assert all(each.grad is None and not each.requires_grad for each in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.modules())
    assert found["inner.weight.rows"].min() > 0


class ByName(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, values):
        return self.inner(input=values)


def test_a_layer_may_be_called_by_names():
    inner = nn.Linear(3, 2)
    found = calibrate(ByName(inner), [torch.eye(3)])
    expected = calibrate(inner, [torch.eye(3)])
    assert torch.equal(found["inner.weight.columns"], expected["weight.columns"])


def test_the_same_seed_gives_the_same_moments(model):
    first, second, other = (calibrate(model, batches(2), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["inner.weight.rows"], other["inner.weight.rows"])


def test_moments_go_through_a_file(model, tmp_path):
    found = calibrate(model, batches(2))
    save_calibration(tmp_path / "moments", found)
    with ExitStack() as stack:
        stored = CalibrationFile(tmp_path / "moments", stack)
        assert stored.weights == {"tokens.weight", "inner.weight", "outer.weight"}
        moments = stored.moments("inner.weight")
        assert torch.equal(moments.columns, found["inner.weight.columns"])
        assert torch.equal(moments.rows, found["inner.weight.rows"])
        assert stored.moments("other") is None


def test_calls_that_give_nothing_are_refused(model):
    with pytest.raises(ValueError, match="at least one batch, got none"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="no layer ran whose weight is understood"):
        calibrate(nn.ReLU(), [torch.ones(2, requires_grad=True)])
    with pytest.raises(TypeError, match="expected an output with floating tensors"):
        calibrate(nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), ArgMax()), [torch.tensor([[1]])])
    with ExitStack() as stack, pytest.raises(ValueError, match=r"expected tensors NAME.columns or NAME.rows"):
        CalibrationFile({"a.weight": torch.ones(2)}, stack)


class ArgMax(nn.Module):
    def forward(self, values):
        return values.argmax(-1)
