"""The arguments that a quantizer was made with."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from .collector import collector_paused

Init = TypeVar("Init", bound=Callable[..., None])


def remembers_arguments(init: Init) -> Init:
    """Keep the arguments that the caller of ``__init__`` gave, by name, as ``self.arguments``, without the model. The
    garbage collector rests meanwhile."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}; its arguments are {signature}") from None
        self.arguments = {name: value for name, value in given.items() if name not in ("self", "model")}
        with collector_paused():
            init(self, *args, **kwargs)

    return cast(Init, wrapped)  # so that type checkers and editors see the arguments


def check_number(who: str, argument: str, value: Any) -> float:
    """A number, or a tensor of one, as a float; TypeError for anything else, ValueError for NaN."""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"{who}: {argument} must be a number, got {value!r:.60}")
    number = float(value)
    if math.isnan(number):
        raise ValueError(f"{who}: {argument} must be a number, got nan")
    return number


def with_defaults(quantizer: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a quantizer's class, those that are not given as they are when left out."""
    parameters = inspect.signature(quantizer).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty} | dict(given)


def without_keyword_only(quantizer: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that diffq knows too: this package's own are keyword-only."""
    parameters = inspect.signature(quantizer).parameters
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return {name: value for name, value in given.items() if parameters[name].kind is not keyword_only}


def described(quantizer: Any) -> str:
    """The class's name, and the arguments that differ from their defaults."""
    parameters = inspect.signature(type(quantizer)).parameters
    values = {name: getattr(quantizer, name) for name in parameters if name != "model"}
    changed = [f"{name}={value}" for name, value in values.items() if value != parameters[name].default]
    return f"{type(quantizer).__name__}({','.join([f'model={quantizer.model!r}', *changed])})"
