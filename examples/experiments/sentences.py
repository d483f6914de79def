"""Real sentences of two kinds, and their tokens as MiniLM takes them, all from Python packages."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .minilm import model_folder
from .text import king_james_bible

MOST_TOKENS = 64  # of a sentence
JUDGED, CALIBRATED = 800, 800  # sentences, apart


def sources() -> list[list[str]]:
    """Sentences of the King James Bible, and of Python's own topics, of 40 to 300 characters, each list shuffled."""
    from pydoc_data.topics import topics

    bible = [line.replace("[", "").replace("]", "") for line in re.split(r"(?<=[.?!])\s+", king_james_bible())]
    manual = [" ".join(part.split()) for text in topics.values() for part in re.split(r"\n\s*\n", text)]
    manual = [part for text in manual for part in re.split(r"(?<=[.?!]) +(?=[A-Z])", text)]
    kept = [sorted({each for each in texts if 40 <= len(each) <= 300}) for texts in (bible, manual)]
    generator = np.random.default_rng(0)
    count = min(map(len, kept))
    chosen = [generator.permutation(len(texts)) for texts in kept]
    first = [[texts[index] for index in order[:count]] for texts, order in zip(kept, chosen, strict=True)]
    return [first[0] + [kept[0][index] for index in chosen[0][count:]], first[1]]


def sentences() -> list[str]:
    """As many of either source, in turns: those that judge, and those that calibrate, are its first."""
    return [each for pair in zip(*sources(), strict=False) for each in pair]


def training_sentences(apart: int) -> list[list[str]]:
    """Both sources without the first ``apart`` of :func:`sentences`."""
    return [texts[apart // 2 :] for texts in sources()]


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
