"""Stored results: one JSON file per task, with every run's rows and what they were measured on and with."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import mnist_claim

from diffq_fast.files.atomic_file import atomic_file

from .task import Recipe

RESULTS = Path("benchmarks/results")


class Store:
    """The rows of one task's runs. A file made with another recipe, other versions or on another machine is not gone
    on with: it is begun anew."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.conditions = conditions_of(recipe)
        self.commit = mnist_claim.commit()
        self.rows = self._stored()

    def _stored(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        stored = json.loads(self.path.read_text())
        if {name: stored[name] for name in self.conditions} == self.conditions:
            return list(stored["rows"])
        print(f"{self.path} was measured under other conditions: beginning anew", flush=True)
        return []

    def has(self, label: str, seed: int) -> bool:
        return any(row["label"] == label and row["seed"] == seed for row in self.rows)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add rows in the place of earlier ones of the same label and seed, and write the file all at once.

        What another process has added meanwhile stays.
        """
        self.rows = self._stored()
        fresh = {(row["label"], row["seed"]) for row in rows}
        kept = [row for row in self.rows if (row["label"], row["seed"]) not in fresh]
        self.rows = sorted(kept + [row | {"commit": self.commit} for row in rows], key=lambda row: row["seed"])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as file:
            file.write(self.text().encode())

    def text(self) -> str:
        """JSON with one line for each row: the scores of the held-out examples make long lines, but readable files."""
        head = json.dumps(self.conditions, indent=1)[:-2]
        rows = ",\n".join("  " + json.dumps(row) for row in self.rows)
        return f'{head},\n "rows": [\n{rows}\n ]\n}}\n'


def conditions_of(recipe: Recipe) -> dict[str, Any]:
    conditions = mnist_claim.conditions() | {"recipe": recipe.stored()}
    return dict(json.loads(json.dumps(conditions)))  # as they will be read: tuples are lists then


def paths_of(experiment: str) -> Iterator[Path]:
    """Where an experiment that several machines add rows to keeps them: a file for each, without end."""
    yield results_path(experiment, quick=False)
    for index in count(1):
        yield results_path(f"{experiment}_more{index if index > 1 else ''}", quick=False)


def continued(experiment: str, recipe: Recipe) -> Store:
    """The store of these conditions, beside those of others, which stay as they are."""
    conditions = conditions_of(recipe)

    def fits(path: Path) -> bool:
        stored = json.loads(path.read_text()) if path.exists() else conditions
        return {name: stored.get(name) for name in conditions} == conditions

    return Store(next(filter(fits, paths_of(experiment))), recipe)


def results_path(task: str, quick: bool) -> Path:
    """Results of `--quick` never mix with the full ones, and are not kept in the repository."""
    return Path("build/experiments/quick") / f"{task}.json" if quick else RESULTS / f"experiment_{task}.json"
