"""What a packed file's tensors mean: its layout, checked against the tensors, and all widths.

Standard library and numpy alone. After :func:`read_layout` every size and width of the file is known to be
right; what is left to check are the checksums of the levels and the values of the ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from ..files.safetensors_reader import Header, file_error, read_tensor, valid_shape, whole
from ..quantizers.stored_input import StoredInput
from ..reference.sizes import (
    ELEMENTS_PER_WORD,
    MOST_GROUPS_PER_UNIT,
    group_count,
    short_range_bytes,
    word_count,
)
from .activations import KEY, read_activations
from .header import PackedHeader, read_packed_header
from .widths import WidthError, coding_problem, decode_widths, fixed_bytes, stream_levels

PARTS = (".words", ".widths", ".range")
CODED_PARTS = (*PARTS, ".coded")  # of a weight in a file of version 2
WEIGHT_DTYPES = ("F32", "F16", "BF16")
HALF_DTYPES = ("F64", "F32", "BF16")
RANGE_SCOPES = ("tensor", "group", "scale")
STEPS = "steps"  # one more, of coded weights
CODING = "rans"
FIELDS = {"shape", "dtype", "group_size", "range", "widths"}
DAMAGED = "; the file is damaged or truncated"


@dataclass(frozen=True)
class WeightLayout:
    """How one weight is stored."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    group_size: int
    groups: int
    range_scope: str
    coding: list[Any]
    level_count: int | None = None
    coded: bool = False
    groups_per_unit: int | None = None  # of short ranges

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class PackedLayout:
    """A packed file's contents: weights and their widths, and the plain tensors, which are all the others.

    ties: alias -> stored name (a weight or a plain tensor). half: plain tensor stored F16 -> its own dtype.
    """

    header: Header
    weights: dict[str, WeightLayout]
    widths: dict[str, np.ndarray]
    plain: tuple[str, ...]
    ties: dict[str, str]
    half: dict[str, str]
    buffers: frozenset[str]
    quantizer: dict[str, Any]
    checksums: dict[str, int]
    parts: tuple[str, ...]
    activations: dict[str, StoredInput] = field(default_factory=dict)


def layout_fields(
    weights: Iterable[WeightLayout], ties: Mapping[str, str], half: Mapping[str, str], buffers: Iterable[str]
) -> dict[str, Any]:
    """The metadata's "layout" as JSON values; what is empty is left out, except the weights."""
    stated: dict[str, Any] = {}
    for weight in weights:
        stated[weight.name] = {
            "shape": list(weight.shape),
            "dtype": weight.dtype,
            "group_size": weight.group_size,
            "range": weight.range_scope,
            "widths": weight.coding,
        }
        if weight.level_count is not None:
            stated[weight.name]["levels"] = weight.level_count
        if weight.coded:
            stated[weight.name]["coding"] = CODING
        if weight.groups_per_unit is not None:
            stated[weight.name]["groups_per_unit"] = weight.groups_per_unit
    layout: dict[str, Any] = {"weights": stated}
    layout |= {"ties": dict(ties)} if ties else {}
    layout |= {"half": dict(half)} if half else {}
    layout |= {"buffers": sorted(buffers)} if buffers else {}
    return layout


def needs_version_2(weight: WeightLayout) -> bool:
    return weight.coded or weight.groups_per_unit is not None


