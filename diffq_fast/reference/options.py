"""The options of the noise, as one value."""

from __future__ import annotations

from typing import NamedTuple


class NoiseOptions(NamedTuple):
    """How noise is added to weights: groups, the rule from logits to bits, the noise, and the scope of the ranges."""

    group_size: int = 8
    min_bits: float = 2.0
    max_bits: float = 15.0
    param: str = "bits"
    noise_kind: str = "gaussian"
    range_scope: str = "tensor"

    @property
    def per_group(self) -> bool:
        """Whether each group has a range of its own."""
        return self.range_scope == "group"

    def operator_arguments(self) -> tuple[int, float, float, str, str, bool]:
        """The options as the operators take them, in the order of their schemas."""
        return self.group_size, self.min_bits, self.max_bits, self.param, self.noise_kind, self.per_group
