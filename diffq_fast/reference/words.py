"""The oracle of packing levels into 32-bit words: the layout of ``docs/packed_format.md``."""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import per_element
from .sizes import BLOCK, LANES, MAX_WIDTH, stream_words


def pack(levels: Tensor, widths: Tensor, group_size: int) -> Tensor:
    """int32 words of a weight: its streams, one per width that occurs, in ascending order of width."""
    flat = levels.reshape(-1)
    width_of = per_element(widths, flat.numel(), group_size)
    streams = [pack_stream(flat[width_of == width], width) for width in range(1, MAX_WIDTH + 1)]
    return torch.cat(streams)


def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    """int32 levels ``[count]``: inverse of :func:`pack`."""
    levels = words.new_zeros(count)
    width_of = per_element(widths, count, group_size)
    start = 0
    for width in range(1, MAX_WIDTH + 1):
        members = width_of == width
        size = int(members.sum())
        stop = start + stream_words(size, width)
        levels[members] = unpack_stream(words[start:stop], width, size)
        start = stop
    return levels


def pack_stream(levels: Tensor, width: int) -> Tensor:
    """int32 words of one stream: blocks of 1,024 levels over 32 lanes, the last block over fewer lanes."""
    whole = levels.numel() // BLOCK * BLOCK
    rest = levels[whole:]
    lanes = -(-rest.numel() // LANES)
    rest = torch.nn.functional.pad(rest, (0, lanes * LANES - rest.numel()))
    full_blocks = _pack_blocks(levels[:whole].view(-1, 32, LANES), width)
    last_block = _pack_blocks(rest.view(1, 32, lanes), width)
    return torch.cat([full_blocks.reshape(-1), last_block.reshape(-1)])


def _pack_blocks(rows: Tensor, width: int) -> Tensor:
    """``[blocks, 32, lanes] -> [blocks, width, lanes]``: row r takes bits [r * width, (r + 1) * width) of its lane."""
    rows = rows.to(torch.int64)
    words = rows.new_zeros((rows.shape[0], width, rows.shape[2]))
    for row in range(32):
        word, shift = divmod(row * width, 32)
        words[:, word] |= (rows[:, row] << shift) & 0xFFFFFFFF
        if shift + width > 32:
            words[:, word + 1] |= rows[:, row] >> (32 - shift)
    return ((words ^ 0x80000000) - 0x80000000).to(torch.int32)


def unpack_stream(words: Tensor, width: int, count: int) -> Tensor:
    """int32 ``[count]``: inverse of :func:`pack_stream`."""
    whole = count // BLOCK
    split = whole * width * LANES
    lanes = -(-(count - whole * BLOCK) // LANES)
    full_blocks = _unpack_blocks(words[:split].view(-1, width, LANES), width)
    last_block = _unpack_blocks(words[split:].view(1, width, lanes), width)
    return torch.cat([full_blocks.reshape(-1), last_block.reshape(-1)])[:count]


def _unpack_blocks(words: Tensor, width: int) -> Tensor:
    words = words.to(torch.int64) & 0xFFFFFFFF
    rows = []
    for row in range(32):
        word, shift = divmod(row * width, 32)
        value = words[:, word] >> shift
        if shift + width > 32:
            value = value | (words[:, word + 1] << (32 - shift))
        rows.append(value & (2**width - 1))
    return torch.stack(rows, dim=1).to(torch.int32)
