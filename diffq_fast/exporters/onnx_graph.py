"""An ONNX graph that is being changed: its names, its initialisers, and who reads what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

WIDTHS_OPSET, TWO_BITS_OPSET, AXIS_OPSET = 21, 25, 13  # of DequantizeLinear: 4 and 16 bits, 2 bits, scales by an axis
NBITS_DOMAIN = "com.microsoft"
BEFORE = "<the node before>"
Step = tuple[str, list[str], dict[str, Any]]  # an operator, its inputs and its attributes


def opset_of(model: Any) -> int:
    """The version of the standard operators."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


class Graph:
    """The graph of a model, by its protobuf message.

    nodes: those of the message. first: new nodes, which `finish` puts before all others.
    """

    def __init__(self, onnx: Any, model: Any) -> None:
        self._onnx, self._model, self._message = onnx, model, model.graph
        self._taken = _all_names(model.graph)
        self._first: list[Any] = []
        self.types = onnx.TensorProto

    @property
    def nodes(self) -> list[Any]:
        return list(self._message.node)

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of the integers that DequantizeLinear takes in this opset, with scales by an axis."""
        opset = opset_of(self._model)
        widths: tuple[int, ...] = (8,) if opset >= AXIS_OPSET else ()
        widths += (4, 16) if opset >= WIDTHS_OPSET else ()
        return widths + ((2,) if opset >= TWO_BITS_OPSET else ())

    def fresh(self, name: str) -> str:
        """The name, or one like it that nothing in the graph has."""
        made, number = name, 1
        while made in self._taken:
            made, number = f"{name}_{number}", number + 1
        self._taken.add(made)
        return made

    def add(self, name: str, kind: int, shape: tuple[int, ...], raw: bytes) -> str:
        """A new initialiser of little-endian bytes; returns its name."""
        name = self.fresh(name)
        self._message.initializer.append(self._onnx.helper.make_tensor(name, kind, shape, raw, raw=True))
        return name

    def add_floats(self, name: str, values: np.ndarray) -> str:
        return self.add(name, self.types.FLOAT, values.shape, values.astype("<f4").tobytes())

    def add_integers(self, name: str, values: list[int]) -> str:
        return self.add(name, self.types.INT64, (len(values),), np.array(values, "<i8").tobytes())

    def chain(self, name: str, steps: list[Step]) -> str:
        """Nodes before all others, BEFORE among their inputs standing for the one before; the last gives `name`."""
        before = ""
        for place, (operator, inputs, attributes) in enumerate(steps):
            output = name if place == len(steps) - 1 else self.fresh(name + "_part")
            read = [before if each is BEFORE else each for each in inputs]
            self._first.append(self._onnx.helper.make_node(operator, read, [output], **attributes))
            before = output
        return before

    def multiply_packed(self, node: Any, between: Any | None, inputs: list[str], attributes: dict[str, int]) -> None:
        """Put MatMulNBits in the place of a MatMul or Gemm, and of the Transpose between it and its weight."""
        make = self._onnx.helper.make_node
        biased = node.op_type == "Gemm" and len(node.input) == 3 and node.input[2]
        target = self.fresh(node.output[0] + "_product") if biased else node.output[0]
        new = [make("MatMulNBits", [node.input[0], *inputs], [target], domain=NBITS_DOMAIN, **attributes)]
        if biased:
            new.append(make("Add", [target, node.input[2]], [node.output[0]]))
        place = next(index for index, each in enumerate(self._message.node) if each.output[:] == node.output[:])
        del self._message.node[place]
        for offset, each in enumerate(new):
            self._message.node.insert(place + offset, each)
        if between is not None and not self.is_read(between.output[0]):
            self._message.node.remove(between)
        if not any(each.domain == NBITS_DOMAIN for each in self._model.opset_import):
            self._model.opset_import.append(self._onnx.helper.make_opsetid(NBITS_DOMAIN, 1))

    def remove(self, initialiser: Any) -> None:
        """Take out an initialiser, also where old graphs list it among their inputs."""
        self._message.initializer.remove(initialiser)
        for stated in [each for each in self._message.input if each.name == initialiser.name]:
            self._message.input.remove(stated)

    def is_read(self, name: str) -> bool:
        outputs = (each.name == name for each in self._message.output)
        return any(outputs) or any(name in inputs for inputs in _reads(self._message))

    def products(self, name: str, transposed: bool) -> Iterator[tuple[Any, Any | None]]:
        """The MatMul and Gemm nodes that multiply with the transpose of a matrix `[out, in]`, which the initialiser is
        or, where `transposed`, whose transpose it is; and the Transpose between them, if any."""
        nodes = self.nodes
        for node in nodes:
            multiplies = node.op_type == "MatMul" and list(node.input)[1:] == [name]
            if multiplies if transposed else _is_linear(node, name):
                yield node, None
            elif not transposed and node.op_type == "Transpose" and list(node.input) == [name]:
                turned = attribute(node, "perm", [1, 0]) == [1, 0]
                readers = (each for each in nodes if turned and each.op_type == "MatMul")
                yield from ((each, node) for each in readers if list(each.input)[1:] == [node.output[0]])

    def finish(self) -> None:
        """Put the new nodes first, and state the version of the file that they need."""
        nodes = [*self._first, *self._message.node]
        del self._message.node[:]
        self._message.node.extend(nodes)
        self._model.ir_version = max(self._model.ir_version, 10 if opset_of(self._model) >= WIDTHS_OPSET else 8)


def attribute(node: Any, name: str, default: Any) -> Any:
    """An attribute of whole numbers, a float or one number; the default where the node has it not."""
    for each in node.attribute:
        if each.name == name:
            return list(each.ints) if each.ints else each.f if each.type == each.FLOAT else each.i
    return default


def _is_linear(node: Any, name: str) -> bool:
    if node.op_type != "Gemm" or node.input[1] != name or node.input[0] == name:
        return False
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return plain and attribute(node, "transB", 0) == 1 and attribute(node, "transA", 0) == 0


def _inner_graphs(node: Any) -> Iterator[Any]:
    for each in node.attribute:
        yield from each.graphs
        if each.HasField("g"):
            yield each.g


def _reads(graph: Any) -> Iterator[list[str]]:
    """The inputs of every node, and in graphs inside of nodes also what they give."""
    for node in graph.node:
        yield list(node.input)
        for inner in _inner_graphs(node):
            yield from _reads(inner)
            yield [output.name for output in inner.output]


def _all_names(graph: Any) -> set[str]:
    """Every name of a value in the graph, those of graphs inside of nodes too."""
    names = {each.name for each in [*graph.initializer, *graph.input, *graph.output]}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
        for inner in _inner_graphs(node):
            names |= _all_names(inner)
    return names
