"""The head of a stream of coded levels: its table, written, read and chosen. Whole numbers and the histogram alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .sizes import stream_words

PROBABILITY_BITS = 12
SLOTS = 1 << PROBABILITY_BITS  # the sum of all frequencies
MOST_SYMBOLS = 256
BLOCK_BITS = (17, 19, 21, 23)  # a block, which decodes alone, has 2**17 values at most, more where they take few bits
CODED_LANES = 32
LANES_PER_BLOCK_BITS = 6  # a lane of its own pays from a 64th of a block's most values on
LOWEST_STATE = 1 << 16
LOWEST_VALUE, HIGHEST_VALUE = -(1 << 15), (1 << 15) - 1
_ESCAPE_FLAG, _BLOCK_SHIFT = 32, 6
_STATE_BITS = 24  # of a state's 32, lost in the mean
BLOCK_CONTENTS = 1 << 16  # bits of a block of which the states are 1.2 per cent
_MANY_BLOCKS = 8
COUNTED = 1 << 16  # values that are counted at once: they stay in the cache as int64


class CodeError(ValueError):
    """Bytes that are no stream of coded levels; the caller adds whose they are."""


@dataclass(frozen=True)
class LevelCode:
    """How values are coded: value = origin + symbol * 2**low_bits + low.

    frequencies: of each symbol, of 4096 slots; none where there is one symbol only. escape: the last one stands for
    values whose symbols are written out. block_bits: one of BLOCK_BITS.
    """

    origin: int
    low_bits: int
    frequencies: tuple[int, ...] = ()
    escape: bool = False
    block_bits: int = 17


@dataclass(frozen=True)
class StreamHead:
    """What a stream says before its levels. words, escapes: of each block. size: of the head, in 16-bit words."""

    code: LevelCode
    words: tuple[int, ...]
    escapes: tuple[int, ...]
    size: int

    def stream_size(self, count: int) -> int:
        """16-bit words of the whole stream of ``count`` values."""
        bits = self.code.block_bits
        states = sum(2 * lane_count(values, bits) for values in block_counts(count, bits)) if self.words else 0
        return self.size + states + sum(self.words) + sum(self.escapes) + 2 * stream_words(count, self.code.low_bits)


def block_count(count: int, block_bits: int) -> int:
    """Blocks of a stream of so many values."""
    return -(-count >> block_bits) if count else 0


def block_size(count: int, block_bits: int) -> int:
    """Values of each block but the last, which has the rest."""
    return CODED_LANES * -(-count // (CODED_LANES * max(block_count(count, block_bits), 1)))


def block_counts(count: int, block_bits: int) -> list[int]:
    """Values of each block."""
    blocks, size = block_count(count, block_bits), block_size(count, block_bits)
    return [min(size, count - block * size) for block in range(blocks)]


def lane_count(values: int, block_bits: int) -> int:
    """Lanes of a block of so many values."""
    return min(CODED_LANES, -(-values >> (block_bits - LANES_PER_BLOCK_BITS)))


def write_head(code: LevelCode, words: Sequence[int], escapes: Sequence[int]) -> bytes:
    """The bytes of a head, of even length; ``words``, ``escapes``: of each block."""
    data = bytearray([code.low_bits | _ESCAPE_FLAG * code.escape | BLOCK_BITS.index(code.block_bits) << _BLOCK_SHIFT])
    numbers = [code.origin << 1 ^ code.origin >> 31, len(code.frequencies) or 1, *code.frequencies]
    if code.frequencies:
        pairs = zip(words, escapes, strict=True) if code.escape else ((each,) for each in words)
        numbers += [number for pair in pairs for number in pair]
    for number in numbers:
        while number > 127:
            data.append(number & 127 | 128)
            number >>= 7
        data.append(number)
    return bytes(data) + bytes(len(data) % 2)


def read_head(data: bytes | bytearray | memoryview, count: int) -> StreamHead:
    """The head of a stream of ``count`` values at the beginning of ``data``; CodeError where it is none.

    Takes no more memory than ``data`` has bytes, and looks at nothing behind the head.
    """
    if not len(data):
        raise CodeError("the stream of levels is cut off")
    reader = _Reader(data)
    flags = data[0]
    escape, low_bits, block_bits = bool(flags & _ESCAPE_FLAG), flags % _ESCAPE_FLAG, BLOCK_BITS[flags >> _BLOCK_SHIFT]
    zigzag, symbols = reader.number(), reader.number()
    origin = zigzag >> 1 ^ -(zigzag & 1)
    frequencies = tuple(reader.number() for _ in range(symbols)) if 1 < symbols <= MOST_SYMBOLS else ()
    code = LevelCode(origin, low_bits, frequencies, escape, block_bits)
    problem = code_problem(code, symbols)
    if problem:
        raise CodeError(problem)
    blocks = block_count(count, block_bits) if frequencies else 0
    if blocks > len(data):
        raise CodeError("the stream of levels is cut off")
    sizes = [reader.number() for _ in range(blocks * (1 + escape))]
    if reader.place % 2:
        reader.zero()
    words, escapes = (sizes[::2], sizes[1::2]) if escape else (sizes, [0] * blocks)
    counts = block_counts(count, block_bits) if blocks else []
    for values, its_words, its_escapes in zip(counts, words, escapes, strict=True):
        if max(its_words, its_escapes) > values:
            raise CodeError(f"a block of {values:,} levels says {its_words:,} words and {its_escapes:,} escapes")
    return StreamHead(code, tuple(words), tuple(escapes), reader.place // 2)


def code_problem(code: LevelCode, symbols: int) -> str | None:
    """Why this is no code of ``symbols`` symbols, or None."""
    if code.block_bits not in BLOCK_BITS or (not code.frequencies and code.block_bits != BLOCK_BITS[0]):
        return f"blocks of 2**{code.block_bits} levels, without a table or not one of {BLOCK_BITS}"
    if not 0 <= code.low_bits <= 16:
        return f"{code.low_bits} low bits, at most 16 are allowed"
    if not 1 <= symbols <= MOST_SYMBOLS or (code.escape and symbols == 1):
        return f"a table of {symbols} symbols, expected 1 to {MOST_SYMBOLS}, 2 or more with an escape"
    if any(not 0 <= frequency < SLOTS for frequency in code.frequencies):
        return f"a frequency that is not between 0 and {SLOTS - 1}"
    top = code.origin + ((symbols - code.escape) << code.low_bits)
    if not LOWEST_VALUE <= code.origin <= HIGHEST_VALUE or top > HIGHEST_VALUE + 1:
        return f"levels from {code.origin} to {top - 1}, beyond 16 bits"
    if code.frequencies and sum(code.frequencies) != SLOTS:
        return f"frequencies with the sum {sum(code.frequencies)}, expected {SLOTS}"
    if code.escape and code.frequencies[-1] == 0:
        return "an escape that never occurs"
    return None


class _Reader:
    """Takes varints from bytes, behind the first one."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data, self.place = data, 1

    def number(self) -> int:
        """At most 28 bits, which is more than any number of a head has."""
        value = 0
        for shift in (0, 7, 14, 21):
            if self.place >= len(self._data):
                break
            byte = self._data[self.place]
            self.place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0 and shift:
                    raise CodeError("a number is written with more bytes than it needs")
                return value
        raise CodeError("the head of a stream of levels is cut off, or a number of it is too large")

    def zero(self) -> None:
        if self.place >= len(self._data) or self._data[self.place]:
            raise CodeError("the head of a stream of levels does not end with a zero")
        self.place += 1


