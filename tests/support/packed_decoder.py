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
    assert metadata["version"] in ("1", "2")
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
    endings = [".words", ".widths", ".range"] + [".coded"] * (metadata["version"] == "2")
    parts = {name + part for name in weights for part in endings}
    return weights, {name: data[name] for name in order if name not in parts}, layout


def decode_weight(name: str, fields: dict, data: dict[str, bytes]) -> Decoded:
    count = math.prod(fields["shape"])
    size = fields["group_size"] or count
    groups = -(-count // size) if count else 0
    widths = decode_widths(fields["widths"], data.get(name + ".widths", b""), groups)
    sizes = [min(size, count - group * size) for group in range(groups)]
    if "coding" in fields:
        return decode_coded_weight(name, fields, data, widths, sizes)
    words = uint32(data[name + ".words"])
    streams = {}
    for width in range(1, 17):
        total = sum(one for one, its in zip(sizes, widths, strict=True) if its == width)
        streams[width] = iter(decode_stream(words, width, total))
        words = words[width * -(-total // 32) :]
    assert words == []
    ranges = decode_ranges(data[name + ".range"], fields, groups)
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


def decode_ranges(data: bytes, fields: dict, groups: int) -> list[float]:
    """lo, hi, lo, hi …, or the scale."""
    if "groups_per_unit" not in fields:
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    assert fields["range"] == "group"
    each = fields["groups_per_unit"]
    units = -(-groups // each)
    assert len(data) == 4 * units + 2 * groups
    unit, codes = struct.unpack(f"<{units}f", data[: 4 * units]), struct.unpack(f"<{2 * groups}b", data[4 * units :])
    return [float32(code * unit[place // 2 // each]) for place, code in enumerate(codes)]


T = (
    0x3F800000, 0x3F85AAC3, 0x3F8B95C2, 0x3F91C3D3, 0x3F9837F0, 0x3F9EF532, 0x3FA5FED7, 0x3FAD583F,
    0x3FB504F3, 0x3FBD08A4, 0x3FC5672A, 0x3FCE248C, 0x3FD744FD, 0x3FE0CCDF, 0x3FEAC0C7, 0x3FF5257D,
)  # fmt: skip


def decode_coded_weight(
    name: str, fields: dict, data: dict[str, bytes], widths: list[int], sizes: list[int]
) -> Decoded:
    """Section 10."""
    assert fields["coding"] == "rans"
    coded = data[name + ".coded"]
    words, place = list(struct.unpack(f"<{len(coded) // 2}H", coded)), 0
    codes: list[int] = []
    if fields["range"] == "steps" and sizes:
        codes, place = decode_coded_stream(words, 0, len(sizes))
    streams = {}
    for width in sorted(set(widths)):
        total = sum(one for one, its in zip(sizes, widths, strict=True) if its == width)
        values, place = decode_coded_stream(words, place, total)
        streams[width] = iter(values)
    assert len(words) == max(place, -(-sum(sizes) // 512))
    assert not any(words[place:])
    ranges = decode_ranges(data.get(name + ".range", b""), fields, len(sizes))
    levels, values = [], []
    for group, (width, number) in enumerate(zip(widths, sizes, strict=True)):
        for _ in range(number):
            value = next(streams[width])
            if fields["range"] == "steps":
                levels.append(value)
                octave, rest = divmod(codes[group], 16)
                step = struct.unpack("<f", struct.pack("<I", T[rest]))[0] * 2.0**octave
                values.append(float32(value * step) if value else 0.0)
                continue
            levels.append(value + 2 ** (width - 1))
            assert 0 <= levels[-1] < 2**width
            if fields["range"] == "scale":
                values.append(float32(value * ranges[0]))
            else:
                bounds = ranges[2 * group : 2 * group + 2] if fields["range"] == "group" else ranges
                values.append(value_of(levels[-1], fields.get("levels", 2**width) - 1, *bounds))
    return Decoded(fields["shape"], fields["dtype"], widths, levels, to_bytes(values, fields["dtype"]))


def decode_coded_stream(words: list[int], place: int, count: int) -> tuple[list[int], int]:
    """The values of a stream, and the place behind it."""
    head = struct.pack(f"<{len(words) - place}H", *words[place:])
    at = 1

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = head[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    low_bits, escape, longer = head[0] % 32, head[0] % 64 >= 32, 4 ** (head[0] // 64)
    zigzag, symbols = varint(), varint()
    origin = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    frequencies = [varint() for _ in range(symbols)] if symbols > 1 else []
    blocks = -(-count // (131072 * longer))
    size = 32 * -(-count // (32 * blocks))
    counts = [min(size, count - block * size) for block in range(blocks)] if frequencies else []
    lengths = [(varint(), varint() if escape else 0) for _ in counts]
    assert at % 2 == 0 or head[at] == 0
    place += (at + 1) // 2
    made: list[int] = [] if frequencies else [0] * count
    for number, (coded, escaped) in zip(counts, lengths, strict=True):
        lanes = min(32, -(-number // (2048 * longer)))
        states = [words[place + 2 * lane] + (words[place + 2 * lane + 1] << 16) for lane in range(lanes)]
        place += 2 * lanes
        made += decode_coded_block(
            states,
            iter(words[place : place + coded]),
            iter(words[place + coded :][:escaped]),
            frequencies,
            number,
            escape,
        )
        place += coded + escaped
    low = [0] * count
    if low_bits:
        pairs = words[place : place + 2 * low_bits * -(-count // 32)]
        place += len(pairs)
        joined = [first + (second << 16) for first, second in zip(pairs[::2], pairs[1::2], strict=True)]
        low = decode_stream(joined, low_bits, count)
    values = [(origin + symbol * 2**low_bits + bits) % 65536 for symbol, bits in zip(made, low, strict=True)]
    return [value - 65536 if value > 32767 else value for value in values], place


def decode_coded_block(states, coded, escapes, frequencies, number, escape) -> list[int]:
    starts = [sum(frequencies[:symbol]) for symbol in range(len(frequencies))]
    symbol_of = [symbol for symbol, frequency in enumerate(frequencies) for _ in range(frequency)]
    assert len(symbol_of) == 4096
    assert min(states) >= 2**16
    made = []
    for place in range(number):
        lane = place % len(states)
        x = states[lane]
        symbol = symbol_of[x % 4096]
        x = frequencies[symbol] * (x // 4096) + x % 4096 - starts[symbol]
        if x < 2**16:
            x = x * 2**16 + next(coded)
        states[lane] = x
        made.append(next(escapes) if escape and symbol == len(frequencies) - 1 else symbol)
    assert set(states) == {2**16}
    assert [*coded, *escapes] == []
    return made


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
