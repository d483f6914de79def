"""Other defaults of torch than float32 and the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

DEFAULTS = [torch.float64, torch.bfloat16, torch.float16, "meta"]


@contextmanager
def default(value: torch.dtype | str) -> Iterator[None]:
    """torch's default dtype, or its default device, for a while."""
    before = torch.get_default_dtype(), torch.get_default_device()
    (torch.set_default_device if isinstance(value, str) else torch.set_default_dtype)(value)
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_default_device(None if before[1] == torch.device("cpu") else before[1])
