"""What machine code asks of a multiprocessor: cycles of each of its pipes, bytes, and the longest chain of dependences.

Rates are those of compute capability 8.0 to 10.0 (CUDA programming guide, "Throughput of native arithmetic
instructions"; Nsight Compute's names of pipes). A multiprocessor issues an instruction for each of four warps a cycle.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from static_code import Instruction

# Cycles that a pipe of a multiprocessor needs for one instruction of a warp, all four parts of it at work.
ISSUE, FMA, INTEGER_PRODUCT, ALU, XU, SHARED = 0.25, 0.25, 0.5, 0.5, 2.0, 1.0
LOADED_BYTES, STORED_BYTES = 128, 64  # a cycle, between a multiprocessor and its cache
LANES = 32

_FLOAT = {"FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2"}
_FLOAT_PAIRS = {"FADD2", "FMUL2", "FFMA2"}  # two float32 in a pair of registers: counted as two on the same pipe
_SPECIAL = {"MUFU", "F2I", "I2F", "F2F", "FRND", "POPC", "FLO", "BREV"}
_SHARED = {"SHFL", "LDS", "STS", "ATOMS", "LDSM", "STSM", "REDUX"}
_CONTROL = {
    "BRA",
    "EXIT",
    "NOP",
    "BAR",
    "BSSY",
    "BSYNC",
    "WARPSYNC",
    "CALL",
    "RET",
    "DEPBAR",
    "MEMBAR",
    "ERRBAR",
    "CCTL",
}
_ELSEWHERE = _CONTROL | {"S2R", "S2UR", "CS2R", "LDC", "ULDC", "LDCU", "R2UR"}
# Cycles until another instruction can use the result; a load from global memory is counted apart.
_LATENCY = {"MUFU": 20, "F2I": 16, "I2F": 16, "BAR": 20, "LDC": 28}
_LATENCY |= {"SHFL": 24, "REDUX": 24, "LDS": 28, "STS": 28, "LDSM": 30}
ARITHMETIC_LATENCY = 4.5
_NARROW = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_REGISTER = re.compile(r"\b(U?R|U?P)(\d+)(\.64)?")


def global_bytes(instruction: Instruction) -> int:
    """Bytes of each lane's access to global memory; 0 for other instructions."""
    parts = instruction.opcode.split(".")
    if parts[0] not in ("LDG", "STG"):
        return 0
    return next((_NARROW[part] for part in parts if part in _NARROW), 4)


def cycles(instructions: Iterable[Instruction]) -> dict[str, float]:
    """Cycles of each pipe for one warp."""
    used: Counter[str] = Counter({"issue": 0.0, "FMA": 0.0, "integer products": 0.0, "ALU": 0.0, "XU": 0.0, "LSU": 0.0})
    for instruction in instructions:
        name = instruction.opcode.split(".")[0]
        used["issue"] += ISSUE
        size = LANES * global_bytes(instruction)
        if size:
            used["LSU"] += size / (LOADED_BYTES if name == "LDG" else STORED_BYTES)
        elif name in _SHARED:
            used["LSU"] += SHARED
        elif name in _FLOAT or name == "IMAD":
            used["FMA"] += FMA
            used["integer products"] += INTEGER_PRODUCT if name == "IMAD" else 0
        elif name in _FLOAT_PAIRS:
            used["FMA"] += 2 * FMA
        elif name in _SPECIAL:
            used["XU"] += XU
        elif name not in _ELSEWHERE and not name.startswith("U"):
            used["ALU"] += ALU
    return dict(used)


def _width(instruction: Instruction) -> int:
    """Registers of the result, or of what is stored."""
    opcode = instruction.opcode
    if opcode.startswith(("LDG", "STG", "LDS", "STS", "LDC")):
        return max(1, next((_NARROW[part] // 4 for part in opcode.split(".") if part in _NARROW), 1))
    return 2 if ".WIDE" in opcode or ".64" in opcode else 1


def _names(kind: str, first: str, count: int) -> list[str]:
    return [f"{kind}{int(first) + i}" for i in range(count)]


def _reads_and_writes(instruction: Instruction) -> tuple[list[str], list[str]]:
    """Registers: a first operand is the result, as are predicates right behind it."""
    stores = instruction.opcode.startswith(("ST", "BAR", "RED.", "BRA", "EXIT"))
    reads, writes, results = [], [], not stores
    for place, operand in enumerate(instruction.operands.split(",")):
        found = _REGISTER.findall(operand)
        results = results and (place == 0 or (place <= 2 and "P" in operand and bool(found or "PT" in operand)))
        for kind, number, pair in found:
            if results:
                writes += _names(kind, number, _width(instruction))
            else:
                wide = _width(instruction) if stores and "[" not in operand else 2 if pair else 1
                reads += _names(kind, number, wide)
    if instruction.predicate:
        reads.append(instruction.predicate.lstrip("!"))
    return reads, writes


def chain(instructions: Sequence[Instruction], memory: float) -> float:
    """Cycles of the longest chain of dependences, where a load from global memory takes ``memory`` cycles. At least as
    many as one warp needs to issue them all."""
    ready: dict[str, float] = {}
    longest = float(len(instructions))
    for instruction in instructions:
        name = instruction.opcode.split(".")[0]
        reads, writes = _reads_and_writes(instruction)
        start = max((ready.get(register, 0.0) for register in reads), default=0.0)
        end = start + (memory if name == "LDG" else _LATENCY.get(name, ARITHMETIC_LATENCY))
        for register in writes:
            ready[register] = end
        longest = max(longest, end)
    return longest


def resident_blocks(registers: int, warps: int, shared_bytes: int) -> int:
    """Programs that a multiprocessor holds at a time, by its registers, warps and shared memory."""
    per_warp = -(-registers * LANES // 256) * 256
    shared = 228 * 1024 // (shared_bytes + 1024)
    return max(1, min(65536 // (per_warp * warps), 64 // warps, 32, shared))


def until_most_leave(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The way of all programs but the last one, where the code ends early for them."""
    for place, instruction in enumerate(instructions):
        if instruction.opcode == "EXIT" and instruction.predicate and place:
            return list(instructions[: place + 1])
    return list(instructions)
