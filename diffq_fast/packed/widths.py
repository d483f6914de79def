"""The widths of a weight's groups as they stand in a packed file, with numpy alone.

Three codings, of which the writer takes the smallest (docs/packed_format.md, "Widths"):
`["one", width]` no bytes at all;
`["fixed", lowest, bits]` each width less the lowest in `bits` bits, as one stream;
`["runs"]` a varint of (run length - 1) * 16 + (width - 1) for each run of equal widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..reference.sizes import BLOCK, LANES, MAX_WIDTH, levels_per_width, stream_words

MAX_VARINT_BYTES = 9  # 63 bits: no run can overflow a signed 64-bit integer

COUNTED_AT_ONCE = DECODED_AT_ONCE = 1 << 16  # widths, and bytes

PackStream = Callable[[np.ndarray, int], bytes]


class WidthError(ValueError):
    """Widths that no weight of the stated groups can have; the caller adds the file and the tensor."""


def stream_levels(widths: np.ndarray, count: int, group_size: int) -> list[int]:
    """How many levels each width has: entry b counts those of b bits, 0 <= b <= 16."""
    groups = np.zeros(MAX_WIDTH + 1, dtype=np.int64)
    for begin in range(0, len(widths), COUNTED_AT_ONCE):  # numpy makes eight bytes of each
        groups += np.bincount(widths[begin : begin + COUNTED_AT_ONCE], minlength=MAX_WIDTH + 1)
    return levels_per_width(groups.tolist(), int(widths[-1]) if count else 0, count, group_size)


def encode_widths(widths: np.ndarray, pack_stream: PackStream | None = None) -> tuple[list[Any], bytes]:
    """The smallest coding of uint8 widths 1 … 16, and its bytes.

    Args:
        pack_stream: makes the bytes of one stream of uint8 values, given their bits. Torch's operators are faster than
            numpy, which is the default because this module does without torch.
    """
    if not len(widths):
        return ["one", 1], b""
    lowest, highest = int(widths.min()), int(widths.max())
    if lowest == highest:
        return ["one", lowest], b""
    bits = (highest - lowest).bit_length()
    fixed = fixed_bytes(len(widths), bits)
    changes = widths[1:] != widths[:-1]
    if np.count_nonzero(changes) + 1 < fixed:  # a run takes a byte or more
        runs = _encode_runs(widths, np.flatnonzero(np.concatenate([[True], changes])))
        if len(runs) < fixed:
            return ["runs"], runs
    return ["fixed", lowest, bits], (pack_stream or _pack_stream)((widths - lowest).astype(np.uint8, copy=False), bits)


def fixed_bytes(groups: int, bits: int) -> int:
    """Bytes of a fixed-width table: one stream of `groups` values."""
    return 4 * stream_words(groups, bits)


def coding_problem(coding: Any) -> str | None:
    """Why `coding` is none of the three forms, or None."""
    known = isinstance(coding, list) and all(type(part) is int for part in coding[1:])
    if known and coding[:1] == ["one"] and len(coding) == 2 and 1 <= coding[1] <= MAX_WIDTH:
        return None
    if known and coding[:1] == ["fixed"] and len(coding) == 3 and 1 <= coding[1] <= MAX_WIDTH and 1 <= coding[2] <= 4:
        return None
    if known and coding == ["runs"]:
        return None
    return f"the width coding {str(coding)[:60]} is none of ['one', width], ['fixed', lowest, bits], ['runs']"


def decode_widths(coding: list[Any], data: bytes | bytearray, groups: int) -> np.ndarray:
    """uint8 `[groups]`, each 1 … 16; raises WidthError when the bytes say anything else.

    One width for all is one byte in memory, seen `groups` times: a file of a megabyte may have 8 M groups of it.
    """
    if coding[0] == "one":
        return np.broadcast_to(np.array(coding[1], dtype=np.uint8), (groups,))
    if coding[0] == "runs":
        return _decode_runs(data, groups)
    _, lowest, bits = coding
    if len(data) != fixed_bytes(groups, bits):
        expected = f"expected {fixed_bytes(groups, bits):,} bytes for {groups:,} widths of {bits} bits"
        raise WidthError(f"{expected}, found {len(data):,}")
    widths = _unpack_stream(data, bits, groups) + np.uint8(lowest)
    if groups and int(widths.max()) > MAX_WIDTH:
        raise WidthError(f"widths must be between 1 and {MAX_WIDTH}, found {int(widths.max())}")
    return widths


def _encode_runs(widths: np.ndarray, starts: np.ndarray) -> bytes:
    lengths = np.diff(starts, append=len(widths)).astype(np.uint64)
    values = (lengths - 1) * 16 + (widths[starts] - 1).astype(np.uint64)
    shifts = np.arange(MAX_VARINT_BYTES, dtype=np.uint64) * 7
    digits = (values[:, None] >> shifts) & 0x7F  # [runs, 9], least significant first
    more = np.concatenate([values[:, None] >> shifts[1:], np.zeros_like(values[:, None])], axis=1) != 0
    used = np.concatenate([np.ones_like(more[:, :1]), more[:, :-1]], axis=1)
    return (digits | (more.astype(np.uint64) << np.uint64(7)))[used].astype(np.uint8).tobytes()


def _decode_runs(data: bytes | bytearray, groups: int) -> np.ndarray:
    """Piece by piece: a run of one byte takes a hundred while it is decoded."""
    stored, begin = np.frombuffer(data, dtype=np.uint8), 0
    pieces, done = [np.empty(0, dtype=np.uint8)], 0
    while begin < len(stored):
        piece = stored[begin : begin + DECODED_AT_ONCE]
        ends = np.flatnonzero(piece < 0x80)
        if not len(ends) and len(piece) <= MAX_VARINT_BYTES:
            raise WidthError("the last run is cut off")
        used = int(ends[-1]) + 1 if len(ends) else len(piece)
        values, lengths = _runs(piece[:used], ends)
        total = done + sum(lengths.tolist())
        if total > groups:
            raise WidthError(f"the runs cover {total:,} groups, expected {groups:,}")
        pieces.append(np.repeat(values, lengths.astype(np.int64)))
        begin, done = begin + used, total
    if done != groups:
        raise WidthError(f"the runs cover {done:,} groups, expected {groups:,}")
    return np.concatenate(pieces)


def _runs(stored: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 widths and uint64 lengths of the runs in these bytes; ``ends`` are the places of their last bytes."""
    sizes = np.diff(ends, prepend=-1)
    longest = int(sizes.max()) if len(sizes) else len(stored)
    if longest > MAX_VARINT_BYTES:
        raise WidthError(f"a run takes {longest} bytes, at most {MAX_VARINT_BYTES} are allowed")
    if ((stored[ends] == 0) & (sizes > 1)).any():
        raise WidthError("a run is written with more bytes than it needs")
    starts = ends - sizes + 1
    places = np.arange(len(stored)) - np.repeat(starts, sizes)
    digits = (stored & 0x7F).astype(np.uint64) << (places.astype(np.uint64) * np.uint64(7))
    values = np.add.reduceat(digits, starts)
    return (values & np.uint64(15)).astype(np.uint8) + np.uint8(1), (values >> np.uint64(4)) + np.uint64(1)


