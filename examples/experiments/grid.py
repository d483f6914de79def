"""Runs all that is not yet stored, some trainings at a time, each on one thread in a process of its own."""

import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import mnist

from .images import ImagesResnet, ImagesVit
from .methods import Method, core_methods, secondary_methods
from .music import Music
from .store import Store, results_path
from .task import Task
from .text import Text
from .training import run, starting_network, starting_path

TASKS: dict[str, type[Task]] = {task.name: task for task in (ImagesVit, ImagesResnet, Text, Music)}
CACHE = Path("build/experiments")
SEEDS = (0, 1, 2)
QUICK_SHARE = 0.25  # of the steps


class Unit(NamedTuple):
    """One training of the grid. No method: the float32 network that a seed's other trainings start from."""

    task: str
    seed: int
    method: Method | None

    @property
    def label(self) -> str:
        return self.method.label if self.method else "start"


class Plan(NamedTuple):
    """What to run. quick: one seed, a quarter of the steps, stored elsewhere."""

    tasks: tuple[str, ...]
    seeds: tuple[int, ...] = SEEDS
    quick: bool = False

    def task(self, name: str) -> Task:
        task = TASKS[name]()
        if self.quick:
            task.recipe = task.recipe.shortened(QUICK_SHARE)
        return task

    def cache(self) -> Path:
        return CACHE / "quick" if self.quick else CACHE


def units(plan: Plan, stores: dict[str, Store]) -> tuple[list[Unit], list[Unit]]:
    """(starts, trainings) that are missing: of the core for each seed in turn, then the secondary ones of one seed."""
    missing = []
    for name in plan.tasks:
        recipe = plan.task(name).recipe
        wanted = [Unit(name, seed, method) for seed in plan.seeds for method in core_methods(recipe)]
        wanted += [Unit(name, plan.seeds[0], method) for method in secondary_methods(recipe) if not plan.quick]
        missing += [unit for unit in wanted if not stores[name].has(unit.label, unit.seed)]
    starts = dict.fromkeys(Unit(unit.task, unit.seed, None) for unit in missing)
    return [unit for unit in starts if not starting_path(unit.task, unit.seed, plan.cache()).exists()], missing


_loaded: dict[str, Task] = {}  # of this process, so that its next training finds the data read


def work(plan: Plan, unit: Unit, rounds: float) -> list[dict[str, Any]]:
    """One unit in a process of its own. `rounds`: how many trainings of this length the grid still needs after it."""
    mnist.use_one_thread()
    if unit.task not in _loaded:
        _loaded.clear()
        _loaded[unit.task] = plan.task(unit.task)
        _loaded[unit.task].load()
    started = time.perf_counter()

    def report(share: float, text: str) -> None:
        each = (time.perf_counter() - started) / share
        left = each * (1 - share + rounds) / 60
        print(f"{unit.task} seed {unit.seed} {unit.label}: {share:4.0%}, {text}; {left:.1f} min left", flush=True)

    task = _loaded[unit.task]
    if unit.method is None:
        starting_network(task, unit.seed, plan.cache(), report)
        return []
    return run(task, unit.method, unit.seed, plan.cache(), report)


def run_grid(plan: Plan, jobs: int) -> None:
    """Run what is missing; each result is stored as soon as it is there, so that the next start goes on."""
    mnist.use_one_thread()
    stores = {name: Store(results_path(name, plan.quick), plan.task(name).recipe) for name in plan.tasks}
    for name in plan.tasks:
        plan.task(name).load()  # renders what has to be rendered, once
    starts, trainings = units(plan, stores)
    print(f"{len(starts)} trainings from scratch and {len(trainings)} from there are missing", flush=True)
    context = multiprocessing.get_context("spawn")
    started, after = time.perf_counter(), len(trainings)
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for stage, behind in ((starts, after), (trainings, 0)):
            pending = submit(pool, plan, stage, behind, jobs)
            for number, done in enumerate(as_completed(pending), start=1):
                unit = pending[done]
                stores[unit.task].add(done.result())
                minutes = (time.perf_counter() - started) / 60
                print(f"== {number}/{len(stage)} done after {minutes:.1f} min: {unit.task} {unit.label}", flush=True)


def submit(pool: ProcessPoolExecutor, plan: Plan, stage: Iterable[Unit], behind: int, jobs: int) -> dict[Future, Unit]:
    stage = list(stage)
    rounds = [(len(stage) - number + behind) / jobs for number in range(1, len(stage) + 1)]
    return {pool.submit(work, plan, unit, left): unit for unit, left in zip(stage, rounds, strict=True)}
