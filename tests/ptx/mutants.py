"""Faulty variants of a kernel's PTX: would the emulator, or the test that runs it, notice?"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .problems import SAME_VALUE, EmulationError
from .triton_driver import Emulator

_WITH_CONSTANT = r"(?:add|sub|mul|mad|and|or|xor|shl|shr|setp|bfe|min|max)\.(?!f)[^;{}\n]*, "
# What is done to the PTX: a pattern, and what to put in its place.
KINDS: dict[str, tuple[str, str | Callable[[re.Match], str]]] = {
    "barrier removed": (r"bar\.sync\s+0;", ""),
    "acquire and release made relaxed": (r"(?<=gpu\.)acq_rel", "relaxed"),
    "release made relaxed": (r"(?<=gpu\.)release", "relaxed"),
    "acquire made relaxed": (r"(?<=gpu\.)acquire", "relaxed"),
    "acquire made an ordinary load": (r"(?<=ld\.global)\.gpu\.acquire", ""),
    "mask of a load removed": (r"@!?%p\d+ (?=ld\.global)", ""),
    "mask of a store removed": (r"@!?%p\d+ (?=st\.global)", ""),
    "constant off by one": (rf"(?<=\t)({_WITH_CONSTANT})(\d+)(?=;)", lambda match: f"{match[1]}{int(match[2]) + 1}"),
}


class Mutant(NamedTuple):
    kind: str
    place: int  # among the places where the PTX fits
    text: str  # what stood there

    def __call__(self, ptx: str) -> str:
        pattern, replacement = KINDS[self.kind]
        found = list(re.finditer(pattern, ptx))[self.place]
        new = replacement(found) if callable(replacement) else replacement
        return ptx[: found.start()] + new + ptx[found.end() :]


def mutants_of(ptx: str, kind: str, most: int | None = None) -> list[Mutant]:
    """Mutants of a kind, one for each place; or ``most`` of them, evenly spread."""
    found = list(re.finditer(KINDS[kind][0], ptx))
    chosen = range(len(found))
    if most is not None and len(found) > most:
        chosen = [round(i * (len(found) - 1) / max(most - 1, 1)) for i in range(most)]
    return [Mutant(kind, place, " ".join(_line_at(ptx, found[place].start()).split())) for place in chosen]


def _line_at(text: str, place: int) -> str:
    return text[text.rfind("\n", 0, place) + 1 : text.find("\n", place)]


SAME_VALUES = "threads that the mask kept from it write the same value again"


def notice(emulator: Emulator, kernel: str, mutant: Mutant, check: Callable[[], None]) -> str:
    """How a mutant of ``kernel`` shows when ``check`` runs (which asserts): in words, "" if it does not.

    ``SAME_VALUES``: a store without its mask writes nothing but what others write there too, which is harmless.
    """
    emulator.problems.clear()
    emulator.edit = lambda ptx: mutant(ptx) if f".entry {kernel}(" in ptx else ptx
    try:
        check()
        said = ""
    except EmulationError as error:
        said = f"it does not end: {error}"
    except AssertionError:
        said = "the result differs"
    finally:
        emulator.edit = lambda ptx: ptx
    problems, serious = list(emulator.problems.found), emulator.problems.serious()
    emulator.problems.clear()
    if serious:
        return serious[0].what.split(",")[0]
    unmasked = mutant.text.partition("st.")[2]
    again = [each for each in problems if each.what == SAME_VALUE and each.instruction.partition("st.")[2] == unmasked]
    return said or (SAME_VALUES if mutant.kind == "mask of a store removed" and again else "")


def recorded_ptx(emulator: Emulator, check: Callable[[], None]) -> dict[str, str]:
    """The PTX of each kernel that ``check`` launches (the last one of a name)."""
    found: dict[str, str] = {}

    def record(ptx: str) -> str:
        found[re.search(r"\.entry (\w+)", ptx)[1]] = ptx  # type: ignore[index]
        return ptx

    emulator.edit = record
    check()
    emulator.edit = lambda ptx: ptx
    return found
