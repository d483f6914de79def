"""A packed file's weights in an ONNX graph of the model: small integers with scales, where the graph had floats.

The graph is the model in float, exported by any tool. An initialiser belongs to the file's tensor of its name, or else
to the one whose values are close to its own, possibly transposed, as exporters leave them. Where the weight is the
matrix of a MatMul or a Gemm and its groups fit, the node becomes onnxruntime's MatMulNBits, which multiplies with the
packed weight; elsewhere DequantizeLinear gives the weight under its old name, so that whatever reads it still does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch

from ..files.atomic_file import atomic_file
from ..files.safetensors_reader import open_file, printable
from ..files.tensor_bytes import tensor_bytes
from ..packed.compare import NO_ERROR, Error
from ..packed.contents import PackedContents
from .levels import Levels, levels_of, packed_bytes
from .onnx_graph import BEFORE, WIDTHS_OPSET, Graph, Step, opset_of
from .onnx_tensors import Blocks, blocks, container, dequantised, grouped
from .options import ExportError, ExportOptions, cast
from .report import ExportedTensor, ExportReport, float_error

NAME = "onnx"
MOST_BYTES = (1 << 31) - 1  # of a protobuf message
INT8_ACCURACY = 4  # of MatMulNBits' levels of accuracy: inputs are rounded to int8
LEAST_PLACES = 64  # groups whose scales are worth a table
MOST_SPREAD, MOST_CHANCE, MOST_FACTOR = 0.05, 4.0, 0.1  # of factors that rounding leaves: see is_rounding_of
MOST_DISTANCE = 0.5  # of an initialiser from the weight that it is, against the weight's norm


class Match(NamedTuple):
    """An initialiser and the file's entry that it is; `transposed`: it has the entry's values, transposed."""

    initialiser: Any
    entry: str
    transposed: bool


def write(contents: PackedContents, output: str, options: ExportOptions) -> ExportReport:
    """Write the graph ``options.graph`` with the file's weights; its other initialisers stay as they are.

    Raises:
        ExportError: a weight that is not in the graph, or that the graph's version cannot express. ValueError: the
            graph is no ONNX model, or too large for one file. ImportError: the package onnx is not there.
    """
    if options.dtype != "float32":
        raise ValueError(f"export: {NAME} keeps the float type of the graph's own tensors; leave dtype={options.dtype}")
    onnx = imported("onnx")
    model, notes = _loaded(onnx, str(options.graph))
    weights = _Weights(onnx, model, contents, options)
    matches, missing, left = _matched(onnx, model, contents)
    if missing and not options.keep_float:
        raise ExportError(NAME, missing[0], f"no initialiser of {options.graph} has its name or its values")
    if left:
        notes.append(f"{len(left)} matrices of the graph stay as they are, in floats: {_listed(left)}")
    by_value = [match for match in matches if match.initialiser.name != match.entry]
    if by_value:
        pairs = [f"{each.entry} = {each.initialiser.name}" for each in by_value]
        notes.append(f"{len(by_value)} found by their values: {_listed(pairs)}")
    if missing:
        notes.append(f"{len(missing)} weights are not in the graph: {_listed(missing)}")
    tensors = []
    for done, match in enumerate(matches, 1):
        tensors.append(weights.replace(match))
        if options.progress is not None:
            options.progress(match.entry, done, len(matches))
    weights.finish()
    if model.ByteSize() > MOST_BYTES:
        raise ValueError(f"export: {output}: the graph takes {model.ByteSize():,} bytes, an ONNX file at most 2 GB")
    with atomic_file(output) as file:
        file.write(model.SerializeToString())
    return ExportReport(contents.path, output, NAME, os.path.getsize(output), tuple(tensors), tuple(notes))


def imported(package: str) -> Any:
    """An optional package; ImportError that says how to get it."""
    try:
        return __import__(package)
    except ImportError as error:
        told = f"export: this format needs the package {package} ({error}): pip install 'diffq_fast[export]'"
        raise ImportError(told) from None


def _loaded(onnx: Any, path: str) -> tuple[Any, list[str]]:
    """The graph, in a version that has integers of 4 and 16 bits where it can be converted to one; and notes."""
    open_file(path).close()  # no pipe
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError:
        raise
    except Exception as error:  # protobuf's and onnx's own errors have no common class
        raise ValueError(f"export: {path} is no ONNX model that can be read: {error}") from None
    notes = []
    if opset_of(model) < WIDTHS_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, WIDTHS_OPSET)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            notes.append(f"the graph stays at opset {opset_of(model)}, with 8 bits for 4: {reason[:150]}")
    return model, notes


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names[:5])) + (", …" if len(names) > 5 else "")


def _matched(onnx: Any, model: Any, contents: PackedContents) -> tuple[list[Match], list[str], list[str]]:
    """The initialisers that are entries of the file; the packed weights that none is; the matrices that no entry is."""
    entries = contents.entries()
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    matches, nameless = [], []
    for initialiser in model.graph.initializer:
        entry, shape = entries.get(initialiser.name), tuple(initialiser.dims)
        if initialiser.data_type not in floats:
            continue
        if entry is None:
            nameless.append(initialiser)
        elif entry.shape != shape and (entry.shape or (1,)) != (shape or (1,)):
            raise ExportError(NAME, initialiser.name, f"the graph has the shape {list(shape)}, the file {entry.shape}")
        else:
            matches.append(Match(initialiser, initialiser.name, False))
    found = {entries[match.entry].stored_name for match in matches}
    for name in contents.packed if nameless else ():  # a tied weight may be there once more, transposed
        same = list(_same_values(onnx, contents.tensor(name).float().numpy(), nameless))
        matches += [Match(initialiser, name, transposed) for initialiser, transposed in same]
        nameless = [each for each in nameless if not any(each is taken for taken, _ in same)]
        found |= {name} if same else set()
    left = [each.name for each in nameless if len(each.dims) > 1]
    return matches, [name for name in contents.packed if name not in found], left


def _same_values(onnx: Any, value: np.ndarray, initialisers: list[Any]) -> Iterator[tuple[Any, bool]]:
    """The initialisers that are this weight, before it was packed or after, as it is or transposed."""
    for initialiser in initialisers:
        shape = tuple(initialiser.dims)
        if not value.size or value.ndim < 2 or shape not in (value.shape, value.shape[::-1]):
            continue
        there = onnx.numpy_helper.to_array(initialiser).astype(np.float32)
        if shape == value.shape and is_rounding_of(value, there):
            yield initialiser, False
        elif value.ndim == 2 and shape == value.shape[::-1] and is_rounding_of(value, there.T):
            yield initialiser, True


def is_rounding_of(value: np.ndarray, exact: np.ndarray) -> bool:
    """Whether `value` may be what packing made of `exact`, both of one shape, of two dimensions or more.

    Two weights that have nothing to do with each other are their norms' root of two apart; a weight and what packing
    makes of it, less than half. A weight into which an exporter has folded a normalisation, or another factor, may be
    as close. But rounding leaves one factor for all rows, of 1 less what the errors add to the norm; those of a
    normalisation differ by more than chance.
    """
    rows, others = (each.reshape(len(each), -1).astype(np.float64) for each in (value, exact))
    norms, products = np.square(rows).sum(1), (rows * others).sum(1)
    norm, distance = float(norms.sum()), float(np.square(rows - others).sum())
    if distance > MOST_DISTANCE**2 * norm:
        return False
    if not distance:
        return True
    whole, factors = products.sum() / norm, products / np.where(norms == 0, 1, norms)
    left = float(np.square(rows * factors[:, None] - others).sum())
    spread = float((norms * np.square(factors - whole)).sum())  # what a factor for each row explains
    by_chance = left * max(len(rows) - 1, 0) / max(rows.size - len(rows), 1)
    differing = spread > MOST_SPREAD**2 * norm and spread > MOST_CHANCE * by_chance
    return bool(1 - distance / norm - MOST_FACTOR < whole < 1 + MOST_FACTOR) and not differing


class _Weights:
    """Puts the file's values into the graph, one initialiser after the other."""

    def __init__(self, onnx: Any, model: Any, contents: PackedContents, options: ExportOptions) -> None:
        self._contents, self._options, self._entries = contents, options, contents.entries()
        self._graph, self._opset = Graph(onnx, model), opset_of(model)
        types = onnx.TensorProto
        self._floats = {types.FLOAT: "float32", types.FLOAT16: "float16", types.BFLOAT16: "bfloat16"}

    def finish(self) -> None:
        self._graph.finish()

    def replace(self, match: Match) -> ExportedTensor:
        """Put the file's values in the place of an initialiser."""
        entry = self._entries[match.entry]
        reference = self._contents.tensor(match.entry)
        left = any(fnmatchcase(match.entry, pattern) for pattern in self._options.floats)
        if entry.stored_name not in self._contents.packed or left:
            return self._kept(match, reference, "")
        levels, name = levels_of(self._contents, entry.stored_name), match.initialiser.name
        readers = [] if self._options.portable else list(self._graph.products(name, match.transposed))
        activations = self._options.activations
        made = blocks(levels, entry.shape, activations) if readers and self._type(match) == "float32" else None
        size, kinds, error = 0, [], NO_ERROR
        if made is not None:
            size += self._multiply(name, made, readers)
            rounding = ", int8 activations" if activations == "int8" else ""
            kinds.append(f"MatMulNBits, {made.bits} bits in blocks of {made.block}{rounding}")
            error = _error(reference, made.values)
        if made is None or self._graph.is_read(name):
            width = container(levels.bits, self._graph.widths)
            if width is None and not self._options.keep_float:
                reason = f"{levels.bits} bits for a level, and opset {self._opset} has {sorted(self._graph.widths)}"
                raise ExportError(NAME, match.entry, f"{reason}; export the graph with opset {WIDTHS_OPSET} or more")
            if width is None:
                return self._kept(match, reference, " (too many bits for the opset)")
            values, more = self._dequantise(match, levels, entry.shape, width)
            size += more
            kinds.append(f"{'' if levels.signed else 'u'}int{width}, DequantizeLinear")
            error = _error(reference, values) if made is None else error
        self._graph.remove(match.initialiser)
        return ExportedTensor(match.entry, " and ".join(kinds), size, error)

    def _type(self, match: Match) -> str:
        return self._floats.get(match.initialiser.data_type, "float64")

    def _kept(self, match: Match, reference: torch.Tensor, why: str) -> ExportedTensor:
        """The file's values as floats of the graph's type."""
        tensor, kind = match.initialiser, self._type(match)
        changed = reference.double() if kind == "float64" else cast(NAME, match.entry, reference, kind)
        for field in ("float_data", "double_data", "int32_data", "external_data", "data_location"):
            tensor.ClearField(field)
        tensor.raw_data = tensor_bytes(changed.t() if match.transposed else changed).tobytes()
        return ExportedTensor(match.entry, kind + why, len(tensor.raw_data), float_error(reference, changed))

    def _multiply(self, name: str, made: Blocks, readers: list[tuple[Any, Any | None]]) -> int:
        """Put MatMulNBits in the place of the products; returns the bytes of the weight."""
        rows, a_row, _ = made.quantised.shape
        raw = made.quantised.tobytes()
        inputs = [
            self._graph.add(name + "_blocks", self._graph.types.UINT8, made.quantised.shape, raw),
            self._graph.add_floats(name + "_scales", made.scales.reshape(rows, a_row)),
        ]
        if made.zero_points is not None:
            inputs.append(self._graph.add_floats(name + "_zero_points", made.zero_points.reshape(rows, a_row)))
        attributes = {"K": made.values.shape[1], "N": rows, "bits": made.bits, "block_size": made.block}
        attributes |= {"accuracy_level": INT8_ACCURACY} if self._options.activations == "int8" else {}
        for node, between in readers:
            self._graph.multiply_packed(node, between, inputs, attributes)
        return len(raw) + (len(inputs) - 1) * made.scales.nbytes

    def _dequantise(self, match: Match, levels: Levels, shape: tuple[int, ...], width: int) -> tuple[np.ndarray, int]:
        """Nodes that give the weight under the initialiser's name; returns its values and the bytes that it takes."""
        name, form, count, graph = match.initialiser.name, grouped(levels, shape), len(levels.levels), self._graph
        kind = getattr(graph.types, f"{'' if levels.signed else 'U'}INT{width}")
        raw = packed_bytes(form.levels, width)
        stored = graph.add(name + "_levels", kind, form.shape, raw)
        scales, size = self._scales(name, form.scales)
        steps: list[Step] = [("DequantizeLinear", [stored, scales], {} if form.alone else {"axis": 0})]
        if form.offsets.any():
            wide = form.offsets if form.alone else form.offsets.reshape(-1, *[1] * (len(form.shape) - 1))
            wide = wide.reshape(-1)[:1] if np.all(wide == wide.reshape(-1)[0]) else wide
            steps.append(("Add", [BEFORE, graph.add_floats(name + "_offset", wide)], {}))
            size += wide.nbytes
        if len(form.levels) != count:  # the last group is shorter
            ends = [graph.add_integers(name + "_begin", [0]), graph.add_integers(name + "_end", [count])]
            steps.append(("Reshape", [BEFORE, graph.add_integers(name + "_flat", [-1])], {}))
            steps.append(("Slice", [BEFORE, *ends], {}))
        if form.shape != shape:
            steps.append(("Reshape", [BEFORE, graph.add_integers(name + "_shape", list(shape))], {}))
        steps += [("Transpose", [BEFORE], {"perm": [1, 0]})] if match.transposed else []
        if self._type(match) != "float32":
            steps.append(("Cast", [BEFORE], {"to": match.initialiser.data_type}))
        graph.chain(name, steps)
        return dequantised(form, count), len(raw) + size

    def _scales(self, name: str, scales: np.ndarray) -> tuple[str, int]:
        """The scales of groups, and their bytes; where one range and a few widths give them, a table and its places."""
        graph, table, places = self._graph, *np.unique(scales, return_inverse=True)
        if scales.size < LEAST_PLACES or len(table) > 16:
            return graph.add_floats(name + "_scale", scales), scales.nbytes
        width = 4 if 4 in graph.widths else 8
        raw = packed_bytes(places.reshape(-1), width)
        stored = graph.add(name + "_width", getattr(graph.types, f"UINT{width}"), scales.shape, raw)
        floats = graph.add_floats(name + "_steps", table)
        steps: list[Step] = [("Cast", [stored], {"to": graph.types.INT32}), ("Gather", [floats, BEFORE], {"axis": 0})]
        return graph.chain(graph.fresh(name + "_scale"), steps), len(raw) + table.nbytes


def _error(reference: torch.Tensor, values: np.ndarray) -> Error:
    return float_error(reference.reshape(-1), torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(-1))
