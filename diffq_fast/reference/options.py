"""How noise is made of weights and logits, and the names that are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

PARAMS = ("bits", "noise")
NOISE_KINDS = ("uniform", "gaussian")


class NoiseOptions(NamedTuple):
    """Options of ``add_noise``.

    Attributes:
        group_size: elements that share a logit; 0: the whole weight is one group.
        min_bits, max_bits, param: the rule by which logits become bits, see
            :func:`diffq_fast.functional.bits_from_logits`.
        noise_kind: ``"gaussian"`` (N(0, 1)/2) or ``"uniform"`` (U[-1/2, 1/2)), in units of one step.
        range_scope: ``"tensor"`` or ``"group"``: whose smallest and largest element make the range.
    """

    group_size: int = 8
    min_bits: float = 2.0
    max_bits: float = 15.0
    param: str = "bits"
    noise_kind: str = "gaussian"
    range_scope: str = "tensor"

    @property
    def per_group(self) -> bool:
        """Whether each group has its own range."""
        return self.range_scope == "group"

    @property
    def rule(self) -> tuple[float, float, str]:
        """``min_bits, max_bits, param``."""
        return self.min_bits, self.max_bits, self.param

    def operator_arguments(self) -> tuple[int, float, float, str, str, bool]:
        """The same as the operators' schemas have them."""
        limits = float(self.min_bits), float(self.max_bits)
        return self.group_size, *limits, self.param, self.noise_kind, self.range_scope == "group"

    @classmethod
    def from_operator(
        cls, group_size: int, min_bits: float, max_bits: float, param: str, noise_kind: str, per_group: bool
    ) -> NoiseOptions:
        """The inverse of :meth:`operator_arguments`.

        Raises:
            ValueError: ``param`` or ``noise_kind`` is none that is known.
        """
        if param not in PARAMS:
            raise unknown_choice("add_noise", "param", param, PARAMS)
        check_kind("add_noise", noise_kind)
        return cls(group_size, min_bits, max_bits, param, noise_kind, "group" if per_group else "tensor")

    @classmethod
    def with_dtype(cls, arguments: Sequence[Any]) -> tuple[NoiseOptions, torch.dtype | None]:
        """The options and the dtype behind them, which the dispatcher leaves out where it is None."""
        return cls.from_operator(*arguments[:6]), arguments[6] if len(arguments) > 6 else None


def check_kind(who: str, noise_kind: str) -> None:
    """ValueError for a kind of noise that is not known."""
    if noise_kind not in NOISE_KINDS:
        raise unknown_choice(who, "noise_kind", noise_kind, NOISE_KINDS)


def unknown_choice(who: str, argument: str, value: str, choices: Iterable[str]) -> ValueError:
    """What is told of a value that is none of ``choices``."""
    return ValueError(f"{who}: {argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")
