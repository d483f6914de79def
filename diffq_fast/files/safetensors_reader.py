"""Read and check the header of a safetensors file with the standard library alone.

Nothing in a header is believed, since the file may be damaged or hostile: every size is checked against the length of
the file before anything else is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**60  # of a tensor, less one: its strides and bytes fit 64 bits
MAX_NESTING = 64  # of lists and objects in JSON
SPARE_PARSED, PARSED_RATIO = 32 << 20, 19  # bytes of a parsed JSON text, and for each of its characters
CHUNK_BYTES = 1 << 24  # read, or written, at once
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DEEPER = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SURROGATES = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u[dD][89a-fA-F]")  # a pair, or half of one

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


Progress = Callable[[str, int, int], None]  # name of the tensor, bytes done, bytes in all


class FileError(ValueError):
    """A file that cannot be used as it is: damaged, truncated, hostile, or of another format or version."""


def file_error(path: str | os.PathLike[str], where: str, problem: str) -> FileError:
    """The error for one place (a tensor's name, or "header") of one file."""
    return FileError(f"reading {os.fspath(path)}: {printable(where)}: {escaped(problem)}")


def printable(name: str) -> str:
    """A name from a file, made fit for a terminal: without control characters, and of limited length."""
    return (name if name.isprintable() else ascii(name))[:200]


def escaped(text: str) -> str:
    """A text that may hold names from a file, as one line without control characters, which rule terminals."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def json_problem(text: str) -> str | None:
    """Why a JSON text is not parsed, or None: its lists and objects lie too deep in one another, or are too many.

    Python takes about 80 bytes for a list or an object and 200 for a member of one, so that "{}," grows 27 times. A
    tensor's entry grows 12 times.
    """
    without_quotes_inside = text.replace("\\\\", "").replace('\\"', "")
    outside = "".join(without_quotes_inside.split('"')[::2])
    brackets = outside.encode("utf-8", "surrogatepass").translate(None, _NO_BRACKETS)
    if max(accumulate(map(_DEEPER.__getitem__, brackets)), default=0) > MAX_NESTING:
        return f"nested too deeply (more than {MAX_NESTING}), or not closed; damaged or hostile"
    parsed = 80 * (brackets.count(b"[") + brackets.count(b"{")) + 200 * outside.count(":")
    if parsed + sys.getsizeof(text) > SPARE_PARSED + PARSED_RATIO * len(text):
        return f"of far more values than a header of {len(text):,} characters has; hostile"
    return None


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


def begins_like_safetensors(head: bytes) -> bool:
    """Whether a file's first 9 bytes are those of a safetensors file: a possible length, then the header's "{".

    The first byte alone tells nothing: a length may begin like any other format.
    """
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


HeaderCheck = Callable[[bytes, dict[str, str], str], None]  # given the header's bytes, the metadata, the path


def read_header(file: BinaryIO, path: str | os.PathLike[str], check: HeaderCheck | None = None) -> Header:
    """Read the header of a safetensors file.

    Args:
        file: open for reading bytes, and able to seek.
        path: what errors call the file.
        check: called with the metadata before the tensors are checked; raises an error to refuse the file.

    Raises:
        FileError: naming the file and the tensor, if the header is not JSON of the safetensors form, or if its
            sizes do not fit each other and the length of the file.
    """
    path = os.fspath(path)
    file_bytes = file.seek(0, os.SEEK_END)
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
    if check is not None:
        check(raw, metadata, path)
    entries = [_read_entry(name, entry, path) for name, entry in fields.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_cover(entries, file_bytes - 8 - length, path)
    return Header(path, raw, {entry.name: entry for entry in entries}, metadata, file_bytes)


def read_json(text: str | bytes, path: str, where: str, expected: type = dict, floats: bool = False) -> Any:
    """A JSON value of type `expected`, without duplicate keys, NaN, lone surrogates, deep nesting or (unless `floats`)
    fractions."""

    def refuse(number: str) -> float:
        raise ValueError(f"the number {number[:20]} is not allowed here")

    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        problem = json_problem(text)
        if problem:
            raise file_error(path, where, f"the JSON is {problem}")
        number = float if floats else refuse
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=refuse, parse_float=number)
        if any(len(found[0]) < 12 for found in _SURROGATES.finditer(text.replace("\\\\", ".."))):
            raise ValueError("half of a surrogate pair")
    except FileError:
        raise
    except ValueError as error:
        raise file_error(path, where, f"not the JSON that was expected ({error}); damaged") from None
    if not isinstance(value, expected):
        raise file_error(path, where, f"expected a JSON {expected.__name__}, found {type(value).__name__}; damaged")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:200]!r} occurs twice")
    return result


def whole(value: Any) -> bool:
    """Whether a JSON value is an integer from 0 to 2**63 - 1; True is none."""
    return type(value) is int and 0 <= value < 2**63


def valid_shape(shape: Any) -> bool:
    """Whether a JSON value is a list of sizes whose strides fit 64 bits, even where one size is 0."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(whole(size) for size in shape):
        return False
    return math.prod(max(size, 1) for size in shape) < MAX_ELEMENTS


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
        problem = f"expected {expected:,} bytes for {dtype} {shape}, its offsets span {end - begin:,}"
        raise file_error(path, name, problem + "; damaged")
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _check_cover(entries: list[TensorEntry], data_bytes: int, path: str) -> None:
    position = 0
    for entry in entries:
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise file_error(path, entry.name, f"{fault}: begins at byte {entry.begin:,}, expected {position:,}")
        position = entry.end
    if position != data_bytes:
        where = entries[-1].name if entries and position > data_bytes else "header"
        problem = f"the tensors need {position:,} bytes of data, the file has {data_bytes:,}; truncated or damaged"
        raise file_error(path, where, problem)


def read_tensor(file: BinaryIO, header: Header, entry: TensorEntry, checksum: int | None = None) -> bytearray:
    """A tensor's bytes; FileError if there are fewer, or if they do not have the CRC-32 `checksum`."""
    data = bytearray(entry.end - entry.begin)
    view, actual = memoryview(data), 0
    file.seek(header.data_start + entry.begin)
    for start in range(0, len(data), CHUNK_BYTES):
        part = view[start : start + CHUNK_BYTES]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise file_error(header.path, entry.name, "the file ended while it was read; it changed or is truncated")
        if checksum is not None:
            actual = zlib.crc32(part, actual)
    if checksum is not None and actual != checksum:
        problem = f"checksum {checksum:08x} stored, {actual:08x} found in {len(data):,} bytes"
        raise file_error(header.path, entry.name, f"{problem}; the file is damaged")
    return data


def read_tensors(
    file: BinaryIO,
    header: Header,
    checksums: Mapping[str, int] | None = None,
    progress: Progress | None = None,
    names: Container[str] | None = None,
) -> dict[str, bytearray]:
    """The bytes of all tensors, or of those named, by name and in file order; see :func:`read_tensor`."""
    stored = {}
    for name, entry in header.tensors.items():
        if names is not None and name not in names:
            continue
        stored[name] = read_tensor(file, header, entry, None if checksums is None else checksums[name])
        if progress is not None:
            progress(name, entry.end, header.file_bytes - header.data_start)
    return stored


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, open for reading bytes and without a buffer: tensors are read straight into their own memory.

    Raises:
        FileError: it is no regular file; a pipe would wait for ever, and a device has no end. OSError: from the system.
    """
    file = open(path, "rb", buffering=0, opener=_open_at_once)  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise file_error(path, "file", "it is not a regular file; copy what it gives into one first")
    return file


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe that nobody writes to would wait."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
