"""Tensors as the compiled core takes them, and the guards that keep it inside of their memory.

The operators can be called by anybody, past the checks of ``functional``: the guards look at everything that decides
how far the core reads and writes, and at nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from ...reference.options import unknown_choice
from ...reference.sizes import group_count
from .loading import core


class Codes(dict[str, int]):
    """The numbers 0, 1, ... that the core knows the choices of an option by; ValueError for others."""

    def __init__(self, option: str, *choices: str) -> None:
        super().__init__(zip(choices, range(len(choices)), strict=True))
        self._option = option

    def __missing__(self, choice: str) -> int:
        raise unknown_choice("diffq_fast", self._option, choice, self)


# Codes of csrc/core: enum DType, NoiseKind, Param.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NOISE_KINDS = Codes("noise_kind", "uniform", "gaussian")
PARAMS = Codes("param", "bits", "noise")
BLOCK_BYTES = 1 << 20  # smaller results come from torch's allocator, which reuses such memory itself

# Models have hundreds of small weights, whose kernels take less time than a loop in Python over them: these go
# through map().
_dtype, _nbytes, _device = map(attrgetter, ("dtype", "nbytes", "device"))


# -- what the core is given ------------------------------------------------------------------------------------------


def supported(*lists: Sequence[Tensor]) -> bool:
    """Whether the core computes with the dtypes of all these tensors."""
    return all(DTYPES.keys() >= set(map(_dtype, tensors)) for tensors in lists)


def contiguous(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The tensors in row-major order; the caller keeps the list while the core reads from its addresses."""
    if all(map(Tensor.is_contiguous, tensors)) and (dtype is None or {dtype}.issuperset(map(_dtype, tensors))):
        return list(tensors)
    return [(tensor if dtype is None else tensor.to(dtype)).contiguous() for tensor in tensors]


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def floats(weights: Sequence[Tensor]) -> tuple[list[int], list[int], list[int]]:
    """Addresses, counts and codes of the dtypes."""
    codes = map(DTYPES.__getitem__, map(_dtype, weights))
    return addresses(weights), list(map(Tensor.numel, weights)), list(codes)


# -- what it fills ---------------------------------------------------------------------------------------------------


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A row-major tensor; large ones from the core's blocks, which the system need not clear each time."""
    size = math.prod(shape) * dtype.itemsize
    if size < BLOCK_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    if size >= 2**62:
        raise MemoryError(f"diffq_fast: a result of {list(shape)} {dtype} needs {size:,} bytes")
    block = torch.frombuffer(core.Block(size), dtype=torch.uint8)  # keeps the block alive
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    made = torch.empty(0, dtype=dtype, device="cpu")
    return made.set_(block.untyped_storage(), 0, tuple(shape), tuple(strides))  # no view of another tensor


