"""Turns each basic block of a kernel into a Python function over numpy arrays, one element per running thread.

``block_7(wave, running)`` does block 7 for the threads ``running = (index, count)`` (``index`` None: all of the wave),
and returns the predicate of its branch. Registers are unsigned integers, or bool; one that holds the same for all
threads may be a scalar.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import arithmetic
from .parser import BITS, Address, Block, Instruction, Kernel, UnknownPtxError

SPECIAL = ("%tid.x", "%ctaid.x", "%nctaid.x", "%ntid.x", "%laneid")
DTYPES = {
    "u8": "np.uint8", "s8": "np.int8", "u16": "np.uint16", "s16": "np.int16", "u32": "np.uint32", "s32": "np.int32",
    "u64": "np.uint64", "s64": "np.int64", "f32": "np.float32", "f64": "np.float64",
}  # fmt: skip


class Access(NamedTuple):
    """Of memory: ``vector`` values of ``size`` bytes each."""

    size: int
    vector: int

    @property
    def bytes(self) -> int:
        return self.size * self.vector


def flat_registers(operands) -> list[str]:
    """The registers among operands, vectors and addresses."""
    found = []
    for operand in operands:
        if isinstance(operand, Address):
            found += flat_registers([operand.base])
        elif isinstance(operand, tuple):
            found += flat_registers(operand)
        elif "|" in operand:
            found += flat_registers(operand.split("|"))
        elif operand.startswith("%") and operand not in SPECIAL:
            found.append(operand)
    return found


def reads_and_writes(instruction: Instruction) -> tuple[list[str], list[str]]:
    has_result = instruction.name not in ("st", "red", "stmatrix")
    writes = flat_registers(instruction.operands[:1]) if has_result else []
    reads = flat_registers(instruction.operands[1:] if has_result else instruction.operands)
    if instruction.predicate:
        reads += [instruction.predicate, *writes]  # where it does not hold, the old value stays
    return reads, writes


class Code:
    """The function of one block while it is written, and what emitters need for that."""

    def __init__(self, kernel: Kernel, constants: dict[str, Any], uses: Counter, contract: bool) -> None:
        self.kernel, self.constants, self.uses, self.contract = kernel, constants, uses, contract
        self.lines: list[str] = []
        self.views: dict[tuple[str, str], str] = {}
        self.products: dict[str, str] = {}  # registers that hold an unrounded product, and the names of its factors

    # -- operands ----------------------------------------------------------------------------------------------

    def width(self, register: str) -> int:
        prefix = register.rstrip("0123456789")
        if prefix not in self.kernel.widths:
            raise UnknownPtxError(f"register {register}")
        return self.kernel.widths[prefix]

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def value(self, operand: str, kind: str) -> str:
        """An expression of the operand as ``kind``: a key of DTYPES, or "pred"."""
        if operand in SPECIAL:
            return self._as(f"wave.special({operand!r}, index)", 32, kind)
        if operand.startswith("%"):
            return name_of(operand) if kind == "pred" else self._view(operand, kind)
        if kind == "pred":
            return f"np.bool_({int(operand, 0) != 0})"
        return self.constant(_literal(operand, kind))

    def _view(self, register: str, kind: str) -> str:
        key = register, kind
        if key not in self.views:
            name = name_of(register)
            expression = self._as(name, self.width(register), kind)
            if expression == name:
                return name
            self.views[key] = f"{name}_{kind}"
            self.lines.append(f" {self.views[key]} = {expression}")
        return self.views[key]

    @staticmethod
    def _as(expression: str, width: int, kind: str) -> str:
        """``expression``, unsigned of ``width`` bits, as ``kind``; a wide register may hold a narrow value."""
        if width < BITS[kind]:
            raise UnknownPtxError(f"{expression} of {width} bits as {kind}")
        if width > BITS[kind]:
            expression = f"{expression}.astype(np.uint{BITS[kind]})"
        return expression if kind[0] == "u" else f"{expression}.view({DTYPES[kind]})"

    def mask(self, instruction: Instruction) -> str:
        if not instruction.predicate:
            return "None"
        return ("~" if instruction.negated else "") + name_of(instruction.predicate)

    def address(self, address: Address, kind: str) -> str:
        if not address.base.startswith("%"):
            return f"np.int64({int(_literal(address.base, kind)) + address.offset})"
        return f"{self.value(address.base, kind)}.astype(np.int64) + {address.offset}"

    # -- results -----------------------------------------------------------------------------------------------

    def assign(self, instruction: Instruction, register: str, expression: str, kind: str) -> None:
        """``kind``: what the expression is, as wide as the register or narrower."""
        if register == "_":
            return
        name, width = name_of(register), self.width(register)
        if kind != "pred":
            if BITS[kind] < width:
                expression = f"np.asarray({expression}).astype({DTYPES[kind[0] + str(width)]})"
            if kind[0] != "u":
                expression = f"np.asarray({expression}).view(np.uint{width})"
        if instruction.predicate:
            expression = f"np.where({self.mask(instruction)}, {expression}, {name})"
        self.lines.append(f" {name} = {expression}")
        self.views = {key: view for key, view in self.views.items() if key[0] != register}
        self.products.pop(register, None)

    def line(self, text: str) -> None:
        self.lines.append(f" {text}")


def name_of(register: str) -> str:
    return "r_" + register[1:]


def _literal(text: str, kind: str) -> Any:
    if text in ("global_smem", "global_smem[0]"):
        text = "0"
    if text.startswith(("0f", "0d")):
        bits = np.uint32(int(text[2:], 16)) if text[1] == "f" else np.uint64(int(text[2:], 16))
        return bits if kind[0] == "u" else bits.view(np.float32 if text[1] == "f" else np.float64)
    if kind[0] == "f" or (not text[:1].isdigit() and text[:1] != "-"):
        raise UnknownPtxError(f"operand {text} as {kind}")
    bits = BITS[kind]
    value = np.dtype(f"u{bits // 8}").type(int(text.rstrip("U"), 0) & ((1 << bits) - 1))
    return value.view(getattr(np, DTYPES[kind][3:]))


def generate(kernel: Kernel, emit: Callable[[Code, Instruction], None], contract: bool) -> list[Callable]:
    """The functions of a kernel's blocks. ``contract``: an unrounded product that is used in one sum only becomes part
    of it, as the assembler may have it."""
    needs, defined = zip(*(_flow(block) for block in kernel.blocks), strict=True)
    wanted = {register for need in needs for register in need}
    uses = Counter(register for each in kernel.instructions() for register in reads_and_writes(each)[0])
    space: dict[str, Any] = {"np": np, "m": arithmetic}
    lines: list[str] = []
    for block, need, have in zip(kernel.blocks, needs, defined, strict=True):
        code = Code(kernel, space, uses, contract)
        for instruction in block.instructions:
            emit(code, instruction)
        lines += _function(block, need, code.lines, [register for register in have if register in wanted])
    exec(compile("\n".join(lines), f"<ptx of {kernel.name}>", "exec"), space)
    return [space[f"block_{block.number}"] for block in kernel.blocks]


def _flow(block: Block) -> tuple[list[str], list[str]]:
    """Registers that a block needs from before, and those that it defines."""
    need: dict[str, None] = {}
    have: dict[str, None] = {}
    for instruction in block.instructions:
        reads, writes = reads_and_writes(instruction)
        need.update(dict.fromkeys(register for register in reads if register not in have))
        have.update(dict.fromkeys(writes))
    assert block.end is not None
    if block.end.predicate and block.end.predicate not in have:
        need[block.end.predicate] = None
    return list(need), list(have)


def _function(block: Block, need: list[str], body: list[str], keep: list[str]) -> list[str]:
    assert block.end is not None
    head = [f"def block_{block.number}(wave, running):", " index, count = running"]
    loads = [f" {name_of(register)} = wave.get({register!r}, index)" for register in need]
    stores = [f" wave.put({register!r}, {name_of(register)}, index)" for register in keep]
    back = []
    if block.end.predicate:
        back = [f" return {'~' if block.end.negated else ''}{name_of(block.end.predicate)}"]
    return [*head, *loads, *body, *stores, *back]
