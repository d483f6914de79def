"""What a packed file's tensors mean: its layout string, checked against the tensors, and all widths.

Standard library and numpy alone. After :func:`read_layout` every size and width of the file is known to be
right; what is left to check are the checksums of the levels and the values of the ranges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ..files.safetensors_reader import (
    Header,
    file_error,
    read_bytes,
    read_checksums,
    read_header,
    read_json,
    valid_shape,
    whole,
)
from .widths import WidthError, check_coding, decode_widths, fixed_bytes, group_count, word_count

PARTS = (".words", ".widths", ".range")
WEIGHT_DTYPES = ("F32", "F16", "BF16")
HALF_DTYPES = ("F64", "F32", "BF16")
RANGE_SCOPES = ("tensor", "group", "scale")
DAMAGED = "; the file is damaged or truncated"


@dataclass(frozen=True)
class WeightLayout:
    """How one weight is stored."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    group_size: int
    range_scope: str
    coding: list[Any]
    level_count: int | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        return group_count(self.count, self.group_size)

    @property
    def range_shape(self) -> tuple[int, ...]:
        return {"tensor": (2,), "group": (self.groups, 2), "scale": (1,)}[self.range_scope]

    def to_json(self) -> dict[str, Any]:
        fields = {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "group_size": self.group_size,
            "range": self.range_scope,
            "widths": self.coding,
        }
        return fields if self.level_count is None else fields | {"levels": self.level_count}


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


def layout_text(
    weights: Iterable[WeightLayout], ties: Mapping[str, str], half: Mapping[str, str], buffers: Iterable[str]
) -> str:
    """The metadata string "layout": compact JSON; what is empty is left out, except the weights."""
    layout: dict[str, Any] = {"weights": {weight.name: weight.to_json() for weight in weights}}
    layout |= {"ties": dict(ties)} if ties else {}
    layout |= {"half": dict(half)} if half else {}
    layout |= {"buffers": sorted(buffers)} if buffers else {}
    return compact_json(layout)


def compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def read_layout(file: BinaryIO, path: str) -> PackedLayout:
    """Header, sizes and widths of a packed file, verified in this order; the levels are not read.

    Raises PackedFileError naming the file and the tensor.
    """
    header = read_header(file, path, packed=True)
    checksums = read_checksums(header)
    quantizer = _read_quantizer(header)
    layout = read_json(header.metadata["layout"], path, "layout")
    unknown = set(layout) - {"weights", "ties", "half", "buffers"}
    if unknown or not isinstance(layout.get("weights"), dict):
        raise file_error(path, "layout", f"expected weights, ties, half, buffers; found {str(sorted(layout))[:80]}")
    weights = {name: _read_weight(name, fields, header) for name, fields in layout["weights"].items()}
    parts = {name + part for name in weights for part in PARTS}
    plain = tuple(name for name in header.tensors if name not in parts)
    ties = _read_names(layout.get("ties", {}), "ties", header)
    half = _read_names(layout.get("half", {}), "half", header)
    buffers = _read_names(dict.fromkeys(_as_list(layout.get("buffers", []), header), ""), "buffers", header)
    _check_names(weights, plain, ties, half, buffers, header)
    widths = {name: _read_widths(file, header, weight, checksums) for name, weight in weights.items()}
    return PackedLayout(header, weights, widths, plain, ties, half, frozenset(buffers), quantizer, checksums)


def _read_weight(name: str, fields: Any, header: Header) -> WeightLayout:
    """One weight's layout, its tensors' dtypes and the sizes that do not depend on its widths."""

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise file_error(header.path, name, problem)

    expected = {"shape", "dtype", "group_size", "range", "widths"}
    require(
        isinstance(fields, dict) and set(fields) - {"levels"} == expected,
        f"the layout must state {', '.join(sorted(expected))}",
    )
    require(
        valid_shape(fields["shape"]),
        f"the layout's shape {str(fields['shape'])[:80]} is no shape of a tensor",
    )
    require(
        fields["dtype"] in WEIGHT_DTYPES,
        f"dtype must be one of {WEIGHT_DTYPES}, got {str(fields['dtype'])[:20]}",
    )
    require(whole(fields["group_size"]), f"group_size must be 0 or positive, got {str(fields['group_size'])[:40]}")
    require(
        fields["range"] in RANGE_SCOPES,
        f"range must be one of {RANGE_SCOPES}, got {str(fields['range'])[:20]}",
    )
    try:
        check_coding(fields["widths"])
    except WidthError as error:
        raise file_error(header.path, name, str(error)) from None
    weight = WeightLayout(
        name,
        tuple(fields["shape"]),
        fields["dtype"],
        fields["group_size"],
        fields["range"],
        fields["widths"],
        fields.get("levels"),
    )
    problem = _scheme_problem(weight)
    require(problem is None, problem or "")
    for part, dtype in ((".words", "U32"), (".range", "F32")):
        require(name + part in header.tensors, f"the file has no tensor {name + part!r}{DAMAGED}")
        found_dtype = header.tensors[name + part].dtype
        require(found_dtype == dtype, f"{name + part!r} must be {dtype}, found {found_dtype}")
    words, found = header.tensors[name + ".words"], header.tensors[name + ".range"]
    require(len(words.shape) == 1, f"the words must have one dimension, found {list(words.shape)}")
    require(
        found.shape == weight.range_shape,
        f"expected a range of {weight.range_shape}, found {found.shape}{DAMAGED}",
    )
    least = f"{words.byte_count:,} packed bytes cannot hold {weight.count:,} levels{DAMAGED}"
    require(8 * words.byte_count >= weight.count, least)  # bounds all memory by the length of the file
    _check_width_table(weight, header)
    return weight


