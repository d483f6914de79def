"""The oracle of ``count_widths``. That of ``widths_from_logits`` is ``bits.whole_bits_from_logits``."""

from __future__ import annotations

import torch
from torch import Tensor

from .sizes import MAX_WIDTH


def count_widths(widths: Tensor) -> Tensor:
    """int64 ``[17]``: how many groups have 1, 2 … 16 bits; entry 0 counts the widths out of range."""
    flat = widths.reshape(-1).to(torch.int64)
    return torch.bincount(torch.where(flat <= MAX_WIDTH, flat, 0), minlength=MAX_WIDTH + 1)
