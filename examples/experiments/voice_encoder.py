"""Resemblyzer's speaker encoder (GE2E: Wan, Wang, Papir, Lopez Moreno 2018): the package's weights, written out here.

Three LSTM layers over 40 mel bands and a linear layer, under the names of the package's weights.
"""

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
        self.lstm = nn.LSTM(BANDS, WIDTH, LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mels: Tensor) -> Tensor:
        return F.normalize(self.linear(self.lstm(mels)[0][:, -1]).relu(), dim=1)


def pretrained() -> VoiceEncoder:
    """With the package's weights, in eval mode."""
    path = folder_of("resemblyzer") / "pretrained.pt"
    model = VoiceEncoder()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model_state"])
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