def _scheme_problem(weight: WeightLayout) -> str | None:
    """Why a range "scale" or a count of levels cannot be, or None: both are for one width, and the count needs it."""
    width = weight.coding[1] if weight.coding[0] == "one" else 0
    if weight.range_scope == "scale" and (weight.group_size != 0 or (width < 2 and weight.count)):
        return 'range "scale" needs group_size 0 and the coding ["one", 2 … 16]'
    if weight.level_count is not None:
        fits = whole(weight.level_count) and (1 << width) // 2 < weight.level_count < 1 << width
        if not fits or weight.range_scope != "tensor":
            found = f"{str(weight.level_count)[:20]} with widths {weight.coding}, range {weight.range_scope!r}"
            return f'levels needs range "tensor" and the coding ["one", the fewest bits for more than 2], got {found}'
    return None


def _check_width_table(weight: WeightLayout, header: Header) -> None:
    name = weight.name + ".widths"
    entry = header.tensors.get(name)
    if weight.coding[0] == "one":
        if entry is not None:
            raise file_error(header.path, name, "all groups have one width, so there must be no such tensor")
        return
    if entry is None or entry.dtype != "U8" or len(entry.shape) != 1:
        raise file_error(header.path, weight.name, f"the file has no U8 tensor {name!r} of one dimension{DAMAGED}")
    expected = fixed_bytes(weight.groups, weight.coding[2]) if weight.coding[0] == "fixed" else entry.byte_count
    if entry.byte_count != expected:
        problem = f"expected {expected:,} bytes for {weight.groups:,} widths, found {entry.byte_count:,}{DAMAGED}"
        raise file_error(header.path, name, problem)


def _read_widths(file: BinaryIO, header: Header, weight: WeightLayout, checksums: Mapping[str, int]) -> np.ndarray:
    name = weight.name + ".widths"
    entry = header.tensors.get(name)
    data = read_bytes(file, header, entry, checksums[name]) if entry else b""
    try:
        widths = decode_widths(weight.coding, data, weight.groups)
    except WidthError as error:
        raise file_error(header.path, name, str(error) + DAMAGED) from None
    words = header.tensors[weight.name + ".words"]
    expected = 4 * word_count(widths, weight.count, weight.group_size)
    if words.byte_count != expected:
        problem = f"expected {expected:,} packed bytes for {weight.count:,} levels, found {words.byte_count:,}"
        raise file_error(header.path, words.name, problem + DAMAGED)
    return widths


def _read_quantizer(header: Header) -> dict[str, Any]:
    quantizer = read_json(header.metadata["quantizer"], header.path, "quantizer", floats=True)
    if not isinstance(quantizer.get("class"), str) or not isinstance(quantizer.get("arguments"), dict):
        raise file_error(header.path, "quantizer", "expected a class name and an object of arguments")
    return quantizer


def learned_suffix(quantizer: Mapping[str, Any]) -> Any:
    """What the names of learned parameters end in, as the file says it or as its quantizer has it by default."""
    return quantizer["arguments"].get("suffix", "_lsq" if quantizer["class"] == "LSQ" else "_diffq")


def _as_list(value: Any, header: Header) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise file_error(header.path, "buffers", "expected a list of names")
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
    problem = name_conflict(weights, plain, ties)
    if problem:
        raise file_error(header.path, "layout", problem)
    for alias, name in ties.items():
        if name not in stored:
            raise file_error(header.path, alias, f"is tied to {name!r}, which the file does not have")
    for where, names in (("half", half), ("buffers", buffers)):
        for name in names:
            if name in weights or name not in stored:
                raise file_error(header.path, where, f"names {name!r}, which is no plain tensor of the file")
    for name, dtype in half.items():
        if dtype not in HALF_DTYPES or header.tensors[name].dtype != "F16":
            found = f"{header.tensors[name].dtype} to {dtype[:20]}"
            raise file_error(header.path, name, f"expected F16 restored to one of {HALF_DTYPES}, found {found}")


def name_conflict(weights: Iterable[str], plain: Iterable[str], ties: Iterable[str]) -> str | None:
    """Why these names cannot stand in one file, or None: each name may mean one thing only."""
    seen: dict[str, str] = {"__metadata__": "the file's metadata"}
    kinds = [(name, "a quantised weight") for name in weights]
    kinds += [(name + part, f"a part of the quantised weight {name!r}") for name in weights for part in PARTS]
    kinds += [(name, "a plain tensor") for name in plain] + [(name, "a tied name") for name in ties]
    for name, kind in kinds:
        if name in seen:
            return f"the name {name!r} is both {seen[name]} and {kind}"
        seen[name] = kind
    return None