# -- choosing a code ---------------------------------------------------------------------------------------------------


def histogram(values: Tensor) -> tuple[int, Tensor]:
    """The lowest value, and how many there are of it and of each one above it: int64 on the CPU."""
    if not values.numel():
        return 0, torch.zeros(0, dtype=torch.int64, device="cpu")
    lowest, highest = (int(limit) for limit in values.aminmax())
    counts = torch.zeros(highest - lowest + 1, dtype=torch.int64, device=values.device)
    for part in values.reshape(-1).split(max(COUNTED, len(counts))):
        counts += torch.bincount(part.long() - lowest, minlength=len(counts))
    return lowest, counts.cpu()


def choose_code(lowest: int, counts: Tensor) -> tuple[LevelCode, float]:
    """The code that takes the fewest bits, and how many those are: table, states, levels and low bits.

    Args:
        lowest: the lowest value.
        counts: int64 ``[values]``, how many there are of it and of each one above it; the first and last not zero.

    The bits are an estimate, within a few bytes a block of what coding takes.
    """
    span = len(counts)
    plain_bits = (span - 1).bit_length()
    total = int(counts.sum())
    origin = min(lowest, HIGHEST_VALUE + 1 - (1 << plain_bits))
    best = LevelCode(origin, plain_bits), 32.0 + 32 * stream_words(total, plain_bits)
    for low_bits in range(plain_bits):
        size = 1 << low_bits
        start = min(lowest, HIGHEST_VALUE + 1 - (-(-span // size)) * size)
        padded = torch.nn.functional.pad(counts, (lowest - start, -(span + lowest - start) % size))
        merged = padded.view(-1, size).sum(1)
        for code, bits in _tables(start, low_bits, merged, total):
            if bits < best[1]:
                best = code, bits
        if best[0].low_bits + 2 < low_bits:
            break
    return best


def _tables(start: int, low_bits: int, merged: Tensor, total: int) -> list[tuple[LevelCode, float]]:
    """Tables for symbols with the counts ``merged``: with all of them if they fit, and with an escape for rare ones."""
    fixed = 32.0 * stream_words(total, low_bits)
    made = []
    if 2 <= len(merged) <= MOST_SYMBOLS and int(merged.count_nonzero()) > 1:
        made.append(_table(LevelCode(start, low_bits), merged, total, fixed))
    # A symbol of its own takes at least one slot, from all others, and a byte of the table; an escape takes its
    # 16 bits and most of what the symbol would.
    worth = 1 + int((total * math.log2(math.e) / SLOTS + 8) / 16)
    frequent = torch.where(merged > worth, merged, 0)
    places = frequent.nonzero().reshape(-1)
    if len(places) and int(frequent.sum()) < total:
        begin, end = int(places[0]), int(places[-1]) + 1
        if end - begin >= MOST_SYMBOLS:
            begin = int(torch.argmax(frequent.unfold(0, MOST_SYMBOLS - 1, 1).sum(1)))
            end = begin + MOST_SYMBOLS - 1
        kept = frequent[begin:end]
        escaped = total - int(kept.sum())
        code = LevelCode(start + (begin << low_bits), low_bits, escape=True)
        counts = torch.cat([kept, kept.new_tensor([escaped])])
        if int(kept.sum()):
            made.append(_table(code, counts, total, fixed + 16.0 * escaped))
    return made


def _table(code: LevelCode, counts: Tensor, total: int, fixed: float) -> tuple[LevelCode, float]:
    frequencies = normalised(counts)
    used = counts > 0
    levels = counts[used] * (PROBABILITY_BITS - torch.log2(frequencies[used].double()))
    table = 8 * (int((frequencies > 127).sum()) + len(frequencies) + 5)
    bits = float(levels.sum())
    block_bits = _block_bits(total, bits / total)
    blocks = block_counts(total, block_bits)
    states = sum(16 + 16 * code.escape + _STATE_BITS * lane_count(each, block_bits) for each in blocks)
    made = LevelCode(code.origin, code.low_bits, tuple(frequencies.tolist()), code.escape, block_bits)
    return made, fixed + table + states + bits


def _block_bits(total: int, rate: float) -> int:
    """How long blocks are, for so many values of ``rate`` bits each."""
    bits = next((each for each in BLOCK_BITS if rate * (1 << each) >= BLOCK_CONTENTS), BLOCK_BITS[-1])
    while bits < BLOCK_BITS[-1] and may_be_longer(total, bits) and rate * (1 << bits) < 4 * BLOCK_CONTENTS:
        bits += 2
    return bits


def may_be_longer(total: int, block_bits: int) -> bool:
    """Whether blocks of four times the length would still be so many that all threads have some."""
    return total >> block_bits + 2 >= _MANY_BLOCKS


def normalised(counts: Tensor) -> Tensor:
    """Frequencies of 4096 slots: 1 at least where there is a count, 0 elsewhere, and of the fewest bits in all."""
    used = counts > 0
    weights = counts.double()
    frequencies = torch.where(used, (weights * (SLOTS / weights.sum())).round().clamp(min=1), 0.0)
    while (excess := int(frequencies.sum()) - SLOTS) != 0:
        # What one slot less costs, or one more gains: the cheapest ones change, a few at a time.
        step = 1 if excess > 0 else -1
        changed = frequencies - step
        cost = weights * (torch.log2(frequencies) - torch.log2(changed)) * step
        allowed = used & (changed >= 1)
        cost = torch.where(allowed, cost, math.inf if step > 0 else -math.inf)
        number = max(1, min(abs(excess), int(allowed.sum())) // 4)
        frequencies[torch.topk(cost, number, largest=step < 0).indices] -= step
    return frequencies.long()
