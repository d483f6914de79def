"""Compiles the Triton kernels without a GPU, and reads what came out: machine code, registers, memory
accesses."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from pipe_cycles import until_most_leave
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T0-9]+)\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", re.MULTILINE)
_GLOBAL = re.compile(r"^(LDG|STG)\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str | None
    opcode: str
    operands: str


@dataclass
class Code:
    """Facts about one compiled kernel; ``body`` is what is counted of it."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    body: list[Instruction] = field(default_factory=list)

    def opcodes(self) -> Counter[str]:
        return Counter(instruction.opcode for instruction in self.body)

    def accesses(self, operation: str, narrow: bool) -> int:
        """Global loads ("LDG") or stores ("STG") in the body, of 128 bits and more, or narrower ones."""
        found = [opcode for opcode in self.opcodes().elements() if opcode.split(".")[0] == operation]
        return sum((".128" not in opcode and ".256" not in opcode) == narrow for opcode in found)


def compile_kernel(
    kernel: Any, signature: dict[str, Any], constants: dict[str, Any], target: str, warps: int, fusion: bool
) -> Any:
    """``signature`` gives a type, or a tuple of types, for each argument that is not a constant; pointers are 16-byte
    aligned."""
    names = kernel.arg_names
    types = {name: signature.get(name, "constexpr") for name in names}
    values = {name: _for_target(value, target) for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=types, constexprs=values, attrs=_aligned(list(types.values())))
    options = {"num_warps": warps, "enable_fp_fusion": fusion}
    return triton.compile(source, target=TARGETS[target], options=options)


def _for_target(value: Any, target: str) -> Any:
    """A config for NVIDIA's instructions or without them."""
    return value._replace(ptx=TARGETS[target].backend == "cuda") if hasattr(value, "ptx") else value


def _aligned(types: Sequence[Any], path: tuple[int, ...] = ()) -> dict[tuple[int, ...], list[list[Any]]]:
    """Triton's attributes of the pointers among arguments of these types, by their places."""
    result: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, kind in enumerate(types):
        if isinstance(kind, tuple):
            result |= _aligned(kind, (*path, place))
        elif kind.startswith("*"):
            result[(*path, place)] = [["tt.divisibility", 16]]
    return result


def _cuobjdump(*arguments: str) -> str:
    """Triton's own copy of the tool, or the CUDA toolkit's."""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if tool is None:
        raise FileNotFoundError("static_code: cuobjdump: expected in Triton's package or on the PATH, found neither")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _blocks(instructions: list[Instruction]) -> tuple[list[list[Instruction]], list[list[int]]]:
    """Basic blocks in the order of the code, and which blocks follow each."""
    position = {instruction.address: i for i, instruction in enumerate(instructions)}
    leaders = {0}
    for i, instruction in enumerate(instructions):
        if instruction.opcode.startswith(("BRA", "EXIT")):
            leaders.add(i + 1)
            target = re.search(r"0x([0-9a-f]+)", instruction.operands)
            if instruction.opcode.startswith("BRA") and target:
                leaders.add(position[int(target[1], 16)])
    starts = sorted(leader for leader in leaders if leader < len(instructions))
    index = {start: number for number, start in enumerate(starts)}
    blocks, followers = [], []
    for number, start in enumerate(starts):
        stop = starts[number + 1] if number + 1 < len(starts) else len(instructions)
        last = instructions[stop - 1]
        after = [number + 1] if stop < len(instructions) else []
        target = re.search(r"0x([0-9a-f]+)", last.operands)
        if last.opcode.startswith("BRA") and target:
            jump = index[position[int(target[1], 16)]]
            after = [*after, jump] if last.predicate else [jump]
        elif last.opcode.startswith("EXIT") and not last.predicate:
            after = []
        blocks.append(instructions[start:stop])
        followers.append(after)
    return blocks, followers


def _wide_accesses(block: list[Instruction]) -> int:
    return sum(bool(_GLOBAL.match(i.opcode)) and ".128" in i.opcode for i in block)


def _importance(body: list[Instruction]) -> tuple[bool, int, int]:
    writes = any(i.opcode.startswith("STG") and ".128" in i.opcode for i in body)
    return writes, _wide_accesses(body), -len(body)


def _common_path(blocks: list[list[Instruction]], followers: list[list[int]]) -> list[Instruction]:
    """The forward way through the code that has most global accesses of 128 bits, then most of any, then fewest
    instructions: slow paths of divisions and of unusual arguments are left out."""
    best: dict[int, tuple[tuple[int, int, int], list[int]]] = {}
    for number in range(len(blocks) - 1, -1, -1):
        accesses = sum(bool(_GLOBAL.match(i.opcode)) for i in blocks[number])
        onward = [best[follower] for follower in followers[number] if follower > number]
        (wide, score, length), path = max(onward, key=lambda way: way[0], default=((0, 0, 0), []))
        here = wide + _wide_accesses(blocks[number]), score + accesses, length - len(blocks[number])
        best[number] = here, [number, *path]
    return [i for number in best[0][1] for i in blocks[number]]


def _accesses(block: list[Instruction]) -> int:
    return sum(bool(_GLOBAL.match(i.opcode)) for i in block)


def main_loop(instructions: list[Instruction]) -> list[Instruction]:
    """The body of the innermost loop that has most 128-bit accesses, loops with stores first: all blocks between
    its head and its jump back. Where no loop has any: of the one with most accesses. Without a loop: the common way."""
    blocks, followers = _blocks(instructions)
    loops = [(head, tail) for tail, after in enumerate(followers) for head in after if head <= tail]
    bodies = {loop: [i for block in blocks[loop[0] : loop[1] + 1] for i in block] for loop in loops}
    wide = {loop: body for loop, body in bodies.items() if _wide_accesses(body)}
    accessing = wide or {loop: body for loop, body in bodies.items() if _accesses(body)}
    innermost = [
        body
        for (head, tail), body in accessing.items()
        if not any(head <= start and stop <= tail and (head, tail) != (start, stop) for start, stop in accessing)
    ]
    return max(innermost, key=_importance if wide else _accesses, default=_common_path(blocks, followers))


def way_through(instructions: list[Instruction]) -> list[Instruction]:
    """The common way through all the code, for all programs but the last one, where it ends early for them."""
    return until_most_leave(_common_path(*_blocks(instructions)))


def read_code(compiled: Any, through: bool = False) -> Code:
    """Code of a kernel compiled for CUDA; its ``body`` is the main loop, or (``through``) the way through all of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        text = _cuobjdump("-sass", str(path))
        usage = _cuobjdump("-res-usage", str(path))
    instructions = [Instruction(int(a, 16), p or None, o, rest) for a, p, o, rest in _LINE.findall(text)]
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    stack = numbers["STACK"] + numbers["LOCAL"]
    body = [each for each in (way_through if through else main_loop)(instructions) if each.opcode != "NOP"]
    return Code(numbers["REG"], stack, compiled.metadata.shared, body)
