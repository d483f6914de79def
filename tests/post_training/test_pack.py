"""pack_checkpoint: the size or quality that was asked for, the overrides, and every tensor of the checkpoint."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import diffq_fast
from diffq_fast.cli import main
from diffq_fast.packed.contents import read_packed
from diffq_fast.post_training import pack as pack_module
from diffq_fast.post_training.calibration import CalibrationFile
from diffq_fast.post_training.curve import size_curve
from diffq_fast.post_training.pack import Packing, fits_half
from diffq_fast.post_training.plan import Selection, Target
from diffq_fast.post_training.sources import open_source


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(200, 64), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 200, (64,), generator=generator) for _ in range(6)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(model().state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def packed(path: Path, target: Target, keep: dict | None = None, calibration: dict | None = None):
    """(packed weights, quality in decibels, state dict of what the file is to hold)."""
    with ExitStack() as stack:
        source = stack.enter_context(open_source(path))
        packing = Packing(source, Selection(keep=keep or {}), CalibrationFile(calibration, stack))
        weights, quality = packing.reach(target, float16=True)
        return weights, quality, packing.contents(weights, float16=True).state_dict()


def bits_of(weights: dict) -> float:
    return 8 * sum(each.nbytes for each in weights.values()) / sum(each.count for each in weights.values())


@pytest.mark.parametrize("bits", [1.5, 4.0])
def test_bits_per_weight_are_met(bits, checkpoint):
    weights, _, state = packed(checkpoint, Target(bits_per_weight=bits))
    assert set(weights) == {"0.weight", "1.weight", "3.weight"}
    assert 0.98 * bits < bits_of(weights) <= bits
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: tuple(tensor.shape) for name, tensor in model().state_dict().items()
    }


def test_the_default_is_four_bits_and_keeps_a_network_alive(checkpoint):
    weights, quality, state = packed(checkpoint, Target())
    assert 3.9 < bits_of(weights) <= 4
    other = model()
    other.load_state_dict(state)
    outputs = [torch.cat([net(each) for each in batches()]).detach() for net in (model(), other)]
    assert 10 * torch.log10(outputs[0].square().sum() / (outputs[1] - outputs[0]).square().sum()) > 15
    assert quality > 20


def test_a_quality_is_met_and_is_what_it_says(checkpoint):
    _, quality, state = packed(checkpoint, Target(quality=18))
    assert 18 <= quality < 18.3
    noise = signal = 0.0
    for name, weight in model().state_dict().items():
        if weight.ndim == 2:
            squares = weight.square().mean(1)
            noise += float(((state[name] - weight).square().sum(1) / squares).sum())
            signal += weight.numel()
    assert 10 * torch.log10(torch.tensor(signal / noise)) == pytest.approx(quality, abs=0.01)


def test_calibration_keeps_the_outputs_better_at_the_same_size(checkpoint):
    calibration = diffq_fast.calibrate(model(), batches())
    errors = []
    for given in (None, calibration):
        weights, _, state = packed(checkpoint, Target(bits_per_weight=3), calibration=given)
        assert bits_of(weights) <= 3
        other = model()
        other.load_state_dict(state)
        errors.append(sum(float((other(each) - model()(each)).square().sum()) for each in batches()))
    assert errors[1] < 0.6 * errors[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(32, 64, 2, batch_first=True), nn.Linear(64, 48)

    def forward(self, values):
        return self.out(self.lstm(values)[0])


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(8, 32, 8, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv1d(32, 64, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.ConvTranspose1d(64, 8, 8, stride=2),
    )


KINDS = {
    "convolutions": convolutions,
    "recurrent": Recurrent,
    "attention": lambda: nn.TransformerEncoderLayer(32, 4, 64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_is_worth_it_with_other_layers_too(kind, tmp_path):
    """Inputs of unlike sizes and of few directions, as real ones are: those of some channels hardly count."""
    torch.manual_seed(0)
    network = KINDS[kind]().eval()
    shape = (8, 8, 60) if kind == "convolutions" else (8, 24, 32)
    channels = shape[1] if kind == "convolutions" else shape[2]
    mixed = torch.randn(channels, channels) * torch.logspace(0, -2, channels)
    data = []
    for _ in range(12):
        drawn = torch.randn(*shape)
        data.append(torch.einsum("ij,bjt->bit" if kind == "convolutions" else "ij,btj->bti", mixed, drawn))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    calibration = diffq_fast.calibrate(network, data[:8])
    errors = []
    for given in (None, calibration):
        weights, _, state = packed(tmp_path / "model.safetensors", Target(bits_per_weight=3), calibration=given)
        assert bits_of(weights) <= 3
        other = KINDS[kind]().eval()
        other.load_state_dict(state)
        with torch.no_grad():
            errors.append(sum(float((other(each) - network(each)).square().sum()) for each in data[8:]))
    assert errors[1] < 0.8 * errors[0], errors


@pytest.mark.parametrize("gain", [400.0, 1500.0, 2500.0])  # bytes of an octave; 25,000 elements have about 1,600
@pytest.mark.parametrize("foretold", [0.7, 1.4])
def test_a_size_is_met_though_the_samples_foretell_another(gain, foretold, checkpoint, monkeypatch):
    """Feedback makes levels larger than nearest ones; and at few bits larger steps save less than half a bit for each
    octave of the scale."""
    asked = 6000
    tried = []

    def pack(packing, scale):
        tried.append(asked / foretold - gain * math.log2(scale / tried[0][1]) if tried else asked / foretold)
        tried[-1] = (tried[-1], scale)
        return {"0.weight": SimpleNamespace(nbytes=int(tried[-1][0]))}, 0.0

    monkeypatch.setattr(Packing, "pack", pack)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(checkpoint))
        packing = Packing(source, Selection(), CalibrationFile(None, stack))
        found, _ = packing._reach_bytes(asked, 0.0)
    assert 0.97 * asked < found["0.weight"].nbytes <= asked
    assert len(tried) <= 8


def test_factors_that_are_not_kept_are_made_anew(checkpoint, monkeypatch):
    calibration = diffq_fast.calibrate(model(), batches())
    made = []
    factored = pack_module.sensitivity_of
    monkeypatch.setattr(pack_module, "sensitivity_of", lambda *given: made.append(given[2]) or factored(*given))
    kept = packed(checkpoint, Target(bits_per_weight=3), calibration=calibration)
    assert made == ["0.weight", "1.weight", "3.weight"]
    monkeypatch.setattr(pack_module, "KEPT_BYTES", 4 * 64 * 64 + 4 * 200)  # the first weight's alone
    anew = packed(checkpoint, Target(bits_per_weight=3), calibration=calibration)
    assert made.count("0.weight") == 2
    assert made.count("1.weight") == made.count("3.weight") >= 3  # once above; a sample and a round here
    assert kept[1] == anew[1]
    assert all(torch.equal(each, anew[2][name]) for name, each in kept[2].items())


def test_overrides_keep_weights_or_give_them_their_own_bits(checkpoint):
    weights, _, state = packed(checkpoint, Target(bits_per_weight=2), keep={"0.*": 7, "3.weight": None})
    assert set(weights) == {"0.weight", "1.weight"}
    assert torch.equal(state["3.weight"], model().state_dict()["3.weight"])
    assert 8 * weights["0.weight"].nbytes / weights["0.weight"].count == pytest.approx(7, rel=0.03)
    assert 1.7 < 8 * weights["1.weight"].nbytes / weights["1.weight"].count <= 2.1  # 1 % of the whole is slack


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_their_dtype_and_float64_is_left(dtype, tmp_path):
    state = {"w": torch.randn(80, 80).to(dtype), "d": torch.randn(80, 80, dtype=torch.float64)}
    save_file(state, tmp_path / "half.safetensors")
    weights, _, found = packed(tmp_path / "half.safetensors", Target(bits_per_weight=5))
    assert set(weights) == {"w"}
    assert found["w"].dtype == dtype
    assert (found["w"].float() - state["w"].float()).square().mean() < 0.01
    assert torch.equal(found["d"], state["d"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"target_mb": 0.001}, "1,049 bytes are asked for, about .* are the least"),
        ({"keep": {"non*": 3}}, r"keep non\*: no tensor of .* has such a name"),
        (
            {"keep": {"0.*": 1e-4}},
            r"keep: 0\.weight: 0\.0001 bits .* asked for, about 0\.\d+ are the least",
        ),
        ({"keep": {"0.*": 16}}, r"keep 0\.\*: expected bits above 0 and at most 15, got 16"),
        ({"target_mb": 1, "quality": 20}, "expected one of .*, got target_mb, quality"),
        ({"bits_per_weight": -1}, "bits_per_weight must be a number above 0, got -1"),
        ({"calibration": {"0.weight.rows": torch.ones(3)}}, r"calibration of 0.weight: expected rows of shape \[200\]"),
        ({"min_size": float("nan")}, "min_size must be a number of MB, got nan"),
    ],
)
def test_what_cannot_be_is_named_and_nothing_is_written(given, words, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=words):
        diffq_fast.pack_checkpoint(checkpoint, tmp_path / "packed", **given)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value, tmp_path):
    save_file({"w": torch.full((80, 80), value)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="pack: w: expected finite elements"):
        diffq_fast.pack_checkpoint(tmp_path / "bad.safetensors", tmp_path / "packed")


def test_half_precision_is_taken_only_where_it_loses_next_to_nothing():
    assert fits_half(torch.linspace(-2, 2, 100))
    assert fits_half(torch.tensor([0.0, 1e-9, 0.5]))
    assert not fits_half(torch.tensor([1e-6, 1.03e-6]))
    assert not fits_half(torch.tensor([1.0, 70000.0]))
    assert not fits_half(torch.tensor([1.0, float("nan")]))
    assert not fits_half(torch.ones(3, dtype=torch.float64))


def test_the_curve_rises_by_six_decibels_a_bit(checkpoint):
    points = {each.bits_per_weight: each for each in size_curve(checkpoint, bits=(0.001, 3, 4, 5))}
    assert list(points) == [3, 4, 5]
    assert points[4].quality - points[3].quality == pytest.approx(6.02, abs=0.4)
    assert points[5].quality - points[4].quality == pytest.approx(6.02, abs=0.3)
    assert points[4].relative_error == pytest.approx(10 ** (-points[4].quality / 20))
    assert points[3].megabytes < points[4].megabytes < points[5].megabytes


def test_the_dry_run_of_the_command_line_writes_nothing_but_its_plot(checkpoint, tmp_path, capsys):
    before = set(tmp_path.iterdir())
    plot = tmp_path / "curve.png"
    assert main(["pack", str(checkpoint), "--dry-run", "--plot", str(plot), "--json", "--keep", "0.*=6"]) == 0
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert [point["quality"] for point in curve] == sorted(point["quality"] for point in curve)
    assert set(tmp_path.iterdir()) - before == {plot}


def test_a_packed_checkpoint_loads_and_fits_its_megabytes(checkpoint, tmp_path):
    result = diffq_fast.pack_checkpoint(checkpoint, tmp_path / "packed", target_mb=0.02)
    size = (tmp_path / "packed").stat().st_size
    assert result.file_bytes == size <= 0.02 * 2**20
    assert size > 0.97 * 0.02 * 2**20
    state, expected = diffq_fast.load(tmp_path / "packed"), model().state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert (state[name] - tensor).norm() < 0.2 * tensor.norm()


def test_the_command_line_packs_coded_by_default(checkpoint, tmp_path, capsys):
    assert main(["pack", str(checkpoint), str(tmp_path / "packed"), "--bits-per-weight", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bits_per_weight"] == pytest.approx(3, rel=0.02)
    assert report["quality"] > 12
    weights = read_packed(tmp_path / "packed").packed.values()
    assert {each.range_scope for each in weights} == {"steps"}


def test_calibration_helps_a_layer_of_few_inputs_too(tmp_path):
    """Its rows are too short for a step of their own, so that what is packed has another shape than the moments."""
    torch.manual_seed(0)
    layer, inputs = nn.Linear(40, 256), torch.randn(200, 10) @ torch.randn(10, 40)
    save_file(layer.state_dict(), tmp_path / "narrow.safetensors")
    errors = []
    for calibration in (None, diffq_fast.calibrate(layer, [inputs])):
        _, _, state = packed(tmp_path / "narrow.safetensors", Target(bits_per_weight=3), calibration=calibration)
        errors.append(float(((state["weight"] - layer.weight.detach()) @ inputs.T).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_elements_whose_squares_leave_float32_are_refused_by_name(tmp_path):
    state = model().state_dict()
    state["1.weight"][0, 0] = 1e30  # all weights would become zeros, at a quality that is told to be infinite
    save_file(state, tmp_path / "large.safetensors")
    with pytest.raises(
        ValueError, match=r"pack: 1.weight: expected elements whose squares float32 holds, found 1e\+30"
    ):
        diffq_fast.pack_checkpoint(tmp_path / "large.safetensors", tmp_path / "packed", quality=20)
    kept = diffq_fast.pack_checkpoint(tmp_path / "large.safetensors", tmp_path / "packed", keep={"1.weight": None})
    assert set(kept.weights) == {"0.weight", "3.weight"}
