"""diffq's module ``diffq.lsq``: quantisation with a learned scale for each weight."""

from ..quantizers.lsq import LSQ

__all__ = ["LSQ"]
