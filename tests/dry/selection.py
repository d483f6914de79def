"""A plugin of pytest: of each test a few parameters, with little data."""

from __future__ import annotations

from typing import Any

from .sizes import PARAMETERS, SIZES, make_small


def _some(items: list[Any]) -> list[Any]:
    """Of the items of one test; a benchmark, whose names are all different work, keeps all."""
    return list(dict.fromkeys([*items[: PARAMETERS - 1], items[-1]])) if items[0].module.__name__ in SIZES else items


class Selection:
    def pytest_sessionstart(self, session: Any) -> None:
        """What the suite of ``bench_gpu.py`` takes from a script."""
        if any("bench_gpu" in str(argument) for argument in session.config.args):
            import measure_gpu_operators

            make_small(measure_gpu_operators)

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        of_test: dict[str, list[Any]] = {}
        for item in items:
            of_test.setdefault(f"{item.path}::{item.originalname}", []).append(item)
        for module in {item.module for item in items}:
            if module.__name__ in SIZES:
                make_small(module)
        kept = [each for same in of_test.values() for each in _some(same)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
