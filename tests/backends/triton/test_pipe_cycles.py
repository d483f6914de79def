"""What machine code is said to cost (``benchmarks/pipe_cycles.py``): pipes, bytes, chains, residence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from support.paths import ROOT


@pytest.fixture
def pipe_cycles(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pipe_cycles

    return pipe_cycles


def code(*lines):
    """Instructions of lines such as ``@P0 FADD R0, R1, R2``."""
    made = []
    for line in lines:
        predicate, _, rest = line[1:].partition(" ") if line.startswith("@") else (None, "", line)
        opcode, _, operands = rest.partition(" ")
        made.append(SimpleNamespace(predicate=predicate, opcode=opcode, operands=operands))
    return made


def test_each_pipe_has_its_cycles(pipe_cycles):
    used = pipe_cycles.cycles(
        code(
            "FFMA R0, R1, R2, R3",
            "IMAD.WIDE.U32 R4, R0, R1, RZ",
            "LOP3.LUT R6, R4, R5, RZ, 0x3c, !PT",
            "MUFU.LG2 R7, R6",
        )
        + code("SHFL.BFLY PT, R8, R7, 0x1, 0x1f", "LDG.E.128 R12, desc[UR4][R2.64]", "STG.E.128 desc[UR4][R2.64], R12")
        + code("BAR.SYNC 0x0", "UMOV UR4, 0x400")
    )
    assert used == {"issue": 9 / 4, "FMA": 0.5, "integer products": 0.5, "ALU": 0.5, "XU": 2.0, "LSU": 1.0 + 4.0 + 8.0}


def test_a_pair_of_float32_counts_as_two(pipe_cycles):
    pair, two = (
        pipe_cycles.cycles(code("FFMA2 R0, R2.F32x2.HI_LO, R4, R6")),
        pipe_cycles.cycles(code("FFMA R0, R1, R2, R3")),
    )
    assert (pair["FMA"], pair["ALU"], pair["issue"]) == (2 * two["FMA"], 0, two["issue"])


def test_bytes_are_those_of_global_accesses(pipe_cycles):
    lines = code("LDG.E.U16 R0, [R2]", "LDG.E R0, [R2]", "STG.E.64 [R2], R4", "LDS.128 R0, [R2]", "FADD R0, R0, R0")
    assert [pipe_cycles.global_bytes(line) for line in lines] == [2, 4, 8, 0, 0]


def test_a_chain_follows_registers_and_predicates(pipe_cycles):
    step = pipe_cycles.ARITHMETIC_LATENCY
    lines = code(
        "LDG.E.128 R4, desc[UR4][R2.64]", "FADD R0, R7, R7", "FSETP.GT.AND P0, PT, R0, R1, PT", "@P0 FADD R9, R8, R8"
    )
    assert pipe_cycles.chain(lines, 100.0) == 100 + 3 * step
    apart = code("LDG.E.128 R4, desc[UR4][R2.64]", "FADD R0, R8, R8", "FADD R1, R9, R9")
    assert pipe_cycles.chain(apart, 100.0) == 100.0
    assert pipe_cycles.chain(code(*["FADD R0, R1, R2"] * 50), 0.0) == 50.0  # of one warp one a cycle


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "blocks"),
    [(32, 4, 0, 16), (80, 4, 0, 6), (81, 4, 0, 5), (255, 8, 0, 1), (16, 1, 0, 32), (32, 4, 50_000, 4)],
)
def test_residence_is_bound_by_registers_warps_and_shared_memory(pipe_cycles, registers, warps, shared, blocks):
    assert pipe_cycles.resident_blocks(registers, warps, shared) == blocks


def test_most_programs_leave_before_the_last_ones_part(pipe_cycles):
    lines = code("FADD R0, R1, R2", "@P0 EXIT", "FADD R0, R1, R2", "EXIT")
    assert len(pipe_cycles.until_most_leave(lines)) == 2
    assert len(pipe_cycles.until_most_leave(lines[2:])) == 2
