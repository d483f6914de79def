"""A parser for PTX as Triton's LLVM back-end and its inline assembly write it: one kernel per module."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

BITS = {
    "pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16, "b32": 32,
    "u32": 32, "s32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32, "s16x2": 32, "u16x2": 32,
    "b64": 64, "u64": 64, "s64": 64, "f64": 64, "f32x2": 64,
}  # fmt: skip

_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)\s*(.*?)\{(.*?)\n\}", re.DOTALL)
_PARAMETER = re.compile(r"\.param \.(\w+)(?: \.ptr \.global \.align \d+)? (\w+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+?)<\d+>\s*;")
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_ADDRESS = re.compile(r"([%\w$]+)(?:\+(-?\d+|0x[0-9a-f]+))?")
_FILE_LINE = re.compile(r"[\w.-]+\.py:\d+")
_ORDERED = {"acquire", "release", "acq_rel", "relaxed"}


class UnknownPtxError(NotImplementedError):
    """An instruction, or a form of one, that the emulator does not know."""


class Address(NamedTuple):
    base: str  # a register, or the name of a parameter or of shared memory
    offset: int


@dataclass(frozen=True)
class Instruction:
    opcode: tuple[str, ...]  # split at dots
    operands: tuple  # of str, tuple (a vector), Address
    predicate: str | None
    negated: bool
    line: str  # of the source: "file.py:12"
    text: str

    @property
    def name(self) -> str:
        return self.opcode[0]

    @property
    def kind(self) -> str:
        """The type at the opcode's end."""
        return self.opcode[-1]

    @property
    def is_atomic(self) -> bool:
        return self.name in ("atom", "red")

    @property
    def synchronises(self) -> bool:
        """Whether other blocks of threads may be waited for, or told something, by it."""
        return self.is_atomic or (self.name in ("ld", "st") and not _ORDERED.isdisjoint(self.opcode))


class End(NamedTuple):
    """How a block ends. ``kind``: "next", "branch", "return" or "barrier"; a predicated branch or return goes on at
    ``after`` where the predicate does not hold."""

    kind: str
    target: int | str = -1
    after: int = -1
    predicate: str | None = None
    negated: bool = False


@dataclass
class Block:
    number: int
    instructions: list[Instruction] = field(default_factory=list)
    end: End | None = None


@dataclass
class Kernel:
    name: str
    parameters: list[tuple[str, str]]  # type, name
    threads: int  # of a block of threads (CTA)
    blocks: list[Block]
    widths: dict[str, int]  # bits of the registers with this prefix

    def instructions(self):
        return (instruction for block in self.blocks for instruction in block.instructions)


def parse(ptx: str) -> Kernel:
    found = _ENTRY.search(ptx)
    if found is None:
        raise UnknownPtxError("parse: expected a module with one .visible .entry, found none")
    name, parameters, directives, body = found.groups()
    threads = re.search(r"\.reqntid (\d+)", directives)
    if threads is None:
        raise UnknownPtxError(f"parse: {name}: expected .reqntid with the number of threads, got {directives!r}")
    widths = {prefix: BITS[kind] for kind, prefix in _REGISTERS.findall(body)}
    return Kernel(name, _PARAMETER.findall(parameters), int(threads[1]), _blocks(_items(body)), widths)


def _items(body: str):
    """Labels (as strings) and instructions, in order."""
    line = ""
    for text in body.splitlines():
        code, _, comment = text.partition("//")
        code = code.strip()
        if code.startswith(".loc"):
            known = _FILE_LINE.search(comment)
            line = known[0] if known else line
        elif label := re.fullmatch(r"(\$\w+):", code):
            yield label[1]
        elif not code.startswith((".reg", ".pragma", ".file")):
            yield from (_instruction(each.strip(), line) for each in code.split(";") if each.strip())


def _instruction(text: str, line: str) -> Instruction:
    found = _STATEMENT.fullmatch(text)
    if not found:
        raise UnknownPtxError(f"parse: statement {text!r}")
    negated, predicate, opcode, operands = found.groups()
    return Instruction(tuple(opcode.split(".")), _operands(operands), predicate, bool(negated), line, text)


def _operands(text: str) -> tuple:
    pieces = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", text)
    return tuple(_operand(piece.strip()) for piece in pieces)


def _operand(text: str):
    if text.startswith("{"):
        return tuple(each.strip() for each in text[1:-1].split(","))
    if text.startswith("["):
        found = _ADDRESS.fullmatch(text[1:-1].replace(" ", ""))
        if not found:
            raise UnknownPtxError(f"parse: address {text}")
        return Address(found[1], int(found[2] or "0", 0))
    return text


class _Splitter:
    """Splits at labels, branches and barriers, and before and after what other blocks of threads synchronise by."""

    def __init__(self) -> None:
        self.blocks = [Block(0)]
        self.labels: dict[str, int] = {}

    @property
    def current(self) -> Block:
        return self.blocks[-1]

    def finish(self, end: End) -> None:
        self.current.end = end
        self.blocks.append(Block(len(self.blocks)))

    def next_number(self) -> int:
        return len(self.blocks)

    def label(self, name: str) -> None:
        if self.current.instructions:
            self.finish(End("next", self.next_number()))
        self.labels[name] = self.current.number

    def add(self, item: Instruction) -> None:
        after = self.next_number()
        if item.name == "bra":
            self.finish(End("branch", item.operands[0], after, item.predicate, item.negated))
        elif item.name in ("ret", "exit"):
            self.finish(End("return", -1, after, item.predicate, item.negated))
        elif item.name in ("bar", "barrier"):
            if item.predicate or item.operands != ("0",):
                raise UnknownPtxError(f"parse: {item.text}")
            self.finish(End("barrier", after))
        elif item.synchronises:
            if self.current.instructions:
                self.finish(End("next", after))
            self.current.instructions.append(item)
            self.finish(End("next", self.next_number()))
        else:
            self.current.instructions.append(item)


def _blocks(items) -> list[Block]:
    splitter = _Splitter()
    for item in items:
        if isinstance(item, str):
            splitter.label(item)
        else:
            splitter.add(item)
    for block in splitter.blocks:
        block.end = block.end or End("return")
        if block.end.kind == "branch":
            block.end = block.end._replace(target=splitter.labels[str(block.end.target)])
    return splitter.blocks
