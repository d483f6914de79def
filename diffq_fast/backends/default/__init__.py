"""The reference as kernels, registered for every device: what runs where no other backend has a kernel."""

from __future__ import annotations

from .add_noise import add_noise, add_noise_backward
from .coding import decode_levels, encode_levels
from .noise import draw_key, noise
from .packed_rows import pack_rows, packed_linear, unpack_rows
from .planes import pack_planes, pack_planes_seen, quantize_planes, unpack_planes
from .quantize import dequantize, fake_quantize, quantize
from .uniform_noise import add_uniform_noise, add_uniform_noise_backward
from .weight_range import weight_range
from .weight_sizes import weight_sizes, weight_sizes_backward
from .widths import count_widths, widths_from_logits
from .words import pack, quantize_pack, unpack, unpack_dequantize

__all__ = [
    "add_noise",
    "add_noise_backward",
    "add_uniform_noise",
    "add_uniform_noise_backward",
    "count_widths",
    "decode_levels",
    "dequantize",
    "draw_key",
    "encode_levels",
    "fake_quantize",
    "noise",
    "pack",
    "pack_planes",
    "pack_planes_seen",
    "pack_rows",
    "packed_linear",
    "quantize",
    "quantize_pack",
    "quantize_planes",
    "unpack",
    "unpack_dequantize",
    "unpack_planes",
    "unpack_rows",
    "weight_range",
    "weight_sizes",
    "weight_sizes_backward",
    "widths_from_logits",
]
