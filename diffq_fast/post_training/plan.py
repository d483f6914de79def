"""What is asked of a packing: its size or its quality, and which tensors are packed, at what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..packed.checkpoint import MEGABYTE
from ..packed.tensor import PACKABLE
from .sources import Entry, Source

DEFAULT_BITS = 4.0
MOST_BITS = 15.0


@dataclass(frozen=True)
class Target:
    """One of three; without any, 4 bits per weight.

    bits_per_weight: bits of the packed weights (levels, steps, tables) over their elements, those of ``keep`` apart.
    target_mb: megabytes (2^20 bytes) of the whole file. quality: decibels of signal to noise, see the packer.
    """

    bits_per_weight: float | None = None
    target_mb: float | None = None
    quality: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"pack: expected one of bits_per_weight, target_mb and quality, got {', '.join(given)}")
        for name, value in given.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
                raise ValueError(f"pack: {name} must be a number above 0, got {value}")


@dataclass(frozen=True)
class Selection:
    """Which tensors are packed: floating ones of two dimensions or more, above a size.

    min_size: MB of float32 (2^20 bytes); smaller tensors are kept as they are.
    keep: fnmatch pattern, on the whole name or its last part, -> bits per weight, or None to keep the tensor as it is.
    The first pattern that fits counts.
    """

    min_size: float = 0.01
    keep: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if math.isnan(self.min_size):
            raise ValueError("pack: min_size must be a number of MB, got nan")
        for pattern, bits in self.keep.items():
            wanted = f"pack: keep {pattern}: expected bits above 0 and at most {MOST_BITS:g}"
            if bits is not None and (isinstance(bits, bool) or not isinstance(bits, (int, float))):
                raise TypeError(f"{wanted}, or None, got {bits!r:.60}")
            if bits is not None and not 0 < bits <= MOST_BITS:
                raise ValueError(f"{wanted}, got {bits}")

    def override(self, name: str) -> tuple[bool, float | None]:
        """(whether a pattern fits, its bits)."""
        for pattern, bits in self.keep.items():
            if any(fnmatchcase(part, pattern) for part in (name, name.split(".")[-1])):
                return True, bits
        return False, None

    def packs(self, name: str, entry: Entry) -> bool:
        """Whether this tensor is packed."""
        if entry.dtype not in PACKABLE or not entry.count:
            return False
        kept = self.override(name) == (True, None)
        return not kept and len(entry.shape) >= 2 and entry.count > self.min_size * MEGABYTE / 4

    def check_patterns(self, source: Source) -> None:
        """Raise ValueError for a pattern that fits no tensor: a misspelt name must not be packed in silence."""
        for pattern in self.keep:
            alone = Selection(keep={pattern: None})
            if not any(alone.override(name)[0] for name in source.entries):
                raise ValueError(f"pack: keep {pattern}: no tensor of {source.path} has such a name")
