"""What long runs of this folder keep: outcomes that a later run need not find again, and the tables made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from support.paths import ROOT

PAGE = ROOT / "docs" / "gpu_emulator.md"
KERNELS = ("diffq_fast/backends/triton/*.py", "diffq_fast/reference/*.py", "tests/ptx/*.py")


def fingerprint(*names: str) -> str:
    """Of the kernels, the oracle, the emulator, and these files of this folder."""
    files = [path for pattern in KERNELS for path in sorted(ROOT.glob(pattern))]
    files += [Path(__file__).parent / name for name in names]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


class Outcomes:
    """By keys of several words, in a file of ``build``: one line each, those of other ``sources`` left alone."""

    def __init__(self, name: str, sources: str) -> None:
        self.path, self.sources = ROOT / "build" / name, sources
        self.path.parent.mkdir(exist_ok=True)
        rows = map(json.loads, self.path.read_text().splitlines() if self.path.exists() else ())
        self.known: dict[tuple, str] = {tuple(row["key"]): row["outcome"] for row in rows if row["sources"] == sources}

    def add(self, key: tuple, outcome: str) -> None:
        self.known[key] = outcome
        with self.path.open("a") as file:
            file.write(json.dumps({"sources": self.sources, "key": key, "outcome": outcome}) + "\n")


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_table(page: str, name: str, new: str) -> str:
    """The page with this table in place of the one between the marks of ``name``."""
    begin, end = f"<!-- table: {name} -->\n", f"<!-- end of table: {name} -->\n"
    head, rest = page.split(begin)
    return head + begin + new + end + rest.split(end)[1]
