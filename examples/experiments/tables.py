"""Markdown tables of the stored results, put between marks into the documents."""

import re
from pathlib import Path

from .summary import Result
from .task import Task

AIMED_TIMES = 8.0
TAUGHT = ("taught target", "taught packed")
LEARNED = ("diffq", "target", "rate", "packed", *TAUGHT)  # kinds of methods
NEARLY_AIMED = 7.0  # 4 bits with what is not quantised: counts for the methods of fixed widths in the short table


def full_table(task: Task, results: list[Result]) -> str:
    """One line per method, in the order of sizes."""
    columns = ["method", "seeds", "smaller", "size, MB", "file, MB", task.metric]
    columns += [f"against float32, {task.difference_unit} (95 % interval)", "front"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for found in results:
        cells = [found.label, str(found.seeds), f"{found.times_smaller:.1f}×", f"{found.megabytes:.3f}"]
        cells += [f"{found.megabytes_on_disk:.3f}", quality(found), difference(found), "●" if found.on_front else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def quality(found: Result) -> str:
    spread = f" ± {found.quality_spread:.3f}" if found.seeds > 1 else ""
    return f"{found.quality:.3f}{spread}"


def difference(found: Result) -> str:
    if found.kind == "float32":
        return ""
    low, high = found.interval
    return f"{found.difference:+.2f} ({low:+.2f} to {high:+.2f})"


def verdict(task: Task, results: list[Result]) -> str:
    """Which learned-bits methods reach the aim: as small as AIMED_TIMES, and not worse by more than `task.aim`."""
    small = [r for r in results if r.kind in LEARNED and r.times_smaller >= AIMED_TIMES and r.seeds > 1]
    good = [r for r in small if r.difference >= -task.aim]
    aim = f"at least {AIMED_TIMES:g} times smaller, within {task.aim:g} {task.difference_unit} of float32"
    if not small:
        return f"Aim ({aim}): no run of several seeds is that small."
    if good:
        named = "; ".join(f"{r.label} ({r.times_smaller:.1f}×, {r.difference:+.2f})" for r in good)
        return f"Aim ({aim}): met by {named}."
    best = max(small, key=lambda r: r.difference)
    return f"Aim ({aim}): **not met**; nearest is {best.label} ({best.times_smaller:.1f}×, {best.difference:+.2f})."


def short_rows(task: Task, results: list[Result]) -> list[str]:
    """For the summary: float32, and of each kind of method the best of the aimed size or smaller, of several seeds.

    Those of fixed widths may be somewhat larger: their 4 bits are the natural rival.
    """
    lines = []
    for kinds in (("float32",), ("ptq",), ("qat",), ("lsq",), ("diffq", "target"), ("rate", "packed"), TAUGHT):
        rivals = [r for r in results if r.kind in kinds and r.seeds > 1]
        least = {"float32": 0.0} | dict.fromkeys(LEARNED, AIMED_TIMES)
        small = [r for r in rivals if r.times_smaller >= least.get(r.kind, NEARLY_AIMED)]
        if small:
            best = max(small, key=lambda r: r.difference)
            cells = [task.name, best.label, f"{best.times_smaller:.1f}×", quality(best), difference(best)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def put(document: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- end of mark -->`.

    Raises:
        ValueError: the document does not have both marks.
    """
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    whole = document.read_text()
    if begin not in whole or end not in whole:
        raise ValueError(f"{document}: expected the lines {begin} and {end}, found {begin in whole} and {end in whole}")
    fresh = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", whole, flags=re.DOTALL)
    document.write_text(fresh)
