"""Write a safetensors file: all of it or nothing, tensor by tensor.

The sizes are known before the data, so the header is written first. What depends on the data, such as checksums, is
filled in at the end; the header's length stays the same.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from .atomic_file import atomic_file
from .safetensors_reader import CHUNK_BYTES, ITEM_BYTES, MAX_DIMENSIONS, MAX_HEADER_BYTES, Progress, TensorEntry

_BYTES_BESIDE = 1 << 18  # of a part whose checksum is worth another thread

Seal = Callable[[bytes, list[int]], bytes]  # the header's bytes and every tensor's CRC-32 in file order -> the header


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written; `data()` is called once, when its turn comes, and returns its bytes (uint8, flat)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], np.ndarray]


def write_safetensors(
    path: str | os.PathLike[str],
    sources: Iterable[TensorSource],
    metadata: Mapping[str, str],
    seal: Seal | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the tensors, those with larger items first, so that all data are aligned, and then by name.

    Args:
        path: replaced all at once, see :func:`atomic_file`.
        sources: the tensors.
        metadata: of the header.
        seal: puts the checksums into the header, whose length must stay the same.
        progress: called after each part of a tensor.
    """
    ordered = sorted(sources, key=lambda source: (-ITEM_BYTES[source.dtype], source.name))
    entries = _place(ordered)
    raw = _header(entries, metadata)
    with atomic_file(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        checksums = _write_data(file, ordered, entries, progress)
        if seal is not None:
            sealed = seal(raw, checksums)
            assert len(sealed) == len(raw), "write_safetensors: the seal changed the header's length"
            file.seek(8)
            file.write(sealed)


def safetensors_bytes(sources: Iterable[TensorSource], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that :func:`write_safetensors` would write; no data are asked for."""
    entries = _place(sorted(sources, key=lambda source: (-ITEM_BYTES[source.dtype], source.name)))
    return 8 + len(_header(entries, metadata)) + (entries[-1].end if entries else 0)


def _place(sources: Iterable[TensorSource]) -> list[TensorEntry]:
    entries, position = [], 0
    for source in sources:
        end = position + math.prod(source.shape) * ITEM_BYTES[source.dtype]
        entries.append(TensorEntry(source.name, source.dtype, source.shape, position, end))
        position = end
    return entries


def _header(entries: Iterable[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The header's JSON, padded with spaces so that the data begin at a multiple of 8; only what readers take."""
    fields: dict[str, object] = {"__metadata__": metadata}
    for entry in entries:
        if len(entry.shape) > MAX_DIMENSIONS:
            raise ValueError(f"save: {entry.name}: at most {MAX_DIMENSIONS} dimensions, got {len(entry.shape)}")
        offsets = [entry.begin, entry.end]
        fields[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    raw = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    if len(raw) + 8 > MAX_HEADER_BYTES:
        problem = f"names, shapes and arguments take {len(raw):,} bytes, and readers take {MAX_HEADER_BYTES:,}"
        raise ValueError(f"save: {problem}; shorten them, or save parts of the model")
    return raw + b" " * (-len(raw) % 8)


def _write_data(
    file: BinaryIO, sources: Sequence[TensorSource], entries: Sequence[TensorEntry], progress: Progress | None
) -> list[int]:
    """Write the bytes of all tensors; returns the CRC-32 of each, which another thread adds up."""
    total, checksums = entries[-1].end if entries else 0, []
    with ThreadPoolExecutor(max_workers=1) as beside:
        for source, entry in zip(sources, entries, strict=True):
            data = source.data().data
            assert len(data) == entry.end - entry.begin, (
                f"write_safetensors: {source.name}: {len(data)} bytes for {entry}"
            )
            checksum = 0
            for start in range(0, len(data), CHUNK_BYTES):
                part = data[start : start + CHUNK_BYTES]
                begun = _begin_checksum(beside, part, checksum) if len(part) >= _BYTES_BESIDE else None
                file.write(part)
                checksum = zlib.crc32(part, checksum) if begun is None else begun.result()
                if progress is not None:
                    progress(source.name, entry.begin + start + len(part), total)
            checksums.append(checksum)
    return checksums


def _begin_checksum(beside: ThreadPoolExecutor, part: memoryview, before: int) -> Future[int] | None:
    """The CRC-32 of a part, begun on another thread; None while the interpreter ends, when none begins any more."""
    try:
        return beside.submit(zlib.crc32, part, before)
    except RuntimeError:
        return None
