"""A packed file's weights in an ONNX graph of the model: small integers with scales, where the graph had floats.

The graph is the model in float, exported by any tool. An initialiser belongs to the file's tensor of its name, or else
to the one whose values are close to its own, possibly transposed, as exporters leave them. Where the weight is the
matrix of a MatMul or a Gemm and its groups fit, the node becomes onnxruntime's MatMulNBits, which multiplies with the
packed weight; elsewhere DequantizeLinear gives the weight under its old name, so that whatever reads it still does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ..files.atomic_file import atomic_file
from ..files.safetensors_reader import printable
from ..packed.compare import Error, error_of
from ..packed.contents import PackedContents
from .levels import Levels, levels_of
from .onnx_tensors import Blocks, blocks, container, dequantised, grouped, packed_bytes
from .options import ExportError, ExportOptions, cast
from .report import ExportedTensor, ExportReport

NAME = "onnx"
NBITS_DOMAIN = "com.microsoft"
WIDTHS_OPSET, TWO_BITS_OPSET, AXIS_OPSET = 21, 25, 13  # of DequantizeLinear: 4 and 16 bits, 2 bits, scales by an axis
MOST_BYTES = (1 << 31) - 1  # of a protobuf message
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
    onnx = imported("onnx")
    model, notes = _loaded(onnx, str(options.graph))
    if options.dtype != "float32":
        raise ValueError(f"export: {NAME} keeps the float type of the graph's own tensors; leave dtype={options.dtype}")
    rewriting = _Rewriting(onnx, model, contents, options)
    matches, missing = _matched(onnx, model, contents)
    if missing and not options.keep_float:
        raise ExportError(NAME, missing[0], f"no initialiser of {options.graph} has its name or its values")
    if missing:
        notes.append(f"{len(missing)} weights are not in the graph: {', '.join(map(printable, missing[:3]))}, …")
    tensors = []
    for done, match in enumerate(matches, 1):
        tensors.append(rewriting.replace(match))
        if options.progress is not None:
            options.progress(match.entry, done, len(matches))
    rewriting.finish()
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
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError:
        raise
    except Exception as error:  # protobuf's and onnx's own errors have no common class
        raise ValueError(f"export: {path} is no ONNX model that can be read: {error}") from None
    notes = []
    if _opset(model) < WIDTHS_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, WIDTHS_OPSET)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            notes.append(f"the graph stays at opset {_opset(model)}, with 8 bits for 4: {reason[:150]}")
    return model, notes


def _opset(model: Any) -> int:
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def _matched(onnx: Any, model: Any, contents: PackedContents) -> tuple[list[Match], list[str]]:
    """The initialisers that are entries of the file, and the names of packed weights that none is."""
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
    for name in [name for name in contents.packed if name not in found]:
        same = list(_same_values(onnx, contents.tensor(name).float().numpy(), nameless))
        matches += [Match(initialiser, name, transposed) for initialiser, transposed in same]
        nameless = [each for each in nameless if not any(each is taken for taken, _ in same)]
        found |= {name} if same else set()
    return matches, [name for name in contents.packed if name not in found]


def _same_values(onnx: Any, value: np.ndarray, initialisers: list[Any]) -> Iterator[tuple[Any, bool]]:
    """The initialisers that are this weight before it was packed, or after, as it is or transposed.

    Two weights that have nothing to do with each other are their norms' root of two apart; a weight and what packing
    makes of it, less than half.
    """
    norm = float(np.square(value, dtype=np.float64).sum())
    for initialiser in initialisers:
        shape = tuple(initialiser.dims)
        if not value.size or shape not in (value.shape, value.shape[::-1]):
            continue
        there = onnx.numpy_helper.to_array(initialiser).astype(np.float32)
        for transposed, turned in ((False, there), (True, there.T)):
            if turned.shape != value.shape or (transposed and value.ndim != 2):
                continue
            if float(np.square(turned - value, dtype=np.float64).sum()) < MOST_DISTANCE**2 * norm:
                yield initialiser, transposed
                break


class _Rewriting:
    """A graph whose weights are replaced one by one."""

    def __init__(self, onnx: Any, model: Any, contents: PackedContents, options: ExportOptions) -> None:
        self._onnx, self._model, self._contents, self._options = onnx, model, contents, options
        self._graph, self._types = model.graph, onnx.TensorProto
        self._first: list[Any] = []  # nodes that go before all others
        self._taken = _all_names(model.graph)
        opset = _opset(model)
        self._available: tuple[int, ...] = (8,) if opset >= AXIS_OPSET else ()
        self._available += (4, 16) if opset >= WIDTHS_OPSET else ()
        self._available += (2,) if opset >= TWO_BITS_OPSET else ()
        self._with_nbits = False

    def replace(self, match: Match) -> ExportedTensor:
        """Put the file's values in the place of an initialiser."""
        entry = self._contents.entries()[match.entry]
        reference = self._contents.tensor(match.entry)
        if entry.stored_name not in self._contents.packed:
            return self._kept(match, reference, "")
        levels, name = levels_of(self._contents, entry.stored_name), match.initialiser.name
        readers = list(self._products(match)) if not self._options.portable else []
        made = blocks(levels, entry.shape) if readers and match.initialiser.data_type == self._types.FLOAT else None
        size, kinds, error = 0, [], error_of(reference, reference)
        if made is not None:
            size += self._multiply(name, made, readers)
            kinds.append(f"MatMulNBits, {made.bits} bits in blocks of {made.block}")
            error = _error(reference, made.values)
        if made is None or self._is_read(name):
            width = container(levels.bits, self._available)
            if width is None and not self._options.keep_float:
                opset = _opset(self._model)
                reason = f"{levels.bits} bits for a level, and opset {opset} has {sorted(self._available)}"
                raise ExportError(NAME, match.entry, f"{reason}; export the graph with opset {WIDTHS_OPSET} or more")
            if width is None:
                return self._kept(match, reference, " (too many bits for the opset)")
            values, more = self._dequantise(match, levels, entry.shape, width)
            size += more
            kinds.append(f"{'' if levels.signed else 'u'}int{width}, DequantizeLinear")
            error = _error(reference, values) if made is None else error
        self._remove(match.initialiser)
        return ExportedTensor(match.entry, " and ".join(kinds), size, error)

    def finish(self) -> None:
        """Put the new nodes first, and state what they need."""
        nodes = [*self._first, *self._graph.node]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._model.ir_version = max(self._model.ir_version, 10 if _opset(self._model) >= WIDTHS_OPSET else 8)
        if self._with_nbits and not any(each.domain == NBITS_DOMAIN for each in self._model.opset_import):
            self._model.opset_import.append(self._onnx.helper.make_opsetid(NBITS_DOMAIN, 1))

    def _kept(self, match: Match, reference: torch.Tensor, why: str) -> ExportedTensor:
        """The file's values as floats of the graph's type."""
        tensor = match.initialiser
        kinds = {self._types.FLOAT16: "float16", self._types.BFLOAT16: "bfloat16", self._types.FLOAT: "float32"}
        kind = kinds.get(tensor.data_type, "float64")
        changed = reference.double() if kind == "float64" else cast(NAME, match.entry, reference, kind)
        if match.transposed:
            changed = changed.t()
        raw = (
            changed.contiguous().view(torch.uint8).numpy().tobytes()
            if changed.ndim
            else changed.reshape(1).view(torch.uint8).numpy().tobytes()
        )
        for field in ("float_data", "double_data", "int32_data", "external_data"):
            tensor.ClearField(field)
        tensor.ClearField("data_location")
        tensor.raw_data = raw
        error = error_of(reference, changed.t() if match.transposed else changed)
        return ExportedTensor(match.entry, kind + why, len(raw), error)

    def _products(self, match: Match) -> Iterator[tuple[Any, Any | None]]:
        """The MatMul and Gemm nodes that multiply with the transposed weight, and the Transpose between, if any."""
        name = match.initialiser.name
        for node in self._graph.node:
            if (match.transposed and node.op_type == "MatMul" and list(node.input)[1:] == [name]) or (
                not match.transposed and self._is_linear(node, name)
            ):
                yield node, None
            elif not match.transposed and node.op_type == "Transpose" and list(node.input) == [name]:
                turned = _attribute(node, "perm", [1, 0]) == [1, 0]
                for reader in self._graph.node if turned else ():
                    if reader.op_type == "MatMul" and list(reader.input)[1:] == [node.output[0]]:
                        yield reader, node

    def _is_linear(self, node: Any, name: str) -> bool:
        plain = _attribute(node, "alpha", 1.0) == _attribute(node, "beta", 1.0) == 1.0
        turned = _attribute(node, "transB", 0) == 1 and _attribute(node, "transA", 0) == 0
        return node.op_type == "Gemm" and node.input[1] == name and name != node.input[0] and plain and turned

    def _multiply(self, name: str, made: Blocks, readers: list[tuple[Any, Any | None]]) -> int:
        """Put MatMulNBits in the place of the products; returns the bytes of the weight."""
        self._with_nbits = True
        rows, a_row, _ = made.quantised.shape
        inputs = [
            self._add(name + "_blocks", self._types.UINT8, made.quantised.shape, made.quantised.tobytes()),
            self._floats(name + "_scales", made.scales.reshape(rows, a_row)),
        ]
        if made.zero_points is not None:
            inputs.append(self._floats(name + "_zero_points", made.zero_points.reshape(rows, a_row)))
        options = {"K": made.values.shape[1], "N": rows, "bits": made.bits, "block_size": made.block}
        for node, between in readers:
            biased = node.op_type == "Gemm" and len(node.input) == 3 and node.input[2]
            target = self._fresh(name + "_product") if biased else node.output[0]
            nodes = [
                self._onnx.helper.make_node(
                    "MatMulNBits", [node.input[0], *inputs], [target], self._fresh(name), domain=NBITS_DOMAIN, **options
                )
            ]
            if biased:
                nodes.append(self._onnx.helper.make_node("Add", [target, node.input[2]], [node.output[0]]))
            place = next(index for index, each in enumerate(self._graph.node) if each is node)
            self._graph.node.remove(node)
            for offset, each in enumerate(nodes):
                self._graph.node.insert(place + offset, each)
            if between is not None and not self._is_read(between.output[0]):
                self._graph.node.remove(between)
        size = made.quantised.nbytes + made.scales.nbytes
        return size + (made.zero_points.nbytes if made.zero_points is not None else 0)

    def _dequantise(self, match: Match, levels: Levels, shape: tuple[int, ...], width: int) -> tuple[np.ndarray, int]:
        """Nodes that give the weight under the initialiser's name; returns its values and the bytes that it takes."""
        name, form, make = match.initialiser.name, grouped(levels, shape), self._onnx.helper.make_node
        kind = getattr(self._types, f"{'' if levels.signed else 'U'}INT{width}")
        raw = packed_bytes(form.levels, width)
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        stored, scales = self._add(name + "_levels", kind, form.shape, raw), self._floats(name + "_scale", form.scales)
        steps.append(("DequantizeLinear", [stored, scales], {} if form.alone else {"axis": 0}))
        if form.offsets.any():
            wide = form.offsets if form.alone else form.offsets.reshape(-1, *[1] * (len(form.shape) - 1))
            steps.append(("Add", [self._floats(name + "_offset", wide)], {}))
        if form.shape != shape:
            count = len(levels.levels)
            if len(form.levels) != count:
                steps.append(("Reshape", [self._integers(name + "_flat", [-1])], {}))
                ends = [self._integers(name + "_begin", [0]), self._integers(name + "_end", [count])]
                steps.append(("Slice", ends, {}))
            steps.append(("Reshape", [self._integers(name + "_shape", list(shape))], {}))
        if match.transposed:
            steps.append(("Transpose", [], {"perm": [1, 0]}))
        if match.initialiser.data_type != self._types.FLOAT:
            steps.append(("Cast", [], {"to": match.initialiser.data_type}))
        before = ""
        for place, (operator, inputs, attributes) in enumerate(steps):
            output = name if place == len(steps) - 1 else self._fresh(name + "_part")
            self._first.append(make(operator, ([before] if before else []) + inputs, [output], **attributes))
            before = output
        added = form.scales.nbytes + (form.offsets.nbytes if form.offsets.any() else 0)
        return dequantised(form, len(levels.levels)), len(raw) + added

    def _remove(self, initialiser: Any) -> None:
        self._graph.initializer.remove(initialiser)
        for stated in [each for each in self._graph.input if each.name == initialiser.name]:
            self._graph.input.remove(stated)

    def _is_read(self, name: str) -> bool:
        return any(name in each for each in _reads(self._graph)) or any(
            each.name == name for each in self._graph.output
        )

    def _fresh(self, name: str) -> str:
        """The name, or one like it that nothing in the graph has."""
        made, number = name, 1
        while made in self._taken:
            made, number = f"{name}_{number}", number + 1
        self._taken.add(made)
        return made

    def _add(self, name: str, kind: int, shape: tuple[int, ...], raw: bytes) -> str:
        name = self._fresh(name)
        self._graph.initializer.append(self._onnx.helper.make_tensor(name, kind, shape, raw, raw=True))
        return name

    def _floats(self, name: str, values: np.ndarray) -> str:
        return self._add(name, self._types.FLOAT, values.shape, values.astype("<f4").tobytes())

    def _integers(self, name: str, values: list[int]) -> str:
        return self._add(name, self._types.INT64, (len(values),), np.array(values, "<i8").tobytes())


def _error(reference: torch.Tensor, values: np.ndarray) -> Error:
    return error_of(reference.reshape(-1), torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(-1))


def _attribute(node: Any, name: str, default: Any) -> Any:
    for each in node.attribute:
        if each.name == name:
            return list(each.ints) if each.ints else each.f if each.type == each.FLOAT else each.i
    return default


def _reads(graph: Any) -> Iterator[list[str]]:
    """The inputs of every node, those of graphs inside of nodes too."""
    for node in graph.node:
        yield list(node.input)
        for each in node.attribute:
            for inner in [*each.graphs, *([each.g] if each.HasField("g") else [])]:
                yield from _reads(inner)
                yield [output.name for output in inner.output]


def _all_names(graph: Any) -> set[str]:
    """Every name of a value in the graph, those of graphs inside of nodes too."""
    names = {each.name for each in [*graph.initializer, *graph.input, *graph.output]}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
        for each in node.attribute:
            for inner in [*each.graphs, *([each.g] if each.HasField("g") else [])]:
                names |= _all_names(inner)
    return names
