"""Which cases of parametrised tests a short run leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def items_left_out(items: Sequence[Any], most: int) -> set[Any]:
    """The cases of parametrised tests but for ``most`` of each, which are spread over them evenly: first and last."""
    cases: dict[str, list[Any]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[Any] = set()
    for of_test in cases.values():
        last, steps = len(of_test) - 1, max(most - 1, 1)
        chosen = {last * step // steps for step in range(most)} if last >= most else range(last + 1)
        left_out.update(item for index, item in enumerate(of_test) if index not in chosen)
    return left_out
