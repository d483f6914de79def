"""The one public view of a quantizer's weights: ``quantizer.weights``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .selection import QuantizedParameter


class Weight:
    """One place of a quantised weight in a model, read anew each time.

    Attributes:
        name: the full name, ``"<module name>.<parameter name>"``.
    """

    def __init__(self, entry: QuantizedParameter, widths: Callable[[QuantizedParameter], Tensor | None]) -> None:
        self._entry, self._widths = entry, widths
        self.name = entry.full_name

    @property
    def parameter(self) -> nn.Parameter:
        """The float weight."""
        return self._entry.param

    @property
    def learned(self) -> nn.Parameter | None:
        """What the quantizer learns for it: logits ``[groups]``, a scale, or None."""
        return None if self._entry.original.learned_name is None else self._entry.logit

    @property
    def ends(self) -> nn.Parameter | None:
        """The ends of its ranges, ``[1 or groups, 2]``, where they are learned beside the bits; else None."""
        return None if self._entry.original.ends_name is None else self._entry.ends

    @property
    def tied_to(self) -> str | None:
        """The name of the place of the same tensor that owns widths and noise; None for that place itself."""
        return None if self._entry.tied_to is None else self._entry.tied_to.full_name

    @property
    def widths(self) -> Tensor | None:
        """uint8 ``[groups]``: the whole number of bits of each group in an export; None where bits are not learned."""
        return self._widths(self._entry)

    def parameters(self) -> list[nn.Parameter]:
        """The weight, and what is learned for it, if anything is."""
        return self._entry.params

    def __repr__(self) -> str:
        tied = f", tied_to={self.tied_to!r}" if self.tied_to else ""
        return f"Weight({self.name!r}, {list(self.parameter.shape)}{tied})"
