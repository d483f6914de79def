"""examples/minilm_trained.py: trainings go on where they ended, HQQ's levels in training, each method's file."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from support.paths import ROOT

NAMES = ("distillation", "hqq_training", "peer_formats", "trained_methods")


class Encoder(nn.Module):
    """Tokens and a mask to unit vectors: as MiniLM, but small."""

    def __init__(self, pooler: bool = False) -> None:
        super().__init__()
        self.table, self.dense, self.norm = nn.Embedding(64, 64), nn.Linear(64, 128), nn.LayerNorm(128)

    def forward(self, tokens, mask):
        values = self.norm(self.dense(self.table(tokens))) * mask[..., None]
        return F.normalize(values.sum(1) / mask.sum(1, keepdim=True), dim=1)


def pretrained(pooler: bool = False) -> Encoder:
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    model = Encoder().eval()
    torch.random.set_rng_state(state)
    return model


def batches(texts, size):
    tokens = torch.tensor([[ord(each) % 64 for each in text] for text in texts])
    return [(tokens, torch.ones(tokens.shape, dtype=torch.bool))]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """With a small network and sentences of eight characters in the place of MiniLM's."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    found = SimpleNamespace(**{name: importlib.import_module(f"experiments.{name}") for name in NAMES})
    texts = [[f"{source}{number:07d}"[-8:] for number in range(80)] for source in "ab"]
    monkeypatch.setattr(found.distillation.minilm, "pretrained", pretrained)
    monkeypatch.setattr(found.distillation, "training_sentences", lambda apart: texts)
    monkeypatch.setattr(found.distillation, "batches", batches)
    monkeypatch.setattr(found.distillation, "CHECKPOINT", 3)
    return found


METHODS = [("LSQ", 3, None), ("QAT", 4, None), ("HQQ, then QAT", 2, 64)]
METHODS += [("DiffQ", 4.0, "tensor"), ("DiffQ", 4.0, "group")]
STEPS = 12


def trained(modules, method, path):
    """A whole training, from what is kept."""
    run = modules.distillation.Distillation(path, STEPS, 0)
    made = modules.trained_methods.attach(method, pretrained().train(), 1e-3, run)
    run.train(made.student)
    return run, made


@pytest.mark.parametrize("given", METHODS, ids=lambda given: f"{given[0]}, {given[1]}, {given[2]}")
def test_the_file_of_a_training_has_its_student(modules, tmp_path, given):
    method = modules.trained_methods.Method(*given)
    run, made = trained(modules, method, tmp_path / "run.pt")
    model = made.student.model.eval()
    held = made.write(tmp_path / "file")
    loaded = pretrained()
    with torch.no_grad():
        for name, each in loaded.named_parameters():
            each.copy_(held[name])
    (batch,) = batches(["a0000001", "b0000002", "a0000033"], 3)
    with torch.no_grad():
        torch.testing.assert_close(loaded(*batch), model(*batch), rtol=2e-3, atol=2e-3)  # norms are in float16 there
        assert not torch.equal(loaded(*batch), pretrained()(*batch))
    assert run.step == STEPS
    assert run.seconds > 0


@pytest.mark.parametrize("given", METHODS, ids=lambda given: f"{given[0]}, {given[1]}, {given[2]}")
def test_a_start_goes_on_where_the_last_one_ended(modules, tmp_path, given, monkeypatch):
    method = modules.trained_methods.Method(*given)
    _, whole = trained(modules, method, tmp_path / "whole.pt")
    stopped = modules.distillation.Distillation(tmp_path / "parts.pt", STEPS, 0)
    made = modules.trained_methods.attach(method, pretrained().train(), 1e-3, stopped)
    loss, calls = modules.distillation.Distillation._loss, []

    def interrupted(run, model):
        calls.append(run.step)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return loss(run, model)

    monkeypatch.setattr(modules.distillation.Distillation, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(made.student)
    monkeypatch.setattr(modules.distillation.Distillation, "_loss", loss)
    run, parts = trained(modules, method, tmp_path / "parts.pt")
    assert run.kept["step"] == 6  # the last of every third one
    ours, theirs = parts.student.model.state_dict(), whole.student.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, each in ours.items():
        if isinstance(each, torch.Tensor):
            assert torch.equal(each, theirs[name]), name


def test_a_trial_keeps_nothing(modules, tmp_path):
    run = modules.distillation.Distillation(tmp_path / "trial.pt", STEPS, 0)
    method = modules.trained_methods.Method("LSQ", 3)
    made = modules.trained_methods.attach(method, pretrained().train(), 1e-3, run)
    run.train(made.student, 4)
    assert (run.step, list(tmp_path.iterdir())) == (4, [])


@pytest.mark.parametrize("bits", [2, 3])
def test_hqqs_training_begins_with_hqqs_values(modules, tmp_path, bits):
    model = pretrained()
    expected = modules.peer_formats.hqq_file(model.state_dict(), bits, 64, tmp_path / "hqq")
    modules.hqq_training.attach_hqq(model, bits, 64)
    held = modules.hqq_training.save_hqq(model, tmp_path / "trained")
    assert (tmp_path / "trained").stat().st_size == (tmp_path / "hqq").stat().st_size
    assert held.keys() == expected.keys()
    for name, each in expected.items():
        torch.testing.assert_close(held[name], each, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.dense.weight.detach(), expected["dense.weight"], rtol=1e-3, atol=1e-4)


def test_gradients_of_hqqs_levels_are_those_of_a_straight_through_estimate(modules):
    """Of sum(c · weight'): c where a level is in range, 0 beyond; of the zero and the scale by what is left of them."""
    weight = torch.tensor([[-3.0, -0.4, 0.2, 0.9]]).repeat(1, 16).requires_grad_()
    layer = modules.hqq_training.HqqLevels(weight, 2, 64)
    with torch.no_grad():
        layer.log_scale.zero_()  # a scale of 1
        layer.zero.fill_(1.0)
    (layer(weight) * 2).sum().backward()
    assert weight.grad[0, :4].tolist() == [0.0, 2.0, 2.0, 2.0]
    # The first is clamped to level 0, whose value is -zero · scale; of the others only the rounding is left.
    assert float(layer.zero.grad) == pytest.approx(16 * -2)
    left = [0 - 1, -0.0 + 0.4, 0.0 - 0.2, 1.0 - 0.9]
    assert float(layer.log_scale.grad) == pytest.approx(16 * 2 * sum(left), rel=1e-5)
