"""Which tensors of the package are made without a dtype or a device: those take torch's defaults, and users set them.

What takes its dtype and device from another tensor (``zeros_like``, ``new_zeros``), or from memory that it is given
(``from_numpy``, ``frombuffer``), depends on no default.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from house.sources import Place, Sources

FACTORIES = frozenset(
    [
        "arange",
        "as_tensor",
        "asarray",
        "bartlett_window",
        "blackman_window",
        "empty",
        "empty_permuted",
        "empty_quantized",
        "empty_strided",
        "eye",
        "full",
        "hamming_window",
        "hann_window",
        "kaiser_window",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "range",
        "scalar_tensor",
        "sparse_bsc_tensor",
        "sparse_bsr_tensor",
        "sparse_compressed_tensor",
        "sparse_coo_tensor",
        "sparse_csc_tensor",
        "sparse_csr_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ]
)
CLASSES = ("Tensor", "FloatTensor", "DoubleTensor", "HalfTensor", "BFloat16Tensor", "IntTensor", "LongTensor")
NEEDED = {"dtype", "device"}


def made_by_default(sources: Sources) -> list[Place]:
    """Calls of torch's factories without ``dtype=`` or ``device=``, and factories passed on or imported by name."""
    return [place for module, tree in sources.trees.items() for place in _in_module(module, tree)]


def _in_module(module: str, tree: ast.Module) -> Iterator[Place]:
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            names = [alias.name for alias in node.names if alias.name in FACTORIES]
            yield from (Place(module, node.lineno, f"from torch import {name}") for name in names)
        elif isinstance(node, ast.Call) and (name := _factory(node.func)):
            missing = NEEDED - {keyword.arg for keyword in node.keywords}
            if name in CLASSES or missing:
                yield Place(module, node.lineno, f"torch.{name} without {' and '.join(sorted(missing))}")
        elif isinstance(node, ast.Attribute) and node not in called and _factory(node) in FACTORIES:
            yield Place(module, node.lineno, f"torch.{node.attr} is passed on")


def _factory(function: ast.expr) -> str:
    """``zeros`` of ``torch.zeros``; empty for what is no factory."""
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return ""
    known = function.value.id == "torch" and (function.attr in FACTORIES or function.attr in CLASSES)
    return function.attr if known else ""
