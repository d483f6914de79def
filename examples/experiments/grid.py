"""Runs all that is not yet stored, some trainings at a time, each on one thread in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import mnist

from .images import ImagesResnet, ImagesVit
from .methods import Method, coded_methods, core_methods, secondary_methods
from .music import Music
from .store import Store, results_path
from .task import Recipe, Task
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
    """What to run. quick: one seed, a quarter of the steps, stored elsewhere. coded: RateQuantizer and float32 alone,
    stored beside the others."""

    tasks: tuple[str, ...]
    seeds: tuple[int, ...] = SEEDS
    quick: bool = False
    coded: bool = False

    def path(self, name: str) -> Path:
        return results_path(f"{name}_coded" if self.coded else name, self.quick)

    def task(self, name: str) -> Task:
        task = TASKS[name]()
        if self.quick:
            task.recipe = task.recipe.shortened(QUICK_SHARE)
        return task

    def cache(self) -> Path:
        return CACHE / "quick" if self.quick else CACHE


def stages(plan: Plan, stores: dict[str, Store]) -> list[list[Unit]]:
    """What is missing, in the order in which it has to be done: for each seed the starts, then the core of the
    methods; at last the secondary ones of the first seed. Each stage needs the one before it."""
    ordered: list[list[Unit]] = []
    for seed in plan.seeds:
        ordered += with_starts(plan, missing(plan, stores, seed, coded_methods if plan.coded else core_methods))
    if not plan.quick and not plan.coded and SEEDS[0] in plan.seeds:
        ordered += with_starts(plan, missing(plan, stores, SEEDS[0], secondary_methods))
    return [stage for stage in ordered if stage]


def missing(plan: Plan, stores: dict[str, Store], seed: int, methods: Callable[[Recipe], list[Method]]) -> list[Unit]:
    """The trainings of a seed that are not stored yet."""
    wanted = [Unit(name, seed, method) for name in plan.tasks for method in methods(plan.task(name).recipe)]
    return [unit for unit in wanted if not stores[unit.task].has(unit.label, seed)]


def with_starts(plan: Plan, trainings: list[Unit]) -> list[list[Unit]]:
    """(the starts that these trainings need and that are not kept yet, the trainings)."""
    starts = dict.fromkeys(Unit(unit.task, unit.seed, None) for unit in trainings)
    kept = {unit for unit in starts if starting_path(unit.task, unit.seed, plan.cache()).exists()}
    return [[unit for unit in starts if unit not in kept], trainings]


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
    stores = {name: Store(plan.path(name), plan.task(name).recipe) for name in plan.tasks}
    for name in plan.tasks:
        plan.task(name).load()  # renders what has to be rendered, once
    ordered = stages(plan, stores)
    behind = sum(map(len, ordered))
    print(f"{behind} trainings are missing", flush=True)
    context = multiprocessing.get_context("spawn")
    started, done = time.perf_counter(), 0
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for stage in ordered:
            pending = {}
            for unit in stage:
                behind -= 1
                pending[pool.submit(work, plan, unit, behind / jobs)] = unit
            for number, future in enumerate(as_completed(pending), start=done + 1):
                if future.exception():
                    pool.shutdown(cancel_futures=True)
                unit = pending[future]
                stores[unit.task].add(future.result())
                minutes = (time.perf_counter() - started) / 60
                print(
                    f"== {number} done after {minutes:.1f} min: {unit.task} seed {unit.seed} {unit.label}", flush=True
                )
            done += len(stage)
