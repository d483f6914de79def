"""diffq's stored states: written from a quantised model, and read back into it."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..legacy.state import LegacyState, parse_state
from ..reference.even_levels import dequantize_evenly
from .registry import Levels, Scheme, scheme_of
from .selection import QuantizedParameter, Selection, Slot

COMPRESSION_CHUNK = 2**20


class StoredWeight:
    """One weight of a stored state, decoded. Nothing is changed before :meth:`put`."""

    def __init__(self, scheme: Scheme, entry: QuantizedParameter, stored: Any, arguments: Mapping[str, Any]) -> None:
        if scheme.decode is None:
            raise ValueError(f"restore_quantized_state: diffq's states do not hold the weights of a {scheme.name}")
        self.entry = entry
        self.levels = scheme.decode(stored, entry.param.shape, arguments, entry.full_name)
        self.value = dequantized(self.levels, entry.param.dtype)

    def put(self, set_learned: Callable[[QuantizedParameter, Levels], None]) -> None:
        """Write the weight, and what was learned for it."""
        self.entry.param.copy_(self.value)
        set_learned(self.entry, self.levels)


def dequantized(levels: Levels, dtype: torch.dtype) -> Tensor:
    """The float weight of ``levels``, in their shape: in float32, then cast to ``dtype``."""
    if levels.range_scope == "scale":
        half = 1 << (int(levels.widths[0]) - 1)
        return ((levels.levels - half) * levels.ranges.reshape(())).to(dtype)
    if levels.level_count is not None:
        count = levels.ranges.new_tensor(float(levels.level_count))
        lo, hi = levels.ranges.reshape(2)
        return dequantize_evenly(levels.levels, count, lo, hi, dtype)
    options: dict[str, Any] = {"group_size": levels.group_size, "range_scope": levels.range_scope}
    return functional.dequantize([levels.levels], [levels.widths], levels.ranges, **options, dtype=dtype)[0]


def parse_for(quantizer: type, state: Any) -> LegacyState:
    """A state that was written by a quantizer of this class, or that does not say by which.

    Raises:
        ValueError: it is of another quantizer.
    """
    parsed = parse_state(state)
    if parsed.klass is not None:
        stated = scheme_of(parsed.klass).name
        names = [base.__name__ for base in quantizer.__mro__]
        if stated not in names:
            raise ValueError(f"restore_quantized_state: the state is of a {stated}, this is a {names[0]}")
    return parsed


def match_rest(selection: Selection, parsed: LegacyState, float16: bool, bare: bool) -> list[tuple[Slot, Tensor]]:
    """The parameters that are not quantised, with their stored values; checks the number of the others too.

    Args:
        float16: the quantizer's.
        bare: the state may be a list of quantised weights alone.

    Raises:
        ValueError: the numbers of parameters, or shapes, are not those of the model.
    """
    stored = parsed.float16 if float16 else parsed.others
    _check_count("quantised parameters", selection.originals, parsed.quantized)
    if bare and not stored:
        return []
    _check_count("other parameters", selection.rest, stored)
    for slot, value in zip(selection.rest, stored, strict=True):
        if slot.param.shape != value.shape:
            raise ValueError(
                f"restore_quantized_state: {slot.full_name} has shape {list(slot.param.shape)}, "
                f"the state has {list(value.shape)} at its place"
            )
    return list(zip(selection.rest, stored, strict=True))


def refuse_other_bits(who: str, bits: float, stored: float) -> None:
    """A state made at other bits would be quantised once more by the next eval."""
    if bits != stored:
        raise ValueError(
            f"restore_quantized_state: the state was made with bits={stored}, this {who} has "
            f"bits={bits}; make it with bits={stored}"
        )


def compressed_bytes(state: Any, level: int, workers: int) -> int:
    """Bytes of a state that torch saves and zlib compresses at ``level``, in chunks of 1 MB, on ``workers`` threads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    chunks = [data[start : start + COMPRESSION_CHUNK] for start in range(0, len(data), COMPRESSION_CHUNK)]
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        return sum(pool.map(lambda chunk: len(zlib.compress(chunk, level)), chunks))


def _check_count(what: str, slots: Sequence[Slot], stored: Sequence[Any]) -> None:
    if len(slots) != len(stored):
        raise ValueError(
            f"restore_quantized_state: the model has {len(slots)} {what}, the state {len(stored)}; "
            "was it made for another model, or with other arguments of the quantizer?"
        )
