"""The header of a packed file: its format and version, the checksums, and the three texts of its metadata.

Standard library alone. docs/packed_format.md is normative.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..files.safetensors_reader import FileError, Header, file_error, read_header, read_json

FORMAT = "diffq_fast"
VERSION, CODED_VERSION = "1", "2"  # the second one for files with a coded weight
CHECKSUM_KEY = b'"header_crc32":"'  # raw quotes: cannot occur inside a JSON string, so it marks one place only
NO_CHECKSUM = "00000000"

PackedFileError = FileError  # one class: a packed file that is damaged is a damaged safetensors file


@dataclass(frozen=True)
class PackedHeader:
    """A header whose own checksum is right.

    checksums: tensor -> its stored CRC-32. quantizer: {"class": name, "arguments": {…}}. layout: a JSON object, not
    looked at yet. coded: whether its weights may be coded.
    """

    tensors: Header
    checksums: dict[str, int]
    quantizer: dict[str, Any]
    layout: dict[str, Any]
    coded: bool


def compact_json(value: Any) -> str:
    """JSON without spaces, as the header has it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def packed_metadata(
    quantizer: Mapping[str, Any],
    layout: Mapping[str, Any],
    tensors: int,
    version: str = VERSION,
    further: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The metadata of a packed file, with zeros in place of the checksums of so many `tensors` and of the header.

    further: JSON values of more keys, which a reader may pass over.
    """
    texts = {key: compact_json(value) for key, value in (further or {}).items()}
    return {
        "format": FORMAT,
        "version": version,
        "quantizer": compact_json(quantizer),
        "layout": compact_json(layout),
        **texts,
        "crc32": compact_json([NO_CHECKSUM] * tensors),
        "header_crc32": NO_CHECKSUM,
    }


def seal(raw: bytes, checksums: Sequence[int]) -> bytes:
    """The header `raw` with the checksums of its tensors, and then its own, in place of the zeros."""
    texts = [f"{checksum:08x}" for checksum in checksums]
    drafted, final = (json.dumps(compact_json(each)) for each in ([NO_CHECKSUM] * len(texts), texts))
    raw = raw.replace(f'"crc32":{drafted}'.encode(), f'"crc32":{final}'.encode(), 1)
    return raw.replace(CHECKSUM_KEY + NO_CHECKSUM.encode(), CHECKSUM_KEY + header_checksum(raw).encode(), 1)


def header_checksum(raw: bytes) -> str:
    """CRC-32 of the 8 length bytes and the header, with the 8 digits of header_crc32 read as zeros."""
    start = raw.index(CHECKSUM_KEY) + len(CHECKSUM_KEY)
    zeroed = raw[:start] + NO_CHECKSUM.encode() + raw[start + 8 :]
    return f"{zlib.crc32(zeroed, zlib.crc32(len(raw).to_bytes(8, 'little'))):08x}"


def read_packed_header(file: BinaryIO, path: str) -> PackedHeader:
    """The header of a packed file of a known version.

    Raises PackedFileError naming the file and the tensor.
    """
    header = read_header(file, path, _check_packed)
    sums = read_json(header.metadata["crc32"], path, "crc32", list)
    quantizer = read_json(header.metadata["quantizer"], path, "quantizer", floats=True)
    layout = read_json(header.metadata["layout"], path, "layout")
    if not isinstance(quantizer.get("class"), str) or not isinstance(quantizer.get("arguments"), dict):
        raise file_error(path, "quantizer", "expected a class name and an object of arguments")
    coded = header.metadata["version"] == CODED_VERSION
    return PackedHeader(header, _checksums(header, sums), quantizer, layout, coded)


def _check_packed(raw: bytes, metadata: Mapping[str, str], path: str) -> None:
    """Format, version, the header's own checksum, in this order: another version may sum differently."""
    if metadata.get("format") != FORMAT:
        problem = f"its format is {metadata.get('format', 'not stated')!r:.40}, expected {FORMAT!r}"
        raise file_error(path, "header", f"not a diffq_fast packed file: {problem}; `diffq-fast pack` makes one")
    if metadata.get("version") not in (VERSION, CODED_VERSION):
        known = f"this reader knows versions {VERSION!r} and {CODED_VERSION!r}"
        problem = f"version {metadata.get('version', 'not stated')!r:.40}, {known}"
        raise file_error(path, "header", f"{problem}; a newer diffq_fast may read it")
    for key in ("quantizer", "layout", "crc32", "header_crc32"):
        if key not in metadata:
            raise file_error(path, "header", f"the metadata lack {key!r}; damaged")
    if raw.count(CHECKSUM_KEY) != 1:
        raise file_error(path, "header", "header_crc32 is not written in the one form that can be checked; damaged")
    expected = header_checksum(raw)
    if metadata["header_crc32"] != expected:
        problem = f"checksum {metadata['header_crc32']!r:.20} stored, {expected!r} found; the header is damaged"
        raise file_error(path, "header", problem)


def _checksums(header: Header, sums: Sequence[Any]) -> dict[str, int]:
    """The stored CRC-32 of every tensor."""
    if not all(isinstance(text, str) and re.fullmatch("[0-9a-f]{8}", text) for text in sums):
        raise file_error(header.path, "crc32", "expected a list of strings of 8 lower-case hexadecimal digits")
    if len(sums) != len(header.tensors):
        raise file_error(header.path, "crc32", f"expected {len(header.tensors)} checksums, found {len(sums)}")
    return {name: int(text, 16) for name, text in zip(header.tensors, sums, strict=True)}
