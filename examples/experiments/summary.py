"""What the stored runs of a task say: per method, means over seeds and the paired difference from float32."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mnist_claim
import numpy as np

from .grid import SEEDS, TASKS
from .store import results_path
from .task import Task
from .training import expanded

NOT_CODED = ("float32", "ptq")  # what runs beside the coded methods, to hold them against


class Result(NamedTuple):
    """One method over its seeds. Sizes in MB; spreads are standard deviations over seeds; the difference from float32
    is in the task's `difference_unit`, positive where the method is better, with a 95 % interval."""

    label: str
    kind: str
    seeds: int
    times_smaller: float
    megabytes: float
    megabytes_on_disk: float
    quality: float
    quality_spread: float
    difference: float
    interval: tuple[float, float]
    on_front: bool = False


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def coded_rows(task: str) -> list[dict[str, Any]]:
    """The stored runs of RateQuantizer and of float32 beside them; none if there are none."""
    path = results_path(f"{task}_coded", quick=False)
    return list(read(path)["rows"]) if path.exists() else []


def summarise(
    task: Task, rows: list[dict[str, Any]], renewed: bool = False, coded: list[dict[str, Any]] | None = None
) -> list[Result]:
    """One result per method, smallest model last; methods without a float32 run of the same seed are left out.

    `renewed`: the runs with renewed batch statistics, float32 too, instead of those as trained.
    `coded`: the runs of RateQuantizer, each held against the float32 run that was trained beside it.
    """
    results = paired(task, rows, renewed)
    results += [found for found in paired(task, coded or [], renewed) if found.kind not in NOT_CODED]
    results.sort(key=lambda found: -found.megabytes)
    return [found._replace(on_front=is_on_front(task, found, results)) for found in results]


def paired(task: Task, rows: list[dict[str, Any]], renewed: bool) -> list[Result]:
    """The results of runs that were made together."""
    kept = [row for row in rows if row["method"].get("renewed", False) == renewed]
    plain = {row["seed"]: row for row in kept if row["method"]["kind"] == "float32"}
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in kept:
        if row["seed"] in plain:
            by_label.setdefault(row["label"], []).append(row)
    return [result(task, found, plain) for found in by_label.values()]


def result(task: Task, rows: list[dict[str, Any]], plain: dict[int, dict[str, Any]]) -> Result:
    """The means of one method's runs; the interval draws seeds and held-out examples anew, paired with float32."""
    against = [plain[row["seed"]] for row in rows]
    differences = np.stack(
        [
            task.differences(expanded(row["scores"]), expanded(other["scores"]))
            for row, other in zip(rows, against, strict=True)
        ]
    )
    qualities = np.array([row["quality"] for row in rows])
    return Result(
        label=rows[0]["label"],
        kind=rows[0]["method"]["kind"],
        seeds=len(rows),
        times_smaller=mean([other["megabytes"] / row["megabytes"] for row, other in zip(rows, against, strict=True)]),
        megabytes=mean([row["megabytes"] for row in rows]),
        megabytes_on_disk=mean([row["megabytes_on_disk"] for row in rows]),
        quality=float(qualities.mean()),
        quality_spread=float(qualities.std(ddof=1)) if len(rows) > 1 else float("nan"),
        difference=float(differences.mean()),
        interval=mnist_claim.bootstrap_interval(differences) if differences.any() else (0.0, 0.0),
    )


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def is_on_front(task: Task, found: Result, results: list[Result]) -> bool:
    """Whether no other method, run on at least as many seeds, is both smaller and better. One of a single seed is not
    marked: its quality is not known well enough."""
    sign = 1 if task.higher_is_better else -1
    rivals = [other for other in results if other.seeds >= found.seeds and other.label != found.label]
    beaten = any(r.megabytes <= found.megabytes and sign * r.quality >= sign * found.quality for r in rivals)
    return found.seeds >= min(len(SEEDS), max(r.seeds for r in results)) and not beaten


def task_named(name: str) -> Task:
    return TASKS[name]()
