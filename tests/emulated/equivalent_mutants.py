"""Mutants that compute the same as the kernel, each with the argument. None of these may be caught by any test."""

from __future__ import annotations

import re

from ptx.mutants import Mutant

# Kernels, kind, the instruction as it was, and why the mutant does the same. Texts are matched from their beginning.
EQUIVALENT = [
    (
        ".*",
        "mask of a shared store removed",
        r"@!?%p\d+ st\.shared\.b\d+ \[ %r\d+ \+ 0 \], ",
        "sums over warps: a warp's threads store what its first one does, or others store where nobody reads",
    ),
    (
        "piece_sums_kernel",
        "constant off by one",
        r"setp\.lt\.u32 .*, 32;",
        "thread 32 stores what thread 0 does, the sum that all threads have read from one place",
    ),
    (
        "quantize_planes_kernel",
        "constant off by one",
        r"add\.s64 (%rd\d+), \1, 8;",
        "it counts the four rounds of a loop and nothing else: four by nines too",
    ),
    (
        "quantize_planes_kernel",
        "mask of a load removed",
        r"@!?%p\d+ ld\.global\.b64 ",
        "of width 1, behind which the order has the groups of a larger width; what is read of those is masked again",
    ),
    (
        "quantize_planes_kernel",
        "mask of a load removed",
        r"@!?%p\d+ ld\.global\.b32 ",
        "where no level is, the order's mask gives group 0, whose elements exist; the level is masked again",
    ),
    (".*", "constant off by one", r"shr\.s32 .*, 31;", "an arithmetic shift by 32 leaves the sign alone, as one by 31"),
    (".*", "constant off by one", r"shr\.s64 .*, 63;", "an arithmetic shift by 64 leaves the sign alone, as one by 63"),
]


def reason(kernel: str, mutant: Mutant) -> str:
    """Why the mutant is equivalent; "" where nothing says that it is."""
    for kernels, kind, text, why in EQUIVALENT:
        if mutant.kind == kind and re.fullmatch(kernels, kernel) and re.match(text, mutant.text):
            return why
    return ""