def read_layout(file: BinaryIO, path: str) -> PackedLayout:
    """Header, sizes and widths of a packed file, verified in this order; the levels are not read.

    Raises PackedFileError naming the file and the tensor.
    """
    packed = read_packed_header(file, path)
    header, layout = packed.tensors, packed.layout
    unknown = set(layout) - {"weights", "ties", "half", "buffers"}
    if unknown or not isinstance(layout.get("weights"), dict):
        raise file_error(path, "layout", f"expected weights, ties, half, buffers; found {str(sorted(layout))[:80]}")
    weights = {name: _read_weight(name, fields, packed) for name, fields in layout["weights"].items()}
    if packed.coded and not any(map(needs_version_2, weights.values())):
        expected = "a coded weight, or one with short ranges"
        raise file_error(path, "layout", f"expected {expected}, in a file of version 2, found none")
    endings = CODED_PARTS if packed.coded else PARTS
    parts = {name + part for name in weights for part in endings}
    plain = tuple(name for name in header.tensors if name not in parts)
    ties = _read_names(layout.get("ties", {}), "ties", header)
    half = _read_names(layout.get("half", {}), "half", header)
    buffers = _read_list(layout.get("buffers", []), "buffers", header)
    problem = name_conflict(weights, plain, ties, endings)
    if problem:
        raise file_error(path, "layout", problem)
    _check_names(weights, plain, ties, half, buffers, header)
    widths = _read_widths(file, packed, weights)
    activations = read_activations(header.metadata[KEY], path) if KEY in header.metadata else {}
    described = packed.quantizer, packed.checksums, endings, activations
    return PackedLayout(header, weights, widths, plain, ties, half, frozenset(buffers), *described)


def _read_weight(name: str, fields: Any, packed: PackedHeader) -> WeightLayout:
    """One weight's layout, its tensors' dtypes and the sizes that do not depend on its widths."""
    header = packed.tensors
    problem = _field_problem(fields, packed.coded)
    if problem is not None:
        raise file_error(header.path, name, problem)
    weight = WeightLayout(
        name,
        shape=tuple(fields["shape"]),
        dtype=fields["dtype"],
        group_size=fields["group_size"],
        groups=group_count(math.prod(fields["shape"]), fields["group_size"]),
        range_scope=fields["range"],
        coding=fields["widths"],
        level_count=fields.get("levels"),
        coded="coding" in fields,
        groups_per_unit=fields.get("groups_per_unit"),
    )
    problem = _scheme_problem(weight) or _part_problem(weight, header)
    if problem is not None:
        raise file_error(header.path, name, problem)
    _check_width_table(weight, header)
    return weight


def _field_problem(fields: Any, coded: bool) -> str | None:
    """Why these are not the fields of a weight's layout, or None; each is looked at by itself."""
    optional = {"levels", "coding", "groups_per_unit"} if coded else {"levels"}
    if not isinstance(fields, dict) or set(fields) - optional != FIELDS:
        return f"the layout must state {', '.join(sorted(FIELDS))}"
    if not valid_shape(fields["shape"]):
        return f"the layout's shape {str(fields['shape'])[:80]} is no shape of a tensor"
    if fields["dtype"] not in WEIGHT_DTYPES:
        return f"dtype must be one of {WEIGHT_DTYPES}, got {str(fields['dtype'])[:20]}"
    if not whole(fields["group_size"]):
        return f"group_size must be 0 or positive, got {str(fields['group_size'])[:40]}"
    scopes = (*RANGE_SCOPES, STEPS) if "coding" in fields else RANGE_SCOPES
    if fields["range"] not in scopes:
        return f"range must be one of {scopes}, got {str(fields['range'])[:20]}"
    if fields.get("levels", 0) is None:
        return "levels needs a number, got null"
    per_unit = fields.get("groups_per_unit", 1)
    if not whole(per_unit) or not 1 <= per_unit <= MOST_GROUPS_PER_UNIT:
        return f"groups_per_unit must be from 1 to {MOST_GROUPS_PER_UNIT:,}, got {str(per_unit)[:40]}"
    if fields.get("coding", CODING) != CODING:
        return f"coding must be {CODING!r}, got {str(fields['coding'])[:20]}"
    return coding_problem(fields["widths"])


