"""Which groups of a weight share one table of frequencies: classes, where they pay."""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import grouped, per_element
from .sizes import group_count, stream_words

CLASSES = (2, 4, 8)  # tried, and one
LEAST_GROUPS = 4  # of a weight with classes
LARGEST = 127  # levels beyond count as this: they are escapes
TABLE_BITS, SYMBOL_BITS = 300.0, 10.0  # of a class: its table and states; and of each symbol in it
WORTH = 0.997  # of the size with one class


def choose_classes(levels: Tensor, group_size: int) -> Tensor:
    """uint8 `[groups]`, 1 … 16: the class of each group of the flat, signed levels.

    Groups whose levels are about as large share a class. What that saves is estimated by the entropy of each class;
    where it is not worth the table of classes, there is one.
    """
    groups = group_count(levels.numel(), group_size)
    best = torch.ones(groups, dtype=torch.uint8, device=levels.device)
    if groups < LEAST_GROUPS:
        return best
    near = levels.clamp(-LARGEST, LARGEST)
    fill = near.new_zeros((), dtype=torch.float32)
    size = size_of_group(grouped(near.abs().to(torch.float32), group_size, fill).mean(1))
    lowest, highest = size.min(), size.max()
    bits = WORTH * _bits(near, best, group_size)
    if float(highest - lowest) < 0.25:
        return best
    for classes in CLASSES:
        chosen = classes_of_sizes(size, classes) + 1
        needed = _bits(near, chosen, group_size)
        if needed < bits:
            best, bits = chosen, needed
    return best


def size_of_group(means: Tensor) -> Tensor:
    """By what groups are classed, of their mean absolute levels."""
    return torch.log2(means + 2**-6)


def classes_of_sizes(sizes: Tensor, classes: int) -> Tensor:
    """uint8 of the same shape, from 0: the classes of groups by their sizes ``[..., groups]``.

    Those of half as many classes are half of them.
    """
    lowest, highest = sizes.amin(-1, keepdim=True), sizes.amax(-1, keepdim=True)
    places = (sizes - lowest) * (classes / (highest - lowest))
    return places.nan_to_num(0.0).floor().clamp(0, classes - 1).to(torch.uint8)


def _bits(levels: Tensor, classes: Tensor, group_size: int) -> float:
    """About what the levels take with these classes, and the classes themselves."""
    span = 2 * LARGEST + 1
    class_of = per_element(classes, levels.numel(), group_size).to(torch.int32)
    counts = torch.bincount((levels + (class_of - 1) * span + LARGEST).to(torch.int32), minlength=span)
    table = torch.nn.functional.pad(counts, (0, -len(counts) % span)).view(-1, span).to(torch.float64)
    chances = table / table.sum(1, keepdim=True).clamp(min=1)
    entropy = float(-(table * chances.clamp(min=1e-300).log2()).sum())
    used = int((table > 0).sum())
    return entropy + TABLE_BITS * int(table.any(1).sum()) + SYMBOL_BITS * used + 8 * class_bytes(classes)


def class_bytes(classes: Tensor) -> int:
    """Bytes of the classes in a file: nothing where there is one, else of the smaller of a stream and of runs."""
    if not classes.numel():
        return 0
    lowest, highest = (int(each) for each in classes.aminmax())
    if lowest == highest:
        return 0
    values, lengths = torch.unique_consecutive(classes, return_counts=True)
    runs = (lengths - 1) * 16 + values.long() - 1
    varints = sum(int((runs >= 1 << shift).sum()) for shift in range(0, 63, 7)) + int((runs == 0).sum())
    return min(varints, 4 * stream_words(classes.numel(), (highest - lowest).bit_length()))
