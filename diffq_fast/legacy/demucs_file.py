"""Demucs 4.1 packages: safetensors files whose metadata say where each tensor belongs.

Metadata ``structure`` is a JSON tree of the state: {"_tensor": key}, {"_dict": [[key, node], …]}, {"_list":
[…]}, {"_tuple": […]}, {"_class": "a.b.C"} or a plain value. ``klass`` is a dotted name; ``args`` and
``kwargs`` are JSON, a Fraction in them {"_type": "fraction", "numerator", "denominator"}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from ..files.safetensors_reader import begins_like_safetensors, json_problem, read_header, read_tensors
from ..files.tensor_bytes import tensors_from_bytes
from .unpickler import COST_OF_CLASS, Effort, inert_class


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
        values = {key: _parsed(texts[key]) for key in ("args", "kwargs", "structure")}
        found = _Found(tensors, {}, Effort(len(texts["structure"])))
        return {"klass": texts["klass"], "state": _from_tree(values["structure"], found),
                "args": _from_plain(values["args"]), "kwargs": _from_plain(values["kwargs"])}  # fmt: skip
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: not a readable safetensors package of Demucs 4.1 ({problem:.300})") from error


def _parsed(text: str) -> Any:
    problem = json_problem(text)
    if problem:
        raise ValueError(f"the JSON is {problem}")
    return json.loads(text)


class _Found(NamedTuple):
    """What the nodes of one file name, and what it may still cost."""

    tensors: Mapping[str, Tensor]
    classes: dict[str, type]
    effort: Effort


def _from_tree(node: Any, found: _Found) -> Any:
    """The value of one node of ``structure``."""
    if not isinstance(node, dict):
        return [_from_tree(child, found) for child in node] if isinstance(node, list) else node
    if len(node) != 1:
        raise ValueError(f"a node with {len(node)} keys")
    ((form, content),) = node.items()
    if form == "_tensor":
        return found.tensors[content]
    if form == "_class":
        if content not in found.classes:
            found.effort.spend(COST_OF_CLASS)
            found.classes[content] = inert_class(content)
        return found.classes[content]
    if form == "_dict":
        found.effort.check_keys(key for key, _ in content)
        return {key: _from_tree(child, found) for key, child in content}
    if form in ("_list", "_tuple"):
        children = [_from_tree(child, found) for child in content]
        return children if form == "_list" else tuple(children)
    raise ValueError(f"a node of the unknown kind {form:.40}")


def _from_plain(value: Any) -> Any:
    """A value of args or kwargs: JSON, where a Fraction is a dict with _type."""
    if isinstance(value, list):
        return [_from_plain(part) for part in value]
    if isinstance(value, dict) and value.get("_type") == "fraction":
        return Fraction(int(value["numerator"]), int(value["denominator"]))
    if isinstance(value, dict):
        return {key: _from_plain(part) for key, part in value.items()}
    return value
