"""Which of the warps that could go on does. Without a schedule, all threads go on that stand at the earliest block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Given the numbers of the units (warps, or blocks of threads) that can go on: the one that does.
Schedule = Callable[[np.ndarray], int]


def random_order(seed: int) -> Schedule:
    generator = np.random.default_rng(seed)
    return lambda units: int(generator.choice(units))


def starving(seed: int, spell: int = 400, most: int = 64) -> Schedule:
    """An adversary: one unit goes on only when nothing else can; after ``spell`` steps it is another one's turn."""
    generator, state = np.random.default_rng(seed), {"steps": 0, "victim": 0}

    def choose(units: np.ndarray) -> int:
        state["steps"] += 1
        if state["steps"] % spell == 0:
            state["victim"] = int(generator.integers(0, most))
        others = units[units != state["victim"]]
        return int(generator.choice(others)) if len(others) else int(units[0])

    return choose


def greedy(seed: int, spell: int = 200) -> Schedule:
    """One unit goes on alone for as long as it can, up to ``spell`` steps; then another."""
    generator, state = np.random.default_rng(seed), {"left": 0, "current": -1}

    def choose(units: np.ndarray) -> int:
        state["left"] -= 1
        if state["left"] < 0 or state["current"] not in units:
            state["left"], state["current"] = spell, int(generator.choice(units))
        return state["current"]

    return choose


SCHEDULES = {"random": random_order, "starving": starving, "greedy": greedy}