def _pieces(count: int) -> Iterator[tuple[int, int, int]]:
    """A stream of `count` values as (first value, blocks, lanes): many whole blocks, then the last one."""
    whole = count // BLOCK
    for first in range(0, whole, 4096):
        yield first * BLOCK, min(4096, whole - first), LANES
    if count % BLOCK:
        yield whole * BLOCK, 1, -(-(count % BLOCK) // LANES)


def _pack_stream(values: np.ndarray, bits: int) -> bytes:
    """The bytes of one stream: `bits` bits of each value, laid out like a weight's levels of that width."""
    packed = []
    for first, blocks, lanes in _pieces(len(values)):
        rows = np.zeros((blocks, 32, lanes), dtype=np.uint8)
        piece = values[first : first + rows.size]
        rows.reshape(-1)[: len(piece)] = piece
        strings = (rows.transpose(0, 2, 1)[..., None] >> np.arange(bits, dtype=np.uint8)) & 1  # [block, lane, row, bit]
        words = np.packbits(strings.reshape(blocks, lanes, bits, 32), axis=3, bitorder="little")
        packed.append(words.transpose(0, 2, 1, 3).tobytes())  # [block, word, lane, 4 bytes]
    return b"".join(packed)


def _unpack_stream(data: bytes | bytearray, bits: int, count: int) -> np.ndarray:
    """uint8 `[count]`: the inverse of `_pack_stream`."""
    stored = np.frombuffer(data, dtype=np.uint8)
    values = [np.empty(0, dtype=np.uint8)]
    for first, blocks, lanes in _pieces(count):
        words = stored[first * bits // 8 :][: 4 * bits * lanes * blocks].reshape(blocks, bits, lanes, 4)
        strings = np.unpackbits(words.transpose(0, 2, 1, 3), axis=3, bitorder="little")
        rows = np.packbits(strings.reshape(blocks, lanes, 32, bits), axis=3, bitorder="little")[..., 0]
        values.append(rows.transpose(0, 2, 1).reshape(-1))
    return np.concatenate(values)[:count]
