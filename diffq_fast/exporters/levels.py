"""A packed weight as what most formats have: integer levels, and for each group a scale and an offset."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .. import functional
from ..packed.coding import CodedTensor
from ..packed.contents import PackedContents
from ..packed.layout import STEPS
from ..packed.tensor import PackedTensor


class Levels(NamedTuple):
    """value = levels * scales[group] + offsets[group], rounded to float32 after each operation.

    levels: int32 `[count]`, from 0 on, or around zero where `signed`.
    scales, offsets: float32 `[groups]`; offsets are all 0 where `signed`.
    group_size: elements of a group in row-major order, 1 or more; the last may be shorter.
    """

    levels: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray
    group_size: int
    signed: bool

    def values(self) -> np.ndarray:
        """float32 `[count]`."""
        scales, offsets = self.per_element(self.scales), self.per_element(self.offsets)
        return self.levels.astype(np.float32) * scales + offsets

    def per_element(self, of_groups: np.ndarray) -> np.ndarray:
        return np.repeat(of_groups, self.group_size)[: len(self.levels)]

    @property
    def bits(self) -> int:
        """The least that hold every level, two's complement where `signed`."""
        if not len(self.levels):
            return 1
        lowest, highest = int(self.levels.min()), int(self.levels.max())
        return max(highest, -lowest - 1, 0).bit_length() + 1 if self.signed else max(highest.bit_length(), 1)


def levels_of(contents: PackedContents, name: str) -> Levels:
    """The levels of the weight of this name in `packed`. PackedFileError where its streams are damaged."""
    weight = contents.packed[name]
    if isinstance(weight, CodedTensor):
        with contents.naming(name):
            levels = weight.levels().reshape(-1)
            steps = weight.steps() if weight.range_scope == STEPS else None
    else:
        levels, steps = functional.unpack(weight.words, weight.widths, weight.count, group_size=weight.group_size), None
    size = weight.group_size or max(weight.count, 1)
    if steps is not None:
        return Levels(levels.numpy(), steps.numpy(), np.zeros(len(steps), np.float32), size, True)
    if weight.range_scope == "scale":
        half = 1 << int(weight.widths[0]) - 1 if weight.count else 0
        scale = weight.ranges.reshape(-1).float().numpy()
        return Levels((levels - half).numpy(), scale, np.zeros_like(scale), size, True)
    scales, offsets = _scales_and_offsets(weight)
    return Levels(levels.numpy(), scales, offsets, size, False)


def _scales_and_offsets(weight: PackedTensor | CodedTensor) -> tuple[np.ndarray, np.ndarray]:
    """float32 `[groups]` each: the step between two levels, and the lower end of the range."""
    lows, highs = weight.ranges.reshape(-1, 2).float().unbind(1)
    if weight.level_count is not None:
        most = torch.full((len(weight.widths),), float(weight.level_count - 1), dtype=torch.float32, device="cpu")
    else:
        most = torch.pow(2.0, weight.widths.double()).sub(1).float()
    scales = (1 / most) * (highs - lows)
    return scales.numpy(), lows.expand(len(scales)).contiguous().numpy()


def packed_bytes(levels: np.ndarray, width: int) -> bytes:
    """Little-endian integers of 2, 4, 8 or 16 bits, the lower places of a byte first; padded with zeros to a byte."""
    if width >= 8:
        return levels.astype("<u2" if width == 16 else np.uint8).tobytes()
    a_byte = 8 // width
    padded = np.zeros(-(-len(levels) // a_byte) * a_byte, np.uint8)
    padded[: len(levels)] = levels.astype(np.int64) & ((1 << width) - 1)
    places = padded.reshape(-1, a_byte) << (np.arange(a_byte, dtype=np.uint8) * width)
    return np.bitwise_or.reduce(places, axis=1).astype(np.uint8).tobytes()
