"""Resemblyzer's speaker encoder (GE2E: Wan, Wang, Papir, Lopez Moreno 2018): the package's weights, written out here.

Three LSTM layers over 40 mel bands and a linear layer. Each gate matrix is a linear layer, so that
``diffq_fast.calibrate`` sees what it is multiplied with.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .chorales import folder_of
from .notes import RATE
from .similarity import neighbours, spearman, spearman_of_each

BANDS, WIDTH, LAYERS = 40, 256, 3
WINDOW, HOP = 400, 160  # samples of a spectrum, and between two
PART, PART_HOP = 160, 77  # spectra that make one embedding, and between two of them


class VoiceEncoder(nn.Module):
    """Mel spectra [batch, time, 40] to unit vectors [batch, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.similarity_weight, self.similarity_bias = (nn.Parameter(torch.ones(1)) for _ in range(2))
        self.lstm = nn.Module()
        for index in range(LAYERS):
            self.lstm.add_module(f"ih_l{index}", nn.Linear(WIDTH if index else BANDS, 4 * WIDTH))
            self.lstm.add_module(f"hh_l{index}", nn.Linear(WIDTH, 4 * WIDTH))
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mels: Tensor) -> Tensor:
        values = mels
        for index in range(LAYERS):
            values = self._layer(index, values)
        return F.normalize(self.linear(values[:, -1]).relu(), dim=1)

    def _layer(self, index: int, values: Tensor) -> Tensor:
        recurrent = self.lstm.get_submodule(f"hh_l{index}")
        hidden = cell = values.new_zeros(len(values), WIDTH)
        made = []
        for given in self.lstm.get_submodule(f"ih_l{index}")(values).unbind(1):
            enter, forget, new, out = (given + recurrent(hidden)).chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
            made.append(hidden)
        return torch.stack(made, 1)


class FusedVoiceEncoder(nn.Module):
    """The same by torch's own LSTM, whose names the package's weights have."""

    def __init__(self) -> None:
        super().__init__()
        self.similarity_weight, self.similarity_bias = (nn.Parameter(torch.ones(1)) for _ in range(2))
        self.lstm = nn.LSTM(BANDS, WIDTH, LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mels: Tensor) -> Tensor:
        return F.normalize(self.linear(self.lstm(mels)[0][:, -1]).relu(), dim=1)


def _stored() -> dict[str, Tensor]:
    path = folder_of("resemblyzer") / "pretrained.pt"
    return torch.load(path, map_location="cpu", weights_only=True)["model_state"]


def pretrained() -> VoiceEncoder:
    """With the package's weights, in eval mode."""
    model = VoiceEncoder()
    names = {name: re.sub(r"^lstm\.(weight|bias)_(.*)$", r"lstm.\2.\1", name) for name in _stored()}
    model.load_state_dict({names[name]: each for name, each in _stored().items()})
    return model.eval()


def fused_name(name: str) -> str:
    """That of a tensor of :class:`VoiceEncoder`, in :class:`FusedVoiceEncoder`."""
    return re.sub(r"^lstm\.([ih]h_l\d)\.(weight|bias)", r"lstm.\2_\1", name)


def pretrained_fused() -> FusedVoiceEncoder:
    """With the package's weights, in eval mode."""
    model = FusedVoiceEncoder()
    model.load_state_dict(_stored())
    return model.eval()


def mel_filters() -> np.ndarray:
    """[40, 201]: triangles of area 1, evenly apart on Slaney's mel scale from 0 Hz to half the rate."""
    step, corner, growth = 200 / 3, 1000.0, np.log(6.4) / 27
    top = corner / step + np.log(RATE / 2 / corner) / growth
    mels = np.linspace(0, top, BANDS + 2)
    edges = np.where(mels < corner / step, mels * step, corner * np.exp(growth * (mels - corner / step)))
    places = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rise = (places - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - places) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def mel_spectra(samples: np.ndarray) -> Tensor:
    """float32 [time, 40], powers, not their logarithms."""
    window = torch.hann_window(WINDOW)
    spectra = torch.stft(
        torch.from_numpy(samples), WINDOW, HOP, window=window, center=True, pad_mode="constant", return_complex=True
    )
    return (torch.from_numpy(mel_filters()).float() @ spectra.abs().square()).T


def parts_of(samples: np.ndarray) -> Tensor:
    """The overlapping parts [count, 160, 40] of a clip, which is filled up with silence to one at least."""
    mels = mel_spectra(samples)
    mels = F.pad(mels, (0, 0, 0, max(0, PART - len(mels))))
    return mels.unfold(0, PART, PART_HOP).transpose(1, 2).contiguous()


class VoiceJudge:
    """The float encoder's vectors of some clips, and what another one's are worth beside them."""

    def __init__(self, model: nn.Module, clips: Sequence[np.ndarray], speakers: Sequence[str]) -> None:
        parts = [parts_of(clip) for clip in clips]
        self._counts, self._parts = [len(each) for each in parts], torch.cat(parts)
        self._speakers = torch.tensor([list(speakers).index(each) for each in speakers])
        self._reference = self._vectors(model)

    @torch.no_grad()
    def _vectors(self, model: nn.Module) -> Tensor:
        """Of each clip, the mean of its parts, of length 1."""
        found = model(self._parts).split(self._counts)
        return F.normalize(torch.stack([each.mean(0) for each in found]), dim=1)

    def row(self, model: nn.Module) -> dict[str, object]:
        """cosine: the mean with the float encoder's vector; speaker: how often the nearest other clip is of the same
        speaker; scores: Spearman's correlation for each clip with all others."""
        vectors = self._vectors(model.eval())
        cosines = (vectors * self._reference).sum(1)
        top, _ = neighbours(vectors, self._reference)
        nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(1)
        return {
            "cosine": float(cosines.mean()),
            "least_cosine": float(cosines.min()),
            "spearman": spearman(vectors, self._reference),
            "top1": top,
            "speaker": float((self._speakers[nearest] == self._speakers).double().mean()),
            "scores": [round(each, 5) for each in spearman_of_each(vectors, self._reference)],
        }
