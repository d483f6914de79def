"""The oracle of coding levels: the interleaved rANS of ``docs/packed_format.md``, section 10, all blocks at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .level_code import (
    HIGHEST_VALUE,
    LOWEST_STATE,
    LOWEST_VALUE,
    PROBABILITY_BITS,
    SLOTS,
    CodeError,
    LevelCode,
    StreamHead,
    block_counts,
    block_size,
    lane_count,
    read_head,
    write_head,
)
from .words import pack_stream, unpack_stream


def encode_levels(levels: Tensor, code: LevelCode) -> Tensor:
    """int16 words of one stream. Raises ValueError where the code has no symbol for a level."""
    levels = levels.reshape(-1).to(torch.int64)
    if levels.numel() and (int(levels.min()) < LOWEST_VALUE or int(levels.max()) > HIGHEST_VALUE):
        raise ValueError(f"encode_levels: levels must be between {LOWEST_VALUE} and {HIGHEST_VALUE}")
    offsets = levels - code.origin
    symbols = offsets >> code.low_bits
    parts: list[Tensor] = []
    words: list[int] = []
    escapes: list[int] = []
    if code.frequencies:
        for block in symbols.split(block_size(len(symbols))):
            states, coded, escaped = _encode_block(block, code)
            parts += [states, coded, escaped]
            words.append(len(coded))
            escapes.append(len(escaped))
    elif bool((symbols != 0).any()):
        raise ValueError("encode_levels: the code has no symbol for some level")
    if code.low_bits:
        low = (offsets & ((1 << code.low_bits) - 1)).to(torch.int32)
        parts.append(_halves(pack_stream(low, code.low_bits)))
    head = torch.frombuffer(bytearray(write_head(code, words, escapes)), dtype=torch.int16)
    return torch.cat([head.to(levels.device), *(_int16(part) for part in parts)])


def decode_levels(words: Tensor, count: int) -> Tensor:
    """int32 ``[count]``: the values of one stream, which ``words`` begins with. Raises CodeError where it is none."""
    words = words.reshape(-1)
    data = words.cpu().contiguous().view(torch.uint8).numpy().tobytes() if count else b""
    if count == 0:
        return torch.empty(0, dtype=torch.int32, device=words.device)
    head = read_head(data, count)
    if head.stream_size(count) > len(words):
        raise CodeError("the stream of levels is cut off")
    stream = words.to(torch.int64) & 0xFFFF
    place, symbols = head.size, stream.new_zeros(count)
    if head.code.frequencies:
        place, symbols = _decode_blocks(stream, head, count)
    low = stream.new_zeros(count)
    if head.code.low_bits:
        size = head.stream_size(count) - place
        pairs = stream[place : place + size].view(-1, 2)
        joined = pairs[:, 0] | pairs[:, 1] << 16
        low = unpack_stream(((joined ^ 0x80000000) - 0x80000000).to(torch.int32), head.code.low_bits, count).long()
    return _int16(head.code.origin + (symbols << head.code.low_bits) + low).to(torch.int32)


def _encode_block(symbols: Tensor, code: LevelCode) -> tuple[Tensor, Tensor, Tensor]:
    """The states, coded words and escapes of one block, as int64 words of 16 bits."""
    known = len(code.frequencies) - code.escape
    frequencies = torch.tensor(code.frequencies, dtype=torch.int64, device=symbols.device)
    starts = frequencies.cumsum(0) - frequencies
    outside = (symbols < 0) | (symbols >= known)
    outside |= frequencies[symbols.clamp(0, known - 1)] == 0
    if not code.escape and bool(outside.any()):
        raise ValueError("encode_levels: the code has no symbol for some level")
    escaped = symbols[outside] & 0xFFFF
    symbols = torch.where(outside, known, symbols) if code.escape else symbols
    lanes = lane_count(len(symbols))
    rows = -(-len(symbols) // lanes)
    cells = torch.nn.functional.pad(symbols, (0, rows * lanes - len(symbols)), value=-1).view(rows, lanes)
    states = torch.full((lanes,), LOWEST_STATE, dtype=torch.int64, device=symbols.device)
    coded: list[Tensor] = []
    for row in range(rows - 1, -1, -1):
        here = cells[row] >= 0  # the last row may lack lanes
        frequency, start = frequencies[cells[row]], starts[cells[row]]
        full = here & (states >= frequency << 20)
        coded.append(states[full] & 0xFFFF)
        states = torch.where(full, states >> 16, states)
        divisor = frequency.clamp(min=1)
        after = (torch.div(states, divisor, rounding_mode="floor") << PROBABILITY_BITS) + states % divisor + start
        states = torch.where(here, after, states)
    return _halves(states), torch.cat(coded[::-1]), escaped


def _decode_blocks(stream: Tensor, head: StreamHead, count: int) -> tuple[int, Tensor]:
    """The place behind the blocks, and the symbols of all values."""
    frequencies = torch.tensor(head.code.frequencies, dtype=torch.int64, device=stream.device)
    starts = frequencies.cumsum(0) - frequencies
    symbol_of = torch.repeat_interleave(
        torch.arange(len(frequencies), dtype=torch.int64, device=stream.device), frequencies
    )
    place, made = head.size, []
    for values, words, escapes in zip(block_counts(count), head.words, head.escapes, strict=True):
        lanes = lane_count(values)
        end = place + 2 * lanes + words
        pairs = stream[place : place + 2 * lanes].view(-1, 2)
        states = pairs[:, 0] | pairs[:, 1] << 16
        coded = stream[place + 2 * lanes : end]
        symbols = _decode_block(states, coded, values, (frequencies, starts, symbol_of))
        if head.code.escape:
            outside = symbols == len(frequencies) - 1
            if int(outside.sum()) != escapes:
                raise CodeError("a block of levels has another number of escapes than it says")
            symbols[outside] = stream[end : end + escapes]
        place = end + escapes
        made.append(symbols)
    return place, torch.cat(made)


def _decode_block(states: Tensor, coded: Tensor, values: int, table: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    frequencies, starts, symbol_of = table
    lanes, used = len(states), 0
    if bool((states < LOWEST_STATE).any()):
        raise CodeError("a block of levels begins with a state that is none")
    rows = []
    for begin in range(0, values, lanes):
        here = min(lanes, values - begin)
        live = states[:here]
        slots = live & (SLOTS - 1)
        symbols = symbol_of[slots]
        live = frequencies[symbols] * (live >> PROBABILITY_BITS) + slots - starts[symbols]
        low = live < LOWEST_STATE
        needed = int(low.sum())
        if used + needed > len(coded):
            raise CodeError("a block of levels has fewer words than it needs")
        live[low] = live[low] << 16 | coded[used : used + needed]
        used += needed
        states[:here] = live
        rows.append(symbols)
    if used != len(coded) or bool((states != LOWEST_STATE).any()):
        raise CodeError("a block of levels does not end as it should")
    return torch.cat(rows)


def _halves(words: Tensor) -> Tensor:
    """The low and the high 16 bits of each word of 32, in turn."""
    return torch.stack([words & 0xFFFF, words >> 16 & 0xFFFF], dim=-1).reshape(-1).long()


def _int16(words: Tensor) -> Tensor:
    return (((words & 0xFFFF) ^ 0x8000) - 0x8000).to(torch.int16)
