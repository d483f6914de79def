"""The quantizers by name: what files, stored states and the alias ask instead of knowing a class.

A quantizer is one file: its class, and one :func:`register` at its end.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..legacy.unpickler import legacy_name

HOMES = ("diffq", "diffq_fast")  # packages whose classes a stored state may name


class Levels(NamedTuple):
    """A quantised weight, before packing.

    levels: int32, the weight's shape. widths: uint8 ``[groups]``. ranges: float32 ``[1, 2]`` or ``[groups, 2]`` rows
    (lo, hi), or for ``range_scope`` "scale" the scale, 0-dim or ``[1]``. level_count: where there are others than
    ``2**width`` levels.
    """

    levels: Tensor
    widths: Tensor
    ranges: Tensor
    group_size: int
    range_scope: str = "tensor"
    level_count: int | None = None


class Rule(Protocol):
    """How what is learned for a weight and its packed form belong together.

    Attributes:
        suffix: of the learned parameters' names.
        noun: what errors call them.
        reach: what they can give, for warnings.
    """

    @property
    def suffix(self) -> str: ...
    @property
    def noun(self) -> str: ...
    @property
    def reach(self) -> str: ...

    def problem(self) -> str | None:
        """What is impossible about the rule, or None: it may come from a file."""

    def belongs_to(self, packed: Any) -> bool:
        """Whether such a packed weight has a learned parameter of this kind."""

    def shape(self, packed: Any) -> tuple[int, ...]:
        """Of the learned parameter."""

    def misfit(self, packed: Any, shape: list[int]) -> str:
        """Why a parameter of another shape cannot be the weight's."""

    def learned(self, packed: Any) -> Tensor:
        """The learned parameter with which the weight is packed like this again, or nearly so."""

    def changed(self, packed: Any, learned: Tensor) -> int:
        """How many groups would have another width with ``learned``."""

    def differing(self, stated: Any) -> dict[str, Any]:
        """The arguments that give other widths for the same learned values than the rule ``stated`` does."""


@dataclass(frozen=True)
class Scheme:
    """One way to quantise a model.

    Attributes:
        quantizer: the class, a ``base.BaseQuantizer``. Its name is the one in files.
        diffq_name: the dotted name that diffq has for it; None: diffq does not have it.
        rule: makes the rule of what is learned from the quantizer's arguments; None: nothing is learned.
        decode: makes levels of an entry of a stored state, given ``(stored, shape, arguments, name)``; None: diffq's
            states do not hold it.
        recognises: tells an entry of a state that does not say its quantizer.
        inferred: what the entries of such a state tell of the quantizer's arguments.
    """

    quantizer: type
    diffq_name: str | None = None
    rule: Callable[[Mapping[str, Any]], Rule] | None = None
    decode: Callable[[Any, Sequence[int], Mapping[str, Any], str], Levels] | None = None
    recognises: Callable[[Any], bool] | None = None
    inferred: Callable[[Sequence[Any]], dict[str, Any]] = lambda entries: {}

    @property
    def name(self) -> str:
        """The class's name."""
        return self.quantizer.__name__

    @property
    def stored_name(self) -> str:
        """The dotted name under which a stored state has the class."""
        return self.diffq_name or f"{self.quantizer.__module__}.{self.quantizer.__qualname__}"


_schemes: dict[str, Scheme] = {}


def register(scheme: Scheme) -> None:
    """Make a quantizer known by its class's name; a class that is defined anew replaces itself.

    Raises:
        ValueError: another class has the name.
    """
    known = _schemes.get(scheme.name)
    if known is not None and known.stored_name != scheme.stored_name:
        raise ValueError(
            f"register: {known.stored_name} has the name {scheme.name} already; rename {scheme.stored_name}"
        )
    _schemes[scheme.name] = scheme


def schemes() -> dict[str, Scheme]:
    """All registered quantizers by name; those of this folder are imported first."""
    _import_all()
    return dict(_schemes)


@cache
def _import_all() -> None:
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def scheme_named(name: str) -> Scheme | None:
    """The quantizer that a packed file names; None for a name that is not registered."""
    return _schemes.get(name) or schemes().get(name)


def scheme_of(klass: object) -> Scheme:
    """The quantizer of a class, or of the dotted name that a stored state has for one.

    Raises:
        ValueError: it is none that is registered.
    """
    full = legacy_name(klass)
    package, name = full.partition(".")[0], full.rpartition(".")[2]
    for scheme in schemes().values():
        if full == scheme.stored_name or (package in HOMES and name == scheme.name):
            return scheme
    expected = ", ".join(sorted(scheme.stored_name for scheme in schemes().values()))
    raise ValueError(f"legacy state: meta: klass must be one of {expected}, found {full:.80}")