def empty_like(weights: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Row-major tensors of the weights' shapes, and of their dtypes where none is given."""
    in_order = all(map(Tensor.is_contiguous, weights)) and (dtype is None or {dtype}.issuperset(map(_dtype, weights)))
    if in_order and max(map(_nbytes, weights), default=0) < BLOCK_BYTES:
        return list(map(torch.empty_like, weights))  # a third of the time of the other
    return [
        torch.empty_like(weight)
        if in_order and weight.nbytes < BLOCK_BYTES
        else empty(weight.shape, dtype or weight.dtype)
        for weight in weights
    ]


def empty_ranges(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    """Ranges, and the places of the extremes."""
    rows = sum(group_count(weight.numel(), group_size) for weight in weights) if per_group else len(weights)
    ranges = torch.empty((rows, 2), dtype=torch.float32, device="cpu")
    return ranges, torch.empty((0 if per_group else rows, 4), dtype=torch.int64, device="cpu")


# -- guards ----------------------------------------------------------------------------------------------------------


def guard_tensors(who: str, *lists: Sequence[Tensor]) -> None:
    """All of them hold values that the CPU can read."""
    for tensors in lists:
        for device in set(map(_device, tensors)):
            if device.type != "cpu":
                raise ValueError(f"{who}: expected all tensors on the CPU, got one on {device}")


def guard_groups(who: str, argument: str, values: Sequence[Tensor], counts: Sequence[int], group_size: int) -> None:
    """One value for each group of each weight, of so many elements."""
    if group_size < 0:
        raise ValueError(f"{who}: group_size must be 0 (one group) or positive, got {group_size}")
    if len(values) != len(counts):
        raise ValueError(f"{who}: expected {len(counts)} {argument}, one per weight, got {len(values)}")
    groups = [-(-count // group_size) if group_size else min(count, 1) for count in counts]
    found = list(map(Tensor.numel, values))
    if found != groups:
        index = next(index for index, pair in enumerate(zip(found, groups, strict=True)) if pair[0] != pair[1])
        raise ValueError(
            f"{who}: {argument}[{index}]: expected {groups[index]} values, one per group of the weight's "
            f"{counts[index]} elements, got {found[index]}"
        )


def guard_ranges(who: str, ranges: Tensor, weights: Sequence[Tensor], group_size: int, per_group: bool) -> None:
    """One row for each weight, or for each group."""
    rows = sum(group_count(weight.numel(), group_size) for weight in weights) if per_group else len(weights)
    if ranges.dtype != torch.float32 or tuple(ranges.shape) != (rows, 2):
        raise ValueError(f"{who}: ranges: expected float32 [{rows}, 2], got {ranges.dtype} {list(ranges.shape)}")


def guard_noise(
    who: str, weights: Sequence[Tensor], logits: Sequence[Tensor], key: Tensor, streams: Sequence[int], group_size: int
) -> None:
    """The key's 64 bits, one stream for each weight, and one logit for each group."""
    guard_tensors(who, weights, logits, [key])
    guard_groups(who, "logits", logits, list(map(Tensor.numel, weights)), group_size)
    if key.dtype != torch.int64 or key.numel() != 1 or len(streams) != len(weights):
        given = f"{key.dtype} {list(key.shape)} and {len(streams)} streams"
        raise ValueError(f"{who}: expected one int64 key and {len(weights)} streams, got {given}")
    for stream in (min(streams, default=0), max(streams, default=0)):
        if not 0 <= stream < 2**32:
            raise ValueError(f"{who}: streams must be between 0 and 2**32 - 1, got {stream}")


def guard_extremes(who: str, extremes: Tensor, weights: int) -> None:
    if extremes.dtype != torch.int64 or tuple(extremes.shape) != (weights, 4):
        given = f"{extremes.dtype} {list(extremes.shape)}"
        raise ValueError(f"{who}: extremes: expected int64 [{weights}, 4], got {given}")


def guard_quantised(
    who: str,
    values: Sequence[Tensor],
    widths: Sequence[Tensor],
    ranges: Tensor,
    group_size: int,
    per_group: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Weights or levels, their widths and ranges, in row-major order."""
    guard_tensors(who, values, widths, [ranges])
    guard_groups(who, "widths", widths, list(map(Tensor.numel, values)), group_size)
    guard_ranges(who, ranges, values, group_size, per_group)
    return contiguous(values), contiguous(widths, torch.uint8), ranges.contiguous()


def packing_of(who: str, widths: Tensor, count: int, group_size: int, words: int) -> tuple[int, int, int, int]:
    """What the core is told of a packed weight: address of the widths, levels, group size, words."""
    guard_tensors(who, [widths])
    if count < 0 or not 0 <= words < 2**60:
        raise ValueError(f"{who}: expected counts of levels and words, got {count} and {words}")
    guard_groups(who, "widths", [widths], [count], group_size)
    return widths.data_ptr(), count, group_size, words


def refuse_words(who: str, word_count: int) -> ValueError:
    """The error where the core has found other widths, or another number of words, than it was told."""
    return ValueError(
        f"{who}: widths must be between 1 and 16 and need exactly word_count words, got word_count={word_count}"
    )
