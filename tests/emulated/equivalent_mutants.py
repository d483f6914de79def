"""Mutants that compute the same as the kernel, each with the argument. None of these may be caught by any test."""

from __future__ import annotations

import re

from ptx.mutants import Mutant

# Kernels, kind, the instruction as it was, and why the mutant does the same. Texts are matched from their beginning;
# before the instruction may stand the one that defines its last register.
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
    (
        "finish_sizes_kernel",
        "constant off by one",
        r"setp\.lt\.u32 .*, 32;",
        "beside the first thread only the first of the second warp passes, which stores the same size again",
    ),
    (
        "pack_kernel",
        "constant off by one",
        r"mad\.wide\.u32 .*, 4096, 4096;",
        "a program whose last level is the weight's last one takes the way with masks, which packs the same",
    ),
    (
        "pack_kernel",
        "constant off by one",
        r"add\.s64 (%rd\d+), %rd\d+, 31; shr\.u64 %rd\d+, \1, 59;",
        "other than zero only of a negative number, in a block behind the last: it has fewer than no lanes either way",
    ),
    (
        ".*",
        "constant off by one",
        r"shl\.b32 (%r\d+), %r\d+, 6; and\.b32 %r\d+, \1, 64;",
        "the lowest bit of a number that was shifted left is 0",
    ),
    (".*", "constant off by one", r"shr\.s32 .*, 31;", "an arithmetic shift by 32 leaves the sign alone, as one by 31"),
    (".*", "constant off by one", r"shr\.s64 .*, 63;", "an arithmetic shift by 64 leaves the sign alone, as one by 63"),
]


def reason(kernel: str, mutant: Mutant) -> str:
    """Why the mutant is equivalent; "" where nothing says that it is."""
    texts = mutant.text, f"{_definition(mutant)} {mutant.text}"
    for kernels, kind, text, why in EQUIVALENT:
        if mutant.kind == kind and re.fullmatch(kernels, kernel) and any(re.match(text, each) for each in texts):
            return why
    return ""


def _definition(mutant: Mutant) -> str:
    """The instruction that writes the last register of the mutant's; "" where none does, or several."""
    *_, register = [None, *re.findall(r"%[a-z]+\d+", mutant.text)]
    found = re.findall(rf"^\s*(\w\S*\s+{register},.*;)", mutant.ptx, re.MULTILINE)
    return " ".join(found[0].split()) if len(found) == 1 else ""
