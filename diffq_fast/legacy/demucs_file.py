"""Demucs 4.1 packages: safetensors files whose metadata say where each tensor belongs.

Metadata ``structure`` is a JSON tree of the state: {"_tensor": key}, {"_dict": [[key, node], …]}, {"_list":
[…]}, {"_tuple": […]}, {"_class": "a.b.C"} or a plain value. ``klass`` is a dotted name; ``args`` and
``kwargs`` are JSON, a Fraction in them {"_type": "fraction", "numerator", "denominator"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from torch import Tensor

from ..files.safetensors_reader import begins_like_safetensors, escaped, read_header, read_json, read_tensors
from ..files.tensor_bytes import tensors_from_bytes
from .budget import Budget
from .unpickler import inert_class, make_fraction


def is_safetensors(file: BinaryIO) -> bool:
    """Whether this is a safetensors file, perhaps a damaged one, and not a pickle or zip file of ``torch.save``."""
    file.seek(0)
    head = file.read(9)
    file.seek(0)
    return begins_like_safetensors(head)


def read_safetensors(file: BinaryIO, name: str) -> dict[str, Any]:
    """The fields of a package: tensors back in their places in the tree ``structure``."""
    try:
        header = read_header(file, name)
        tensors, texts = tensors_from_bytes(header, read_tensors(file, header)), header.metadata
        values = {key: read_json(texts[key], name, key, object, floats=True) for key in ("args", "kwargs", "structure")}
        tree = _Tree(tensors, Budget(header.file_bytes))
        return {"klass": texts["klass"], "state": tree.value(values["structure"]),
                "args": _from_plain(values["args"]), "kwargs": _from_plain(values["kwargs"])}  # fmt: skip
    except Exception as error:
        cause = error.__context__ or error  # the reader's own errors name the file already
        problem = escaped(f"{type(cause).__name__}: {cause}", 300)
        raise ValueError(f"{escaped(name)}: not a readable safetensors package of Demucs 4.1 ({problem})") from error


class _Tree:
    """Reads ``structure``: a tree, so that each node is met once; keys and class names are counted."""

    def __init__(self, tensors: Mapping[str, Tensor], budget: Budget) -> None:
        self._tensors, self._budget = tensors, budget

    def value(self, node: Any) -> Any:
        """Of one node."""
        if not isinstance(node, dict):
            return [self.value(child) for child in node] if isinstance(node, list) else node
        if len(node) != 1:
            raise ValueError(f"a node with {len(node)} keys")
        ((form, content),) = node.items()
        if form == "_tensor":
            return self._tensors[content]
        if form == "_class":
            self._budget.new_name(content)
            return inert_class(content)
        if form == "_dict":
            self._budget.hash_keys(key for key, _ in content)
            return {key: self.value(child) for key, child in content}
        if form in ("_list", "_tuple"):
            children = [self.value(child) for child in content]
            return children if form == "_list" else tuple(children)
        raise ValueError(f"a node of the unknown kind {form:.40}")


def _from_plain(value: Any) -> Any:
    """A value of args or kwargs: JSON, where a Fraction is a dict with _type."""
    if isinstance(value, list):
        return [_from_plain(part) for part in value]
    if isinstance(value, dict) and value.get("_type") == "fraction":
        return make_fraction(value["numerator"], value["denominator"])
    if isinstance(value, dict):
        return {key: _from_plain(part) for key, part in value.items()}
    return value
