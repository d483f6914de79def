"""diffq's module ``diffq.diffq``: the learned-bit-width quantizer."""

from ..quantizers.diffq import DiffQuantizer

__all__ = ["DiffQuantizer"]
