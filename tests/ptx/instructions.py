"""What each PTX instruction becomes: lines of Python over numpy arrays."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from .generator import DTYPES, Access, Code, name_of
from .parser import BITS, Instruction, UnknownPtxError

Emitter = Callable[[Code, Instruction], None]
_EMITTERS: dict[str, Emitter] = {}


def emit(code: Code, instruction: Instruction) -> None:
    emitter = _EMITTERS.get(instruction.name)
    try:
        if emitter is None:
            raise UnknownPtxError(instruction.text)
        emitter(code, instruction)
    except (UnknownPtxError, LookupError, ValueError) as error:  # other parts, or more operands, than are known
        raise UnknownPtxError(f"{code.kernel.name}: {instruction.text}") from error


def _emits(*names: str) -> Callable[[Emitter], Emitter]:
    def enter(emitter: Emitter) -> Emitter:
        _EMITTERS.update(dict.fromkeys(names, emitter))
        return emitter

    return enter


def _require(condition: bool, i: Instruction) -> None:
    if not condition:
        raise UnknownPtxError(i.text)


def _unsigned(kind: str) -> str:
    return f"u{BITS[kind]}"


def _values(code: Code, i: Instruction, kind: str) -> list[str]:
    return [code.value(operand, kind) for operand in i.operands[1:]]


# -- arithmetic ------------------------------------------------------------------------------------------------

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}


@_emits("add", "sub")
def _sum(code: Code, i: Instruction) -> None:
    if "f" in i.kind:
        return _float_sum(code, i)
    kind = _unsigned(i.kind)
    one, two = _values(code, i, kind)
    if i.kind.endswith("16x2"):
        return code.assign(i, i.operands[0], f"m.sum_of_halves({one}, {two}, {_SIGNS[i.name]!r})", kind)
    return code.assign(i, i.operands[0], f"{one} {_SIGNS[i.name]} {two}", kind)


def _of_pairs(code: Code, i: Instruction, parameters: str, expression: str) -> None:
    """.f32x2 (sm_100 and later): two float32 in each register."""
    _require(set(i.opcode[1:-1]) <= {"rn"}, i)
    values = ", ".join(_values(code, i, "u64"))
    code.assign(i, i.operands[0], f"m.each_half(lambda {parameters}: {expression}, {values})", "u64")


def _mixed_sum(code: Code, i: Instruction) -> None:
    """The first operand is a half, which is made float32 first (.f32.bf16, .f32.f16; sm_100 and later)."""
    _require(i.opcode[1:-1] == ("rn", "f32"), i)
    half, other = code.value(i.operands[1], "u16"), code.value(i.operands[2], "f32")
    expression = f"m.canonical(m.from_{i.kind}({half}) {_SIGNS[i.name]} {other})"
    code.assign(i, i.operands[0], expression, "f32")


def _float_sum(code: Code, i: Instruction) -> None:
    if i.kind == "f32x2":
        return _of_pairs(code, i, "a, b", f"m.canonical(a {_SIGNS[i.name]} b)")
    if i.kind in ("f16", "bf16"):
        return _mixed_sum(code, i)
    _require(set(i.opcode[1:-1]) <= {"rn"} and i.kind in ("f32", "f64"), i)
    result, a, b = i.operands
    one, two = _values(code, i, i.kind)
    expression = f"{one} {_SIGNS[i.name]} {two}"
    if i.kind == "f32":
        contracted = None if "rn" in i.opcode else _contracted(code, i.name, (a, b), (one, two))
        expression = contracted or f"m.canonical({expression})"
    return code.assign(i, result, expression, i.kind)


def _contracted(code: Code, name: str, operands: tuple[str, str], values: tuple[str, str]) -> str | None:
    """The sum with one of its products in it."""
    for place, operand in enumerate(operands):
        if operand in code.products:
            factors, other = code.products[operand], values[1 - place]
            if name == "add":
                return f"m.fma(*{factors}, {other})"
            return f"m.fma(*{factors}, -{other})" if place == 0 else f"m.fma(-{factors}[0], {factors}[1], {other})"
    return None


@_emits("mul", "mad")
def _product(code: Code, i: Instruction) -> None:
    if i.kind == "f32x2" and i.name == "mul":
        return _of_pairs(code, i, "a, b", "m.canonical(a * b)")
    if i.kind[0] == "f":
        _require(i.name == "mul" and set(i.opcode[1:-1]) <= {"rn"} and i.kind in ("f32", "f64"), i)
        return _float_product(code, i)
    form = {"lo": _product_low, "wide": _product_wide, "hi": _product_high}.get(i.opcode[1])
    if form is None:
        raise UnknownPtxError(i.text)
    return form(code, i)


def _float_product(code: Code, i: Instruction) -> None:
    one, two = _values(code, i, i.kind)
    expression = f"{one} * {two}"
    code.assign(i, i.operands[0], f"m.canonical({expression})" if i.kind == "f32" else expression, i.kind)
    if code.contract and i.opcode == ("mul", "f32") and not i.predicate and code.uses[i.operands[0]] == 1:
        factors = f"factors_{name_of(i.operands[0])}"
        code.line(f"{factors} = {one}, {two}")
        code.products[i.operands[0]] = factors


def _product_low(code: Code, i: Instruction) -> None:
    kind = _unsigned(i.kind)
    one, two, *more = _values(code, i, kind)
    code.assign(i, i.operands[0], " + ".join([f"{one} * {two}", *more]), kind)


def _product_wide(code: Code, i: Instruction) -> None:
    wide = f"{i.kind[0]}{2 * BITS[i.kind]}"
    factors = " * ".join(f"{code.value(operand, i.kind)}.astype({DTYPES[wide]})" for operand in i.operands[1:3])
    addends = [code.value(operand, wide) for operand in i.operands[3:]]
    code.assign(i, i.operands[0], " + ".join([factors, *addends]), wide)


def _product_high(code: Code, i: Instruction) -> None:
    _require(i.name == "mul", i)
    one, two = _values(code, i, i.kind)
    wide = DTYPES.get(f"{i.kind[0]}{2 * BITS[i.kind]}")
    code.assign(i, i.operands[0], f"m.product_high({one}, {two}, {wide})", i.kind)


@_emits("fma")
def _fma(code: Code, i: Instruction) -> None:
    if i.kind == "f32x2":
        return _of_pairs(code, i, "a, b, c", "m.fma(a, b, c)")
    _require(i.opcode == ("fma", "rn", "f32"), i)
    return code.assign(i, i.operands[0], f"m.fma({', '.join(_values(code, i, 'f32'))})", "f32")


@_emits("div")
def _quotient(code: Code, i: Instruction) -> None:
    one, two = _values(code, i, i.kind)
    if i.kind[0] in "su":
        return code.assign(i, i.operands[0], f"m.quotient({one}, {two})", i.kind)
    if i.opcode == ("div", "full", "f32"):
        return code.assign(i, i.operands[0], f"wave.approximate.full_quotient({one}, {two})", "f32")
    _require(i.opcode == ("div", "rn", "f32"), i)
    return code.assign(i, i.operands[0], f"m.canonical({one} / {two})", "f32")


@_emits("rem")
def _remainder(code: Code, i: Instruction) -> None:
    code.assign(i, i.operands[0], f"m.remainder({', '.join(_values(code, i, i.kind))})", i.kind)


@_emits("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos")
def _approximate(code: Code, i: Instruction) -> None:
    (value,) = _values(code, i, "f32")
    if i.opcode[1:] == ("rn", "f32") and i.name in ("sqrt", "rcp"):
        exact = f"np.sqrt({value})" if i.name == "sqrt" else f"np.float32(1) / {value}"
        return code.assign(i, i.operands[0], f"m.canonical({exact})", "f32")
    _require(i.opcode[1] == "approx" and set(i.opcode[2:-1]) <= {"ftz"} and i.kind == "f32", i)
    return code.assign(i, i.operands[0], f"wave.approximate({i.name!r}, {value}, {'ftz' in i.opcode})", "f32")


@_emits("min", "max")
def _extreme(code: Code, i: Instruction) -> None:
    """Of two operands, or (float32; sm_100 and later) of three."""
    one, *others = _values(code, i, i.kind)
    function = {"min": "minimum", "max": "maximum"}[i.name]
    if i.kind == "f32":
        _require(set(i.opcode[1:-1]) <= {"NaN"} and len(others) in (1, 2), i)
        for other in others:
            one = f"m.{function}({one}, {other}, {'NaN' in i.opcode})"
        return code.assign(i, i.operands[0], one, "f32")
    _require(i.kind[0] in "su" and len(i.opcode) == 2 and len(others) == 1, i)
    return code.assign(i, i.operands[0], f"np.{function}({one}, {others[0]})", i.kind)


@_emits("neg", "abs")
def _sign(code: Code, i: Instruction) -> None:
    _require(i.kind in ("f32", "f64") or (i.kind[0] == "s" and len(i.opcode) == 2), i)
    (value,) = _values(code, i, i.kind)
    code.assign(i, i.operands[0], f"-{value}" if i.name == "neg" else f"np.abs({value})", i.kind)


# -- bits ------------------------------------------------------------------------------------------------------


@_emits("and", "or", "xor", "not")
def _logic(code: Code, i: Instruction) -> None:
    kind = "pred" if i.kind == "pred" else _unsigned(i.kind)
    values = _values(code, i, kind)
    expression = f"~{values[0]}" if i.name == "not" else f" {_SIGNS[i.name]} ".join(values)
    code.assign(i, i.operands[0], expression, kind)


@_emits("shl", "shr")
def _shift(code: Code, i: Instruction) -> None:
    kind = i.kind if i.kind[0] in "su" and i.name == "shr" else _unsigned(i.kind)
    value, amount = code.value(i.operands[1], kind), i.operands[2]
    if not amount.startswith("%") and 0 <= int(amount, 0) < BITS[kind]:
        sign = "<<" if i.name == "shl" else ">>"
        return code.assign(i, i.operands[0], f"{value} {sign} {code.value(amount, kind)}", kind)
    function = "shift_left" if i.name == "shl" else "shift_right"
    expression = f"m.{function}({value}, {code.value(amount, 'u32')}, {BITS[kind]})"
    return code.assign(i, i.operands[0], expression, kind)


@_emits("shf")
def _funnel(code: Code, i: Instruction) -> None:
    _require(i.opcode[1] in ("l", "r") and i.opcode[2:] == ("wrap", "b32"), i)
    function = {"l": "funnel_left", "r": "funnel_right"}[i.opcode[1]]
    code.assign(i, i.operands[0], f"m.{function}({', '.join(_values(code, i, 'u32'))})", "u32")


@_emits("popc")
def _population(code: Code, i: Instruction) -> None:
    (value,) = _values(code, i, _unsigned(i.kind))
    code.assign(i, i.operands[0], f"np.bitwise_count({value}).astype(np.uint32)", "u32")


@_emits("bfe")
def _bit_field(code: Code, i: Instruction) -> None:
    bits, kind = BITS[i.kind], _unsigned(i.kind)
    value, begin, length = code.value(i.operands[1], kind), *(code.value(each, "u32") for each in i.operands[2:])
    arguments = f"{value}, {begin}, {length}, {i.kind[0] == 's'}, {bits}"
    code.assign(i, i.operands[0], f"m.bit_field({arguments})", kind)


@_emits("prmt")
def _permute(code: Code, i: Instruction) -> None:
    """Bytes by a selector of four, or (f4e) the four from a place on."""
    _require(i.opcode in (("prmt", "b32"), ("prmt", "b32", "f4e")), i)
    one, other, selector = _values(code, i, "u32")
    if i.opcode[-1] == "f4e":
        selector = f"(({selector}) & 3) * np.uint32(0x1111) + np.uint32(0x3210)"
    code.assign(i, i.operands[0], f"m.permute({one}, {other}, {selector})", "u32")


@_emits("lop3")
def _truth_table(code: Code, i: Instruction) -> None:
    _require(i.opcode == ("lop3", "b32"), i)
    values = [code.value(operand, "u32") for operand in i.operands[1:4]]
    code.assign(i, i.operands[0], f"m.truth_table({', '.join(values)}, {int(i.operands[4], 0)})", "u32")


# -- choices and moves -----------------------------------------------------------------------------------------

_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=",
                "hi": ">", "hs": ">="}  # fmt: skip


@_emits("setp")
def _compare(code: Code, i: Instruction) -> None:
    _require(len(i.opcode) == 3 and len(i.operands) == 3, i)
    how, kind = i.opcode[1], _unsigned(i.kind) if i.kind[0] == "b" else i.kind
    one, two = _values(code, i, kind)
    unordered = f"m.is_nan({one}, {two})"
    if how in ("num", "nan"):
        expression = unordered if how == "nan" else f"~{unordered}"
    elif how in _COMPARISONS:
        expression = f"({one} {_COMPARISONS[how]} {two})"
        if how == "ne" and kind[0] == "f":
            expression += f" & ~{unordered}"
    else:
        _require(how[-1] == "u" and how[:-1] in _COMPARISONS, i)
        expression = f"({one} {_COMPARISONS[how[:-1]]} {two}) | {unordered}"
    code.assign(i, i.operands[0], expression, "pred")


@_emits("selp")
def _select(code: Code, i: Instruction) -> None:
    kind = _unsigned(i.kind)
    one, two = (code.value(operand, kind) for operand in i.operands[1:3])
    code.assign(i, i.operands[0], f"np.where({code.value(i.operands[3], 'pred')}, {one}, {two})", kind)


@_emits("mov")
def _move(code: Code, i: Instruction) -> None:
    result, source = i.operands
    if isinstance(result, tuple):
        return _unpack(code, i)
    if isinstance(source, tuple):
        return _pack(code, i)
    kind = "pred" if i.kind == "pred" else _unsigned(i.kind)
    return code.assign(i, result, code.value(source, kind), kind)


def _unpack(code: Code, i: Instruction) -> None:
    parts, source = i.operands
    whole = code.width(source)
    part = whole // len(parts)
    for place, register in enumerate(parts):
        expression = f"({name_of(source)} >> np.uint{whole}({place * part})).astype(np.uint{part})"
        code.assign(i, register, expression, f"u{part}")


def _pack(code: Code, i: Instruction) -> None:
    result, parts = i.operands
    whole = code.width(result)
    part = whole // len(parts)
    terms = [
        f"({code.value(operand, f'u{part}')}.astype(np.uint{whole}) << np.uint{whole}({place * part}))"
        for place, operand in enumerate(parts)
    ]
    code.assign(i, result, " | ".join(terms), f"u{whole}")


@_emits("cvt")
def _convert(code: Code, i: Instruction) -> None:
    *modifiers, dest, source = i.opcode[1:]
    if "f" in dest or "f" in source:
        return _convert_float(code, i, tuple(modifiers), dest, source)
    _require(not modifiers, i)
    value = code.value(i.operands[1], source)
    return code.assign(i, i.operands[0], f"np.asarray({value}).astype({DTYPES[dest]})", dest)


def _convert_float(code: Code, i: Instruction, modifiers: tuple[str, ...], dest: str, source: str) -> None:
    halves = ("f16", "bf16")
    result, nearest = i.operands[0], modifiers == ("rn",)
    if dest in ("f16x2", "bf16x2") and source == "f32" and nearest:
        high, low = (f"m.to_{dest[:-2]}({code.value(operand, 'f32')})" for operand in i.operands[1:])
        return code.assign(i, result, f"m.pair({high}, {low})", "u32")
    if dest in halves and source == "f32" and nearest:
        return code.assign(i, result, f"m.to_{dest}({code.value(i.operands[1], 'f32')})", "u16")
    if dest == "f32" and source in halves and not modifiers:
        return code.assign(i, result, f"m.from_{source}({code.value(i.operands[1], 'u16')})", "f32")
    value = code.value(i.operands[1], source)
    if source == "f32" and dest in DTYPES and dest[0] in "su":
        _require(modifiers == ("rzi",), i)
        return code.assign(i, result, f"m.to_integer({value}, {DTYPES[dest]})", dest)
    _require(dest in DTYPES and source in DTYPES and (nearest or (dest, source) == ("f64", "f32")), i)
    return code.assign(i, result, f"{value}.astype({DTYPES[dest]})", dest)


# -- memory ----------------------------------------------------------------------------------------------------

_CACHING = {"cg", "ca", "nc", "L1::evict_last", "L1::evict_first", "L1::no_allocate", "volatile", "weak"}
_ORDERS = {"acquire", "release", "relaxed"}
_SPACES = {"global": "device", "shared": "shared", "shared::cta": "shared"}


def _vector(operand) -> tuple[str, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def _order(i: Instruction) -> str:
    return next(part for part in i.opcode if part in _ORDERS)


def _access_of(code: Code, i: Instruction, registers: tuple[str, ...], address) -> tuple[str, str, str]:
    """Space, the access as a constant, and the address."""
    space = _SPACES.get(i.opcode[1])
    _require(space is not None and set(i.opcode[2:-1]) <= {"v2", "v4", *_CACHING, *_ORDERS, "gpu"}, i)
    access = code.constant(Access(BITS[i.kind] // 8, len(registers)))
    return str(space), access, code.address(address, "u64" if space == "device" else "u32")


@_emits("ld")
def _load(code: Code, i: Instruction) -> None:
    if i.opcode[1] == "param":
        expression = f"wave.parameter({i.operands[1].base!r}, {i.operands[1].offset}, np.uint{BITS[i.kind]})"
        return code.assign(i, i.operands[0], expression, _unsigned(i.kind))
    registers = _vector(i.operands[0])
    space, access, address = _access_of(code, i, registers, i.operands[1])
    ordered = f", {_order(i)!r}" if i.synchronises else ""
    code.line(f"t = wave.{space}.load(running, {address}, {access}, {code.mask(i)}, {code.constant(i)}{ordered})")
    for place, register in enumerate(registers):
        loaded = f"t[{place}]" if i.kind[0] != "s" else f"t[{place}].view({DTYPES[i.kind]})"
        code.assign(i, register, loaded, i.kind if i.kind[0] == "s" else _unsigned(i.kind))
    return None


@_emits("st")
def _store(code: Code, i: Instruction) -> None:
    operands = _vector(i.operands[1])
    space, access, address = _access_of(code, i, operands, i.operands[0])
    values = ", ".join(code.value(operand, _unsigned(i.kind)) for operand in operands)
    ordered = f", {_order(i)!r}" if i.synchronises else ""
    arguments = f"running, {address}, {access}, [{values}], {code.mask(i)}, {code.constant(i)}{ordered}"
    code.line(f"wave.{space}.store({arguments})")


_OPERATIONS = {
    "add": operator.add,
    "exch": lambda old, new: new,
    "min": np.minimum,
    "max": np.maximum,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
}


@_emits("atom", "red")
def _atomic(code: Code, i: Instruction) -> None:
    _require(len(i.opcode) == 6 and i.opcode[1:3] == ("global", "gpu") and i.opcode[4] in _OPERATIONS, i)
    order, operation, kind = i.opcode[3:]
    _require(kind in ("u32", "b32", "u64", "b64") or (kind in ("s32", "s64") and operation == "add"), i)
    address, value = i.operands[-2:]
    arguments = [code.address(address, "u64"), code.constant(Access(BITS[kind] // 8, 1))]
    arguments += [code.constant(_OPERATIONS[operation]), code.value(value, _unsigned(kind)), repr(order)]
    code.line(f"t = wave.device.atomic(running, {', '.join(arguments)}, {code.mask(i)}, {code.constant(i)})")
    if i.name == "atom":
        code.assign(i, i.operands[0], "t", _unsigned(kind))


# -- warps -----------------------------------------------------------------------------------------------------


@_emits("shfl")
def _shuffle(code: Code, i: Instruction) -> None:
    result, value, operand, segments, members = i.operands
    known = i.opcode[1] == "sync" and i.opcode[2] in ("bfly", "idx", "up", "down") and i.opcode[3] == "b32"
    _require(known and not i.predicate and int(members, 0) in (-1, 0xFFFFFFFF), i)
    arguments = f"{code.value(value, 'u32')}, {code.value(operand, 'u32')}, {int(segments, 0)}"
    code.line(f"t = wave.warps.shuffle(running, {i.opcode[2]!r}, {arguments}, {code.constant(i)})")
    registers = result.split("|")
    code.assign(i, registers[0], "t[0]", "u32")
    if len(registers) > 1:
        code.assign(i, registers[1], "t[1]", "pred")


@_emits("redux")
def _reduce(code: Code, i: Instruction) -> None:
    _require(not i.predicate and BITS[i.kind] == 32, i)
    how, kind = i.opcode[2], _unsigned(i.kind) if i.kind[0] == "b" else i.kind
    if kind == "f32":  # sm_100 and later
        _require(how in ("min", "max") and set(i.opcode[3:-1]) <= {"NaN"}, i)
        how += ".NaN" if "NaN" in i.opcode else ".number"
    value, members = code.value(i.operands[1], kind), code.value(i.operands[2], "u32")
    code.line(f"t = wave.warps.reduce(running, {how!r}, {value}, {members}, {code.constant(i)})")
    code.assign(i, i.operands[0], "t", kind)


def _matrices(i: Instruction) -> tuple[int, bool]:
    """How many, and whether they are transposed on the way."""
    plain = tuple(part for part in i.opcode if part != "trans")
    known = plain[1:4] == ("sync", "aligned", "m8n8") and plain[4] in ("x1", "x2", "x4")
    _require(known and plain[5] in _SPACES and plain[6] == "b16" and not i.predicate, i)
    return int(plain[4][1]), "trans" in i.opcode


@_emits("ldmatrix")
def _load_matrices(code: Code, i: Instruction) -> None:
    number, transposed = _matrices(i)
    address = code.address(i.operands[1], "u32")
    code.line(f"t = wave.warps.load_matrices(running, {address}, {number}, {transposed}, {code.constant(i)})")
    for place, register in enumerate(_vector(i.operands[0])):
        code.assign(i, register, f"t[{place}]", "u32")


@_emits("stmatrix")
def _store_matrices(code: Code, i: Instruction) -> None:
    _, transposed = _matrices(i)
    values = ", ".join(code.value(operand, "u32") for operand in _vector(i.operands[1]))
    address = code.address(i.operands[0], "u32")
    code.line(f"wave.warps.store_matrices(running, {address}, [{values}], {transposed}, {code.constant(i)})")
