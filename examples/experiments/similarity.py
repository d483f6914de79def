"""What a changed sentence encoder is worth: how well it keeps the similarities of all pairs of sentences."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import minilm
from .sentences import Batch, batches


class Judge:
    """The float model's vectors of some sentences, and what another model's are worth beside them.

    weights: floating elements of the whole checkpoint; bits are counted over them.
    """

    def __init__(self, texts: list[str], cache: Path) -> None:
        self._batches = batches(sorted(texts, key=len))
        model = minilm.pretrained()
        self.weights = sum(each.numel() for each in model.state_dict().values() if each.is_floating_point())
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save(encode(model, self._batches), cache)
        self._reference = torch.load(cache)

    def row(self, model: nn.Module) -> dict[str, Any]:
        """The quality of a model; ``scores``: Spearman's correlation for each sentence with all others."""
        vectors = encode(model, self._batches)
        top, recall = neighbours(vectors, self._reference)
        return {
            "spearman": spearman(vectors, self._reference),
            "top1": top,
            "recall10": recall,
            "scores": [round(each, 5) for each in spearman_of_each(vectors, self._reference)],
        }


@torch.no_grad()
def encode(model: nn.Module, data: Sequence[Batch]) -> Tensor:
    """Unit vectors [texts, width]."""
    model.eval()
    return torch.cat([model(*each) for each in data])


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of distinct values; ties, of which floats have next to none, in any order."""
    order = np.argsort(values)
    result = np.empty(len(values))
    result[order] = np.arange(len(values))
    return result


def spearman(vectors: Tensor, reference: Tensor) -> float:
    """Rank correlation of the similarities of all pairs with those of the reference."""
    upper = np.triu_indices(len(vectors), 1)
    a, b = (ranks((each @ each.T).numpy()[upper]) for each in (vectors, reference))
    return float(np.corrcoef(a, b)[0, 1])


def neighbours(vectors: Tensor, reference: Tensor) -> tuple[float, float]:
    """How often the nearest other sentence is the reference's, and the mean share of its ten nearest."""
    found = []
    for each in (vectors, reference):
        similar = each @ each.T
        similar.fill_diagonal_(-math.inf)
        found.append(similar.topk(10, dim=1).indices)
    ours, theirs = found
    top = (ours[:, 0] == theirs[:, 0]).float().mean()
    recall = (ours[:, :, None] == theirs[:, None, :]).any(2).float().mean()
    return float(top), float(recall)


def spearman_of_each(vectors: Tensor, reference: Tensor) -> list[float]:
    """Rank correlation, for each text, of its similarities to all others with those of the reference."""
    count = len(vectors)
    others = ~torch.eye(count, dtype=torch.bool)
    ours, theirs = ((each @ each.T)[others].view(count, count - 1) for each in (vectors, reference))
    centred = [each.argsort(1).argsort(1).double() - (count - 2) / 2 for each in (ours, theirs)]
    squares = centred[0].square().sum(1)  # the same for all: ranks of distinct values
    return [float(each) for each in (centred[0] * centred[1]).sum(1) / squares]
