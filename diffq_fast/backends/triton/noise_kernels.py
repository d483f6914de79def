"""The noise alone."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import tile_noise


@triton.jit(do_not_specialize=["stream", "begin", "count"])
def noise_kernel(key_ptr, stream, begin, count, noise_ptr, CONFIG: tl.constexpr):
    """``noise[i] = z(begin + i)``.

    ``key_ptr`` [] int64, read
    ``noise_ptr`` [count] float32, written

    One program handles one tile; the first one holds element ``begin``.
    """
    start = begin // CONFIG.tile * CONFIG.tile + tl.program_id(0).to(tl.int64) * CONFIG.tile
    z = tile_noise(start, stream.to(tl.uint32), tl.load(key_ptr), CONFIG, CONFIG.tile)
    element = start + tl.arange(0, CONFIG.tile)
    tl.store(noise_ptr + (element - begin), z, (element >= begin) & (element < begin + count))
