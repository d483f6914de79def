"""A reader of packed files written from docs/packed_format.md alone: Python integers, nothing of diffq_fast.

It trusts the file, except for the checksums: that the two readers agree is what the tests want from it.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Decoded:
    """A weight as plain Python lists, in row-major order; values are bytes of the weight's dtype."""

    shape: list[int]
    dtype: str
    widths: list[int]
    levels: list[int]
    values: bytes


def decode_file(path: str | Path) -> tuple[dict[str, Decoded], dict[str, bytes], dict]:
    """The weights, the plain tensors' bytes as stored, and the layout."""
    blob = Path(path).read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "diffq_fast"
    assert metadata["version"] == "1"
    at = blob.index(b'"header_crc32":"') + 16
    zeroed = blob[:at] + b"00000000" + blob[at + 8 : 8 + length]
    assert f"{zlib.crc32(zeroed):08x}" == metadata["header_crc32"]
    order = sorted(header, key=lambda name: header[name]["data_offsets"])
    data = {}
    for name, checksum in zip(order, json.loads(metadata["crc32"]), strict=True):
        begin, end = header[name]["data_offsets"]
        data[name] = blob[8 + length + begin : 8 + length + end]
        assert f"{zlib.crc32(data[name]):08x}" == checksum
    layout = json.loads(metadata["layout"])
    weights = {name: decode_weight(name, fields, data) for name, fields in layout["weights"].items()}
    parts = {name + part for name in weights for part in (".words", ".widths", ".range")}
    return weights, {name: data[name] for name in order if name not in parts}, layout


def decode_weight(name: str, fields: dict, data: dict[str, bytes]) -> Decoded:
    count = math.prod(fields["shape"])
    size = fields["group_size"] or count
    groups = -(-count // size) if count else 0
    widths = decode_widths(fields["widths"], data.get(name + ".widths", b""), groups)
    sizes = [min(size, count - group * size) for group in range(groups)]
    words = uint32(data[name + ".words"])
    streams = {}
    for width in range(1, 17):
        total = sum(one for one, its in zip(sizes, widths, strict=True) if its == width)
        streams[width] = iter(decode_stream(words, width, total))
        words = words[width * -(-total // 32) :]
    assert words == []
    ranges = struct.unpack(f"<{len(data[name + '.range']) // 4}f", data[name + ".range"])
    levels, values = [], []
    for group, width in enumerate(widths):
        bounds = ranges[2 * group : 2 * group + 2] if fields["range"] == "group" else ranges
        top = fields.get("levels", 2**width) - 1
        for _ in range(sizes[group]):
            levels.append(next(streams[width]))
            if fields["range"] == "scale":
                values.append(float32((levels[-1] - 2 ** (width - 1)) * bounds[0]))
            else:
                values.append(value_of(levels[-1], top, *bounds))
    return Decoded(fields["shape"], fields["dtype"], widths, levels, to_bytes(values, fields["dtype"]))


def decode_stream(words: list[int], width: int, total: int) -> list[int]:
    levels, at = [], 0
    while len(levels) < total:
        count = min(1024, total - len(levels))
        lanes = -(-count // 32)
        block = words[at : at + width * lanes]
        at += width * lanes
        strings = [sum(block[row * lanes + lane] << (32 * row) for row in range(width)) for lane in range(lanes)]
        for place in range(count):
            row, lane = divmod(place, lanes)
            levels.append(strings[lane] >> (row * width) & (2**width - 1))
    return levels


def decode_widths(coding: list, data: bytes, groups: int) -> list[int]:
    if coding[0] == "one":
        return [coding[1]] * groups
    if coding[0] == "fixed":
        return [coding[1] + offset for offset in decode_stream(uint32(data), coding[2], groups)]
    widths: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            widths += [value % 16 + 1] * (value // 16 + 1)
            value = shift = 0
    assert len(widths) == groups
    return widths


def uint32(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def float32(value: float) -> float:
    """Rounding a float64 result of one operation on float32 numbers gives the float32 result."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def value_of(level: int, top: int, lo: float, hi: float) -> float:
    step = float32(1 / top)
    return float32(float32(float32(level * step) * float32(hi - lo)) + lo)


def to_bytes(values: list[float], dtype: str) -> bytes:
    if dtype == "BF16":
        words = [struct.unpack("<I", struct.pack("<f", value))[0] for value in values]
        return struct.pack(f"<{len(words)}H", *((w + 0x7FFF + (w >> 16 & 1)) >> 16 for w in words))
    return struct.pack(f"<{len(values)}{'f' if dtype == 'F32' else 'e'}", *values)
