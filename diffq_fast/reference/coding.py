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
    """int16 words of one stream, none for no levels. Raises ValueError where the code has no symbol for a level."""
    levels = levels.reshape(-1).to(torch.int64)
    if not levels.numel():
        return levels.to(torch.int16)
    if int(levels.min()) < LOWEST_VALUE or int(levels.max()) > HIGHEST_VALUE:
        raise ValueError(f"encode_levels: levels must be between {LOWEST_VALUE} and {HIGHEST_VALUE}")
    offsets = levels - code.origin
    symbols = offsets >> code.low_bits
    parts: list[Tensor] = []
    words: list[int] = []
    escapes: list[int] = []
    if code.frequencies:
        for states, coded, escaped in _encode_blocks(symbols, code):
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
    data = words.cpu().numpy().tobytes() if count else b""
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


Block = tuple[Tensor, Tensor, Tensor]  # the states, coded words and escapes of a block, as int64 words of 16 bits
Table = tuple[Tensor, Tensor]  # the frequency of each symbol, and the sum of those before it


def _table(code: LevelCode, device: torch.device) -> Table:
    frequencies = torch.tensor(code.frequencies, dtype=torch.int64, device=device)
    return frequencies, frequencies.cumsum(0) - frequencies


def _encode_blocks(symbols: Tensor, code: LevelCode) -> list[Block]:
    """All blocks; those of one size at once."""
    table = _table(code, symbols.device)
    known = len(code.frequencies) - code.escape
    outside = (symbols < 0) | (symbols >= known)
    outside |= table[0][symbols.clamp(0, known - 1)] == 0
    if not code.escape and bool(outside.any()):
        raise ValueError("encode_levels: the code has no symbol for some level")
    coded_symbols = torch.where(outside, known, symbols) if code.escape else symbols
    blocks: list[Block] = []
    for begin, number, size in _alike(len(symbols), code):
        end = begin + number * size
        made = _encode_alike(coded_symbols[begin:end].view(number, size), table, lane_count(size, code.block_bits))
        cut = zip(symbols[begin:end].split(size), outside[begin:end].split(size), made, strict=True)
        blocks += [(states, words, block[its] & 0xFFFF) for block, its, (states, words) in cut]
    return blocks


def _alike(count: int, code: LevelCode) -> list[tuple[int, int, int]]:
    """Runs of blocks of one size: (first value, blocks, values of each)."""
    size, last = block_size(count, code.block_bits), block_counts(count, code.block_bits)[-1]
    whole = (count - last) // size
    runs = [(0, whole, size), (whole * size, 1, last)]
    return [run for run in runs if run[1]]


def _encode_alike(symbols: Tensor, table: Table, lanes: int) -> list[tuple[Tensor, Tensor]]:
    """The states and the coded words of blocks ``[blocks, values]``."""
    frequencies, starts = table
    blocks, count = symbols.shape
    rows = -(-count // lanes)
    cells = torch.nn.functional.pad(symbols, (0, rows * lanes - count), value=-1).view(blocks, rows, lanes)
    states = symbols.new_full((blocks, lanes), LOWEST_STATE)
    words, taken = torch.empty_like(cells), torch.empty_like(cells, dtype=torch.bool)
    for row in range(rows - 1, -1, -1):
        cell = cells[:, row]
        here = cell >= 0  # the last row may lack lanes
        frequency, start = frequencies[cell], starts[cell]
        full = here & (states >= frequency << 20)
        words[:, row], taken[:, row] = states & 0xFFFF, full
        states = torch.where(full, states >> 16, states)
        divisor = frequency.clamp(min=1)
        after = (torch.div(states, divisor, rounding_mode="floor") << PROBABILITY_BITS) + states % divisor + start
        states = torch.where(here, after, states)
    return [(_halves(states[block]), words[block][taken[block]]) for block in range(blocks)]


def _decode_blocks(stream: Tensor, head: StreamHead, count: int) -> tuple[int, Tensor]:
    """The place behind the blocks, and the symbols of all values."""
    table, code = _table(head.code, stream.device), head.code
    place, made, first = head.size, [], 0
    for _, number, size in _alike(count, code):
        lanes, places = lane_count(size, code.block_bits), []
        for words, escapes in list(zip(head.words, head.escapes, strict=True))[first : first + number]:
            places.append((place, place + 2 * lanes, place + 2 * lanes + words, place + 2 * lanes + words + escapes))
            place = places[-1][-1]
        first += number
        symbols = _decode_alike(stream, places, size, table)
        if code.escape:
            outside = symbols == len(code.frequencies) - 1
            if outside.sum(1).tolist() != [end - begin for _, _, begin, end in places]:
                raise CodeError("a block of levels has another number of escapes than it says")
            symbols[outside] = torch.cat([stream[begin:end] for _, _, begin, end in places])
        made.append(symbols.reshape(-1))
    return place, torch.cat(made)


def _decode_alike(stream: Tensor, places: list[tuple[int, int, int, int]], values: int, table: Table) -> Tensor:
    """Symbols ``[blocks, values]``; places: of each block's states, words, escapes and end."""
    frequencies, starts = table
    numbers = torch.arange(len(frequencies), dtype=torch.int64, device=stream.device)
    symbol_of = torch.repeat_interleave(numbers, frequencies)
    pairs = torch.stack([stream[begin:words].view(-1, 2) for begin, words, _, _ in places])
    states = pairs[..., 0] | pairs[..., 1] << 16
    if bool((states < LOWEST_STATE).any()):
        raise CodeError("a block of levels begins with a state that is none")
    bounds = stream.new_tensor([(words, escapes) for _, words, escapes, _ in places])
    place, end = bounds[:, :1], bounds[:, 1:]
    symbols = stream.new_empty((len(places), values))
    lanes = states.shape[1]
    for begin in range(0, values, lanes):
        live = states[:, : min(lanes, values - begin)]
        slots = live & (SLOTS - 1)
        symbol = symbol_of[slots]
        live = frequencies[symbol] * (live >> PROBABILITY_BITS) + slots - starts[symbol]
        low = live < LOWEST_STATE
        after = low.cumsum(1)
        if bool((place + after[:, -1:] > end).any()):
            raise CodeError("a block of levels has fewer words than it needs")
        words = stream[(place + after - 1).clamp(0, len(stream) - 1)]
        states[:, : live.shape[1]] = torch.where(low, live << 16 | words, live)
        place = place + after[:, -1:]
        symbols[:, begin : begin + live.shape[1]] = symbol
    if bool((place != end).any()) or bool((states != LOWEST_STATE).any()):
        raise CodeError("a block of levels does not end as it should")
    return symbols


def _halves(words: Tensor) -> Tensor:
    """The low and the high 16 bits of each word of 32, in turn."""
    return torch.stack([words & 0xFFFF, words >> 16 & 0xFFFF], dim=-1).reshape(-1).long()


def _int16(words: Tensor) -> Tensor:
    return (((words & 0xFFFF) ^ 0x8000) - 0x8000).to(torch.int16)
