"""How long the values of a pickle are when they are written out.

A pickle may hold one object many times: (t, t) nested forty times takes 300 bytes, but its ``repr``, its JSON and its
hash take 2**40 steps. So what was unpickled is measured first, each object once.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

MAX_DEPTH = 64


def check_written_out(value: Any, limit: int) -> None:
    """Refuse values that hold themselves, are nested more than 64 deep, or have more than ``limit`` parts or
    characters when everything is written out wherever it occurs.

    Raises:
        pickle.UnpicklingError: naming which of these.
    """
    sizes: dict[int, int] = {}
    ancestors: list[int] = []
    above: set[int] = set()
    stack = [value]
    while stack:
        part = stack[-1]
        if id(part) in sizes or not _holds(part):
            stack.pop()
        elif ancestors and ancestors[-1] == id(part):
            above.discard(ancestors.pop())
            sizes[id(part)] = size = 1 + sum(sizes.get(id(each)) or _length(each) for each in _children(part))
            if size > limit:
                raise pickle.UnpicklingError(f"its values take more than {limit:,} parts when they are written out")
        else:
            ancestors.append(id(part))
            above.add(id(part))
            if len(ancestors) > MAX_DEPTH:
                raise pickle.UnpicklingError(f"its values are nested more than {MAX_DEPTH} deep")
            inner = [each for each in _children(part) if _holds(each) and id(each) not in sizes]
            if any(id(each) in above for each in inner):
                raise pickle.UnpicklingError("its values hold themselves")
            stack.extend(inner)
    if _length(value) > limit:
        raise pickle.UnpicklingError(f"its values take more than {limit:,} parts when they are written out")


def _holds(value: Any) -> bool:
    return (isinstance(value, list | tuple | dict | set | frozenset) and len(value) > 0) or _is_inert(value)


def _is_inert(value: Any) -> bool:
    return hasattr(value, "parts_of_inert") and not isinstance(value, type)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    else:
        parts: Iterable[Any] = value.parts_of_inert() if _is_inert(value) else value
        yield from parts


def _length(value: Any) -> int:
    """Of a value that holds no others."""
    if isinstance(value, str | bytes):
        return 1 + len(value)
    if isinstance(value, int):
        return 1 + value.bit_length() // 3
    return 1 + len(getattr(value, "legacy_name", ""))
