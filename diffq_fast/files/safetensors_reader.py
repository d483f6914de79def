"""Read and check the header of a safetensors file with the standard library alone.

A header is the first thing that a damaged or hostile file shows, so nothing in it is believed: every size is
checked against the length of the file before anything else is read. docs/packed_format.md is the definition.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

FORMAT = "diffq_fast"
VERSION = "1"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_DIMENSIONS = 32
CHECKSUM_KEY = b'"header_crc32":"'  # raw quotes: cannot occur inside a JSON string, so it marks one place only
NO_CHECKSUM = b"00000000"

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class PackedFileError(ValueError):
    """A file that cannot be used as it is: damaged, truncated, hostile, or of another format or version."""


def file_error(path: str | os.PathLike[str], where: str, problem: str) -> PackedFileError:
    """The error for one place (a tensor's name, or "header") of one file."""
    return PackedFileError(f"reading {os.fspath(path)}: {printable(where)}: {problem}")


def printable(name: str) -> str:
    """A name from a file as it may go to a terminal: no control characters, no endless text."""
    return (name if name.isprintable() else ascii(name))[:200]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: bytes [begin, end) counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def byte_count(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A checked header: `tensors` are in file order and cover the data without gap or overlap."""

    path: str
    raw: bytes
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    file_bytes: int

    @property
    def data_start(self) -> int:
        return 8 + len(self.raw)


def read_header(file: BinaryIO, path: str | os.PathLike[str], packed: bool = False) -> Header:
    """Read the header of any safetensors file; with `packed`, only of a packed one of a known version.

    Raises PackedFileError naming the file and the tensor if the header is not JSON of the safetensors form,
    or if its sizes do not fit each other and the length of the file.
    """
    path = os.fspath(path)
    file_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        raise file_error(path, "header", f"expected at least 8 bytes, found {file_bytes:,}; not a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - 8):
        problem = f"its length says {length:,} bytes, but the file has {file_bytes:,} and the limit is "
        raise file_error(path, "header", problem + f"{MAX_HEADER_BYTES:,}; damaged, truncated or no safetensors file")
    raw = file.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        raise file_error(path, "header", "does not begin with '{'; damaged, or not a safetensors file")
    fields = read_json(raw, path, "header")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise file_error(path, "__metadata__", "expected an object whose values are all strings")
    if packed:
        _check_packed(raw, metadata, path)
    entries = [_read_entry(name, entry, path) for name, entry in fields.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_cover(entries, file_bytes - 8 - length, path)
    return Header(path, raw, {entry.name: entry for entry in entries}, metadata, file_bytes)


def read_json(text: str | bytes, path: str, where: str, kind: type = dict, floats: bool = False) -> Any:
    """A JSON value of type `kind`; no duplicate keys, NaN, lone surrogates, endless nesting or fractions."""

    def refuse(number: str) -> float:
        raise ValueError(f"the number {number[:20]} is not allowed here")

    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        number = float if floats else refuse
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=refuse, parse_float=number)
    except RecursionError:
        raise file_error(path, where, "the JSON is nested too deeply; damaged or hostile") from None
    except ValueError as error:
        raise file_error(path, where, f"not the JSON that was expected ({error}); damaged") from None
    if not isinstance(value, kind):
        raise file_error(path, where, f"expected a JSON {kind.__name__}, found {type(value).__name__}; damaged")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:200]!r} occurs twice")
        for text in (key, value):
            if isinstance(text, str):
                text.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError
        result[key] = value
    return result


def whole(value: Any) -> bool:
    """Is this JSON value an integer from 0 to 2**63 - 1? (True is no integer.)"""
    return type(value) is int and 0 <= value < 2**63


def valid_shape(shape: Any) -> bool:
    """A list of sizes whose strides fit 64 bits, even where one size is 0."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(whole(size) for size in shape):
        return False
    return math.prod(max(size, 1) for size in shape) < 2**60


def _read_entry(name: str, entry: Any, path: str) -> TensorEntry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise file_error(path, name, "expected dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise file_error(path, name, f"unknown dtype {str(dtype)[:20]!r}; expected one of {', '.join(ITEM_BYTES)}")
    if not valid_shape(shape):
        raise file_error(path, name, f"the shape {str(shape)[:80]} is no list of sizes that a tensor can have")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(whole(offset) for offset in offsets):
        raise file_error(path, name, f"data_offsets {str(offsets)[:80]} are not two byte positions")
    begin, end = offsets
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        found = f"expected {expected:,} bytes for {dtype} {shape}, its offsets span {end - begin:,}"
        raise file_error(path, name, found + "; damaged")
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _check_cover(entries: list[TensorEntry], data_bytes: int, path: str) -> None:
    position = 0
    for entry in entries:
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise file_error(path, entry.name, f"{kind}: begins at byte {entry.begin:,}, expected {position:,}")
        position = entry.end
    if position != data_bytes:
        where = entries[-1].name if entries and position > data_bytes else "header"
        problem = f"the tensors need {position:,} bytes of data, the file has {data_bytes:,}; truncated or damaged"
        raise file_error(path, where, problem)


def header_checksum(raw: bytes) -> str:
    """CRC-32 of the 8 length bytes and the header, with the 8 digits of header_crc32 read as zeros."""
    start = raw.index(CHECKSUM_KEY) + len(CHECKSUM_KEY)
    zeroed = raw[:start] + NO_CHECKSUM + raw[start + 8 :]
    return f"{zlib.crc32(zeroed, zlib.crc32(len(raw).to_bytes(8, 'little'))):08x}"


def _check_packed(raw: bytes, metadata: dict[str, str], path: str) -> None:
    """Format, version, the header's own checksum, in this order: another version may sum differently."""
    if metadata.get("format") != FORMAT:
        found = f"its format is {metadata.get('format', 'not stated')!r:.40}, expected {FORMAT!r}"
        raise file_error(path, "header", f"not a diffq_fast packed file: {found}; `diffq-fast pack` makes one")
    if metadata.get("version") != VERSION:
        found = f"version {metadata.get('version', 'not stated')!r:.40}, this reader knows version {VERSION!r}"
        raise file_error(path, "header", f"{found}; a newer diffq_fast may read it")
    for key in ("quantizer", "layout", "crc32", "header_crc32"):
        if key not in metadata:
            raise file_error(path, "header", f"the metadata lack {key!r}; damaged")
    if raw.count(CHECKSUM_KEY) != 1:
        raise file_error(path, "header", "header_crc32 is not written in the one form that can be checked; damaged")
    expected = header_checksum(raw)
    if metadata["header_crc32"] != expected:
        problem = f"checksum {metadata['header_crc32']!r:.20} stored, {expected!r} found; the header is damaged"
        raise file_error(path, "header", problem)


def read_checksums(header: Header) -> dict[str, int]:
    """The stored CRC-32 of every tensor."""
    sums = read_json(header.metadata["crc32"], header.path, "crc32", list)
    if not all(isinstance(text, str) and re.fullmatch("[0-9a-f]{8}", text) for text in sums):
        raise file_error(header.path, "crc32", "expected a list of strings of 8 lower-case hexadecimal digits")
    if len(sums) != len(header.tensors):
        raise file_error(header.path, "crc32", f"expected {len(header.tensors)} checksums, found {len(sums)}")
    return {name: int(text, 16) for name, text in zip(header.tensors, sums, strict=True)}


def read_chunks(file: BinaryIO, header: Header, entry: TensorEntry, view: memoryview) -> Iterator[memoryview]:
    """Fill `view` (entry.byte_count long) with the tensor's bytes, yielding each part once it is there."""
    file.seek(header.data_start + entry.begin)
    for start in range(0, entry.byte_count, 1 << 24):
        part = view[start : start + (1 << 24)]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise file_error(header.path, entry.name, "the file ended while it was read; it changed or is truncated")
        yield part


def read_bytes(file: BinaryIO, header: Header, entry: TensorEntry, checksum: int | None = None) -> bytearray:
    """A tensor's bytes; raises PackedFileError if they do not have the CRC-32 `checksum`."""
    data = bytearray(entry.byte_count)
    found = 0
    for part in read_chunks(file, header, entry, memoryview(data)):
        found = zlib.crc32(part, found)
    if checksum is not None and found != checksum:
        problem = f"checksum {checksum:08x} stored, {found:08x} found in {entry.byte_count:,} bytes"
        raise file_error(header.path, entry.name, f"{problem}; the file is damaged")
    return data


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The file opened for reading bytes, without a buffer: tensors are read straight into their memory."""
    return Path(path).open("rb", buffering=0)
