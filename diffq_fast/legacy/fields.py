"""The parts of diffq's entries, read with suspicion: packed tensors, levels, widths, ranges.

Every message begins "legacy state: <parameter>:" and says what was expected and what was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.sizes import MAX_WIDTH
from .bitpack import ROWS
from .bitpack import pack as pack_blocks
from .bitpack import unpack as unpack_blocks
from .torch_pack import STORAGE_BITS
from .torch_pack import pack as pack_rectangle
from .torch_pack import unpack as unpack_rectangle

LARGEST_FLOAT32 = torch.finfo(torch.float32).max
MAX_STORED_WIDTH = 15  # bits of a level that diffq can read back


def legacy_error(name: str, problem: str) -> ValueError:
    """The error for one parameter of one state."""
    return ValueError(f"legacy state: {name}: {problem}")


def describe(value: object) -> str:
    """Its type, or for a tensor its dtype and shape: a short text, whatever the file holds."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def pack_field(values: Tensor, width: int, torch_pack: bool) -> Tensor:
    """Planes, made by one packer or the other; ``width`` 0: as many as needed."""
    return pack_rectangle(values, width) if torch_pack else pack_blocks(values, width)


def unpack_field(name: str, planes: Any, count: int) -> Tensor:
    """int16 ``[count]`` from planes of either packer, which must have just the blocks that ``count`` values need."""
    if isinstance(planes, Tensor) and planes.dim() == 3 and planes.dtype == torch.int64:
        unpack, size, blocks = unpack_blocks, ROWS * planes.shape[2], planes.shape[0]
    elif isinstance(planes, Tensor) and planes.dim() == 2 and planes.dtype in STORAGE_BITS:
        unpack, size, blocks = unpack_rectangle, STORAGE_BITS[planes.dtype], planes.shape[1]
    else:
        raise legacy_error(name, f"expected a packed tensor, found {describe(planes)}")
    if planes.shape[-2] > MAX_WIDTH or size == 0 or blocks != -(-count // size):
        raise legacy_error(name, f"expected {count} packed values, found planes {describe(planes)}")
    values = unpack(planes.detach().cpu())
    if bool(values[count:].any()):
        raise legacy_error(name, f"expected {count} packed values, found more; is it of a weight of another shape?")
    return values[:count]


def is_packed(name: str, stored: Any, shape: Sequence[int], packed: bool | None) -> bool:
    """``packed``, or for None what the form tells: unpacked levels are never int64, and have the weight's shape.

    Only the planes of torch_pack may have the shape of a very small weight; they count as unpacked then.
    """
    if not isinstance(stored, Tensor):
        raise legacy_error(name, f"expected a tensor of levels, found {describe(stored)}")
    if packed is None:
        return stored.dtype == torch.int64 or tuple(stored.shape) != tuple(shape)
    return packed


def read_like_weight(name: str, stored: Any, shape: Sequence[int], packed: bool | None) -> Tensor:
    """int32 levels of the weight's shape."""
    if is_packed(name, stored, shape, packed):
        return unpack_field(name, stored, math.prod(shape)).to(torch.int32).reshape(tuple(shape))
    levels = read_integers(name, stored, "levels")
    if tuple(levels.shape) != tuple(shape):
        raise legacy_error(name, f"expected levels of the weight's shape {list(shape)}, found {describe(stored)}")
    return levels


def read_integers(name: str, value: Any, what: str) -> Tensor:
    """A new int32 tensor of the integer tensor ``value``."""
    if not isinstance(value, Tensor) or value.dtype not in STORAGE_BITS:
        raise legacy_error(name, f"expected an integer tensor of {what}, found {describe(value)}")
    if value.dtype == torch.int64:
        value = value.clamp(-(2**31), 2**31 - 1)  # so that no level wraps back into its range
    return value.detach().to("cpu", torch.int32, copy=True)


def read_parts(name: str, entry: Any, number: int) -> Sequence[Any]:
    """The parts of an entry: a tuple of ``number``."""
    if not isinstance(entry, list | tuple) or len(entry) != number:
        seen = f"{len(entry)} parts" if isinstance(entry, list | tuple) else describe(entry)
        raise legacy_error(name, f"expected an entry of {number} parts, found {seen}")
    return entry


def read_number(name: str, value: Any, what: str) -> float:
    """A float from a number or a tensor of one element; float32 has to hold it."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if not isinstance(value, int | float) or not abs(value) <= LARGEST_FLOAT32:
        raise legacy_error(name, f"expected a finite number as {what}, found {describe(value)}")
    return float(value)


def read_range(name: str, stored: Any) -> tuple[float, float]:
    """(lo, hi), two finite numbers, lo <= hi, no further apart than float32 can hold."""
    lo, hi = (read_number(name, each, "the weight's range") for each in read_parts(name, stored, 2))
    if not 0 <= hi - lo <= LARGEST_FLOAT32:
        expected = "expected a range (lo, hi) with lo <= hi, no further apart than float32 can hold"
        raise legacy_error(name, f"{expected}, found ({lo}, {hi})")
    return lo, hi


def whole_groups(name: str, count: int, group_size: int) -> int:
    """The number of groups; ``group_size`` 0 is one. diffq's states have no shorter last group."""
    if count == 0 or group_size < 0 or (group_size and count % group_size):
        raise legacy_error(
            name, f"a weight of {count} elements has no whole number of groups with group_size={group_size}"
        )
    return count // group_size if group_size else 1


def check_bits(name: str, bits: float, least: int) -> int:
    """``ceil(bits)``, the planes that such levels need."""
    if not least <= bits <= MAX_STORED_WIDTH:
        raise legacy_error(name, f"bits must be between {least} and {MAX_STORED_WIDTH}, got {bits}")
    return math.ceil(bits)


def check_widths(name: str, widths: Tensor) -> None:
    lowest, highest = int(widths.min()), int(widths.max())
    if lowest < 1 or highest > MAX_STORED_WIDTH:
        wrong = lowest if lowest < 1 else highest
        raise legacy_error(name, f"expected widths between 1 and {MAX_STORED_WIDTH} bits, found {wrong}")


def check_levels(name: str, levels: Tensor, widths: Tensor | int) -> None:
    """``0 <= level < 2**width``; ``widths`` broadcasts to ``levels``."""
    wide = levels.to(torch.int32)
    limit = wide.new_tensor(1) << (widths.to(torch.int32) if isinstance(widths, Tensor) else widths)
    outside = (wide < 0) | (wide >= limit)
    if bool(outside.any()):
        raise legacy_error(name, f"found level {int(wide[outside][0])}, which does not fit its width")
