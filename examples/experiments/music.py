"""Music: four-part chorales by Bach, separated into their four voices by a small Demucs-like network."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffq_fast.files.atomic_file import atomic_file

from . import chorales
from .demucs_net import Separator
from .task import Recipe, Task

CACHE = Path("build/experiments")
SECONDS = 16.384  # of each chorale; a multiple of every stride
SEGMENT = 8_192  # samples of a training example
CHORALES = {"train": 140, "validation": 20, "held out": 60}
SPLIT_SEED = 1750
FULL_SCALE = 32_767  # stems are kept as int16


class Music(Task):
    """Four levels, 16 channels at the first: 447,396 parameters."""

    name = "music"
    metric = "SDR, dB"
    higher_is_better = True
    aim = 0.1
    difference_unit = "dB"
    recipe = Recipe(
        start_steps=1500,
        steps=300,
        batch=4,
        start_rate=2e-3,
        rate=1e-3,
        weight_decay=1e-2,
        min_size=0.0005,
        bits_rate=5e-2,
        penalties=(0.003, 0.01, 0.03, 0.1),
        coded_times=(16, 24, 32),
        coded=("rate", "packed", "taught packed"),
    )
    sizes = CHORALES
    seconds = SECONDS

    def load(self, validation: bool = False) -> None:
        stems = self.stems()
        train, choices = self.sizes["train"], self.sizes["validation"]
        self.train = stems[:train]
        self.held_out = stems[train : train + choices] if validation else stems[train + choices :]

    def stems(self) -> Tensor:
        """int16 [chorales, voices, samples], in an order drawn with a fixed seed; rendered once, then from disk."""
        wanted = sum(self.sizes.values())
        path = CACHE / f"chorales_{wanted}_{self.seconds:g}s_{chorales.RATE}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            rendered = render_chorales(wanted, self.seconds)
            with atomic_file(path) as file:
                np.save(file, rendered)
        return torch.from_numpy(np.load(path))

    def build(self) -> nn.Module:
        return Separator(stems=len(chorales.VOICES), channels=16, depth=4)

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        while True:
            pieces = torch.randint(len(self.train), (self.recipe.batch,), generator=generator).tolist()
            starts = torch.randint(self.train.shape[-1] - SEGMENT + 1, (self.recipe.batch,), generator=generator)
            cuts = [self.train[p, :, s : s + SEGMENT] for p, s in zip(pieces, starts.tolist(), strict=True)]
            yield (torch.stack(cuts).float() / FULL_SCALE,)

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        (stems,) = batch
        return F.l1_loss(network(stems.sum(dim=1)), stems)

    def distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        return F.l1_loss(found, wanted)

    def scores(self, network: nn.Module) -> np.ndarray:
        """Signal-to-distortion ratio of each held-out chorale in dB, mean of its voices."""
        found = []
        for stems in self.held_out.split(4):
            true = stems.float() / FULL_SCALE
            distortion = (network(true.sum(dim=1)) - true).square().sum(dim=2)
            found.append(10 * torch.log10(true.square().sum(dim=2) / distortion).mean(dim=1))
        return torch.cat(found).double().numpy()

    def quality(self, scores: np.ndarray) -> float:
        return float(scores.mean())

    def differences(self, scores: np.ndarray, plain: np.ndarray) -> np.ndarray:
        return scores - plain


def render_chorales(wanted: int, seconds: float) -> np.ndarray:
    """int16 [wanted, voices, samples]: the first ones with four voices and of enough length, in a drawn order."""
    paths, rendered = chorales.scores(), []
    for number in np.random.default_rng(SPLIT_SEED).permutation(len(paths)):
        stems = chorales.render_stems(paths[number], seconds)
        if stems is not None:
            rendered.append((stems * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE).astype(np.int16))
            if len(rendered) % 20 == 0:
                print(f"rendered {len(rendered)} of {wanted} chorales", flush=True)
        if len(rendered) == wanted:
            return np.stack(rendered)
    raise ValueError(f"only {len(rendered)} chorales have four voices and {seconds} s, {wanted} were wanted")
