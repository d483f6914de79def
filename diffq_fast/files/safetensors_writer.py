"""Write a safetensors file: atomic, tensor by tensor, with checksums on the way.

The sizes are known before the data, so the header is written first with zeros in place of the checksums, and
once more, equally long, when the data have gone through.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from .atomic_file import atomic_file
from .safetensors_reader import CHECKSUM_KEY, ITEM_BYTES, NO_CHECKSUM, TensorEntry, header_checksum

CHUNK_BYTES = 1 << 24
_BYTES_BESIDE = 1 << 20  # a checksum of fewer bytes is made before another thread has begun
Progress = Callable[[str, int, int], None]  # name of the tensor, bytes done, bytes in all


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written; `data()` is called once, in its turn, and returns its bytes (uint8, flat)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], np.ndarray]


def write_safetensors(
    path: str | os.PathLike[str],
    sources: Iterable[TensorSource],
    metadata: Callable[[Sequence[str]], dict[str, str]],
    progress: Progress | None = None,
) -> None:
    """Write the tensors in the file order: larger items first, so that all data are aligned, then by name.

    Args:
        metadata: given the CRC-32 of every tensor in file order, 8 hexadecimal digits each, returns the
            metadata, whose length must not depend on the digits. A `header_crc32` of zeros is filled in.
    """
    ordered = sorted(sources, key=lambda source: (-ITEM_BYTES[source.dtype], source.name))
    entries = _place(ordered)
    total = entries[-1].end if entries else 0
    draft = _header(entries, metadata(["0" * 8] * len(entries)))
    sums = []
    with atomic_file(path) as file, ThreadPoolExecutor(1) as summing:
        file.write(draft)
        for source, entry in zip(ordered, entries, strict=True):
            sums.append(f"{_write_data(file, source, entry, total, progress, summing):08x}")
        final = _header(entries, metadata(sums))
        assert len(final) == len(draft), "write_safetensors: the metadata's length depends on the checksums"
        file.seek(0)
        file.write(final)


def _place(sources: Iterable[TensorSource]) -> list[TensorEntry]:
    entries, position = [], 0
    for source in sources:
        end = position + math.prod(source.shape) * ITEM_BYTES[source.dtype]
        entries.append(TensorEntry(source.name, source.dtype, source.shape, position, end))
        position = end
    return entries


def _header(entries: Iterable[TensorEntry], metadata: dict[str, str]) -> bytes:
    """Length, JSON and its own checksum; padded with spaces so that the data begin at a multiple of 8."""
    fields: dict[str, object] = {"__metadata__": metadata}
    for entry in entries:
        offsets = [entry.begin, entry.end]
        fields[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    raw = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    if CHECKSUM_KEY + NO_CHECKSUM in raw:
        raw = raw.replace(CHECKSUM_KEY + NO_CHECKSUM, CHECKSUM_KEY + header_checksum(raw).encode(), 1)
    return len(raw).to_bytes(8, "little") + raw


def _checksum(data: np.ndarray) -> int:
    return zlib.crc32(data.data)


def _write_data(
    file: BinaryIO,
    source: TensorSource,
    entry: TensorEntry,
    total: int,
    progress: Progress | None,
    summing: Executor,
) -> int:
    """Write one tensor's bytes; returns their CRC-32, which another thread adds up where they are many."""
    data = source.data()
    assert data.nbytes == entry.byte_count, f"write_safetensors: {source.name}: {data.nbytes} bytes for {entry}"
    view = data.data.cast("B")
    checksum = summing.submit(_checksum, data) if len(view) > _BYTES_BESIDE else None
    for start in range(0, len(view), CHUNK_BYTES):
        part = view[start : start + CHUNK_BYTES]
        file.write(part)
        if progress is not None:
            progress(source.name, entry.begin + start + len(part), total)
    return zlib.crc32(view) if checksum is None else checksum.result()
