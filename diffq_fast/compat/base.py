"""diffq's module ``diffq.base``: what the quantizers share, and reading a stored state."""

from ..quantizers.base import BaseQuantizer
from ..quantizers.restore import restore_quantized_state

__all__ = ["BaseQuantizer", "restore_quantized_state"]