def _scheme_problem(weight: WeightLayout) -> str | None:
    """Why a range "scale" or a count of levels cannot be, or None: both are for one width, and the count needs it."""
    width = weight.coding[1] if weight.coding[0] == "one" else 0
    if weight.range_scope == "scale" and (weight.group_size != 0 or (width < 2 and weight.count)):
        return 'range "scale" needs group_size 0 and the coding ["one", 2 … 16]'
    if weight.groups_per_unit is not None and weight.range_scope != "group":
        return f'groups_per_unit needs range "group", got {weight.range_scope!r}'
    if weight.range_scope == STEPS and weight.level_count is not None:
        return 'range "steps" has no count of levels'
    if weight.level_count is not None:
        fits = type(weight.level_count) is int and (1 << width) // 2 < weight.level_count < 1 << width
        if not fits or weight.range_scope != "tensor":
            stated = f"{str(weight.level_count)[:20]} with widths {weight.coding}, range {weight.range_scope!r}"
            return f'levels needs range "tensor" and the coding ["one", the fewest bits for more than 2], got {stated}'
    return None


def _part_problem(weight: WeightLayout, header: Header) -> str | None:
    """Why the words and the ranges that the file has cannot be the weight's, or None."""
    if weight.coded:
        return _coded_part_problem(weight, header)
    problem = _tensor_problem(weight, header, ".words", "U32") or _range_problem(weight, header)
    if problem is not None:
        return problem
    words = header.tensors[weight.name + ".words"]
    size, count = words.end - words.begin, weight.count
    if 8 * size < count:  # bounds all memory by the length of the file
        return f"{size:,} packed bytes cannot hold {count:,} levels{DAMAGED}"
    return None


def _coded_part_problem(weight: WeightLayout, header: Header) -> str | None:
    """The same for a coded weight, whose levels may take far less than a bit."""
    problem = _tensor_problem(weight, header, ".coded", "U16") or _range_problem(weight, header)
    if problem is not None:
        return problem
    if weight.name + ".words" in header.tensors:
        return f"its levels are coded, so there must be no tensor {weight.name + '.words'!r}"
    words, count = header.tensors[weight.name + ".coded"].byte_count // 2, weight.count
    if ELEMENTS_PER_WORD * words < count:  # bounds all memory by the length of the file
        return f"{2 * words:,} coded bytes cannot hold {count:,} levels{DAMAGED}"
    return None


def _tensor_problem(weight: WeightLayout, header: Header, part: str, dtype: str) -> str | None:
    """Why the file's tensor for a part of the weight cannot be that, or None."""
    name = weight.name + part
    if name not in header.tensors:
        return f"the file has no tensor {name!r}{DAMAGED}"
    entry = header.tensors[name]
    if entry.dtype != dtype:
        return f"{name!r} must be {dtype}, found {entry.dtype}"
    if part != ".range" and len(entry.shape) != 1:
        return f"the {part[1:]} must have one dimension, found {list(entry.shape)}"
    return None


def _range_problem(weight: WeightLayout, header: Header) -> str | None:
    if weight.range_scope == STEPS:
        spare = weight.name + ".range"
        return f"its steps are coded, so there must be no tensor {spare!r}" if spare in header.tensors else None
    short = weight.groups_per_unit
    problem = _tensor_problem(weight, header, ".range", "F32" if short is None else "U8")
    if problem is not None:
        return problem
    found = header.tensors[weight.name + ".range"].shape
    if short is not None:
        size = short_range_bytes(weight.groups, short)
        return None if found == (size,) else f"expected {size:,} bytes of ranges, found {found}{DAMAGED}"
    expected = {"tensor": (2,), "group": (weight.groups, 2), "scale": (1,)}[weight.range_scope]
    return None if found == expected else f"expected a range of {expected}, found {found}{DAMAGED}"


