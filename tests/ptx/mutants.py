"""Faulty variants of a kernel's PTX: would the emulator, or the test that runs it, notice?"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .problems import SAME_VALUE, EmulationError
from .triton_driver import Emulator

_WITH_CONSTANT = r"(?:add|sub|mul|mad|and|or|xor|shl|shr|setp|bfe|min|max)\.(?!f)[^;{}\n]*, "
# What is done to the PTX: a pattern, and what to put in its place.
KINDS: dict[str, tuple[str, str | Callable[[re.Match], str]]] = {
    "barrier removed": (r"bar\.sync\s+0;", ""),
    "acquire and release made relaxed": (r"(?<=gpu\.)acq_rel", "relaxed"),
    "acquire and release made acquire": (r"(?<=gpu\.)acq_rel", "acquire"),
    "acquire and release made release": (r"(?<=gpu\.)acq_rel", "release"),
    "release made relaxed": (r"(?<=gpu\.)release", "relaxed"),
    "acquire made relaxed": (r"(?<=gpu\.)acquire", "relaxed"),
    "acquire made an ordinary load": (r"(?<=ld\.global)\.gpu\.acquire", ""),
    "mask of a load removed": (r"@!?%p\d+ (?=ld\.global)", ""),
    "mask of a store removed": (r"@!?%p\d+ (?=st\.global)", ""),
    "mask of a shared store removed": (r"@!?%p\d+ (?=st\.shared)", ""),
    "mask of an atomic operation removed": (r"@!?%p\d+ (?=atom|red\.)", ""),
    "constant off by one": (rf"(?<=\t)({_WITH_CONSTANT})(\d+)(?=;)", lambda match: f"{match[1]}{int(match[2]) + 1}"),
}


@dataclass(frozen=True)
class Mutant:
    """A fault in one place of one PTX; other PTX, also of the same kernel for other arguments, is left as it is."""

    kind: str
    place: int  # among the places where the PTX fits
    text: str  # what stood there
    ptx: str = field(repr=False)

    def __call__(self, ptx: str) -> str:
        if ptx != self.ptx:
            return ptx
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
    return [Mutant(kind, place, " ".join(_line_at(ptx, found[place].start()).split()), ptx) for place in chosen]


def _line_at(text: str, place: int) -> str:
    return text[text.rfind("\n", 0, place) + 1 : text.find("\n", place)]


SAME_VALUES = "threads that the mask kept from it write the same value again"
PATIENCE = 20  # times as many steps as without a fault, before a launch counts as endless


def notice(emulator: Emulator, mutant: Mutant, check: Callable[[], None]) -> str:
    """How a mutant shows when ``check`` runs (which asserts): in words, "" if it does not.

    ``SAME_VALUES``: a store without its mask writes nothing but what others write there too, which is harmless.
    """
    emulator.problems.clear()
    mutated = []

    def edit(ptx: str) -> str:
        mutated.append(ptx == mutant.ptx)
        return mutant(ptx)

    said = _said(emulator, edit, check)
    problems, serious = list(emulator.problems.found), emulator.problems.serious()
    emulator.problems.clear()
    if not any(mutated):
        raise LookupError(f"notice: expected a check that launches the kernel of {mutant}, got one that does not")
    if serious:
        return serious[0].what.split(",")[0]
    unmasked = mutant.text.partition("st.")[2].rstrip(";")
    again = [each for each in problems if each.what == SAME_VALUE and each.instruction.partition("st.")[2] == unmasked]
    return said or (SAME_VALUES if "store removed" in mutant.kind and again else "")


def _said(emulator: Emulator, edit: Callable[[str], str], check: Callable[[], None]) -> str:
    emulator.edit = edit
    try:
        check()
    except EmulationError as error:
        return f"it does not end: {error}"
    except AssertionError:
        return "the result differs"
    finally:
        emulator.edit = lambda ptx: ptx
    return ""


def recorded_ptx(emulator: Emulator, check: Callable[[], None]) -> dict[str, list[str]]:
    """The PTX of each kernel that ``check`` launches: one for each set of arguments that Triton compiles it for.

    From then on launches may take ``PATIENCE`` times as many steps as the longest of these.
    """
    found: dict[str, list[str]] = {}

    def record(ptx: str) -> str:
        of_kernel = found.setdefault(re.search(r"\.entry (\w+)", ptx)[1], [])  # type: ignore[index]
        if ptx not in of_kernel:
            of_kernel.append(ptx)
        return ptx

    emulator.settings.most_steps, emulator.steps = None, 0
    emulator.edit = record
    check()
    emulator.edit = lambda ptx: ptx
    emulator.settings.most_steps = PATIENCE * emulator.steps
    return found