def _check_width_table(weight: WeightLayout, header: Header) -> None:
    name = weight.name + ".widths"
    entry = header.tensors.get(name)
    if weight.coding[0] == "one":
        if entry is not None:
            raise file_error(header.path, name, "all groups have one width, so there must be no such tensor")
        return
    if entry is None or entry.dtype != "U8" or len(entry.shape) != 1:
        raise file_error(header.path, weight.name, f"the file has no U8 tensor {name!r} of one dimension{DAMAGED}")
    size = entry.end - entry.begin
    expected = fixed_bytes(weight.groups, weight.coding[2]) if weight.coding[0] == "fixed" else size
    if size != expected:
        problem = f"expected {expected:,} bytes for {weight.groups:,} widths, found {size:,}{DAMAGED}"
        raise file_error(header.path, name, problem)


def _read_widths(file: BinaryIO, packed: PackedHeader, weights: Mapping[str, WeightLayout]) -> dict[str, np.ndarray]:
    """The widths of all weights by name, checked against the number of words that each weight has."""
    header, widths = packed.tensors, {}
    for weight in weights.values():
        name, count = weight.name + ".widths", weight.count
        entry = header.tensors.get(name)
        data = read_tensor(file, header, entry, packed.checksums[name]) if entry else b""
        try:
            widths[weight.name] = decode_widths(weight.coding, data, weight.groups)
        except WidthError as error:
            raise file_error(header.path, name, str(error) + DAMAGED) from None
        if weight.coded:
            continue  # the streams say themselves how long they are
        words = header.tensors[weight.name + ".words"]
        expected = 4 * word_count(stream_levels(widths[weight.name], count, weight.group_size))
        if words.end - words.begin != expected:
            problem = f"expected {expected:,} packed bytes for {count:,} levels, found {words.end - words.begin:,}"
            raise file_error(header.path, words.name, problem + DAMAGED)
    return widths


def learned_suffix(quantizer: Mapping[str, Any]) -> Any:
    """What the names of learned parameters end in: as the file says, or the default of its quantizer."""
    return quantizer["arguments"].get("suffix", "_lsq" if quantizer["class"] == "LSQ" else "_diffq")


def _read_list(value: Any, where: str, header: Header) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise file_error(header.path, where, "expected a list of names")
    return value


def _read_names(value: Any, where: str, header: Header) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise file_error(header.path, where, "expected an object whose values are all strings")
    return value


def _check_names(
    weights: Mapping[str, WeightLayout],
    plain: Iterable[str],
    ties: Mapping[str, str],
    half: Mapping[str, str],
    buffers: Iterable[str],
    header: Header,
) -> None:
    stored = {*weights, *plain}
    for alias, name in ties.items():
        if name not in stored:
            raise file_error(header.path, alias, f"is tied to {name!r}, which the file does not have")
    for where, names in (("half", half), ("buffers", buffers)):
        for name in names:
            if name in weights or name not in stored:
                raise file_error(header.path, where, f"names {name!r}, which is no plain tensor of the file")
    for name, dtype in half.items():
        if dtype not in HALF_DTYPES or header.tensors[name].dtype != "F16":
            stated = f"{header.tensors[name].dtype} to {dtype[:20]}"
            raise file_error(header.path, name, f"expected F16 restored to one of {HALF_DTYPES}, found {stated}")


def name_conflict(
    weights: Iterable[str], plain: Iterable[str], ties: Iterable[str], parts: Iterable[str] = PARTS
) -> str | None:
    """Why these names cannot stand in one file, or None: each name may mean one thing only.

    parts: what the names of a weight's tensors end in.
    """
    seen: dict[str, str] = {"__metadata__": "the file's metadata"}
    meanings = [(name, "a quantised weight") for name in weights]
    meanings += [(name + part, f"a part of the quantised weight {name!r}") for name in weights for part in parts]
    meanings += [(name, "a plain tensor") for name in plain] + [(name, "a tied name") for name in ties]
    for name, meaning in meanings:
        if name in seen:
            return f"the name {name!r} is both {seen[name]} and {meaning}"
        seen[name] = meaning
    return None
