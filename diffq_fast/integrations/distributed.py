"""How the operators are computed on DTensors: importing this module registers a sharding strategy for each.

By ``torch.distributed.tensor.experimental.register_sharding``. An operator that works on rows or elements for
themselves keeps its split; any other takes whole tensors, which DTensor gathers. ``OPERATORS`` has their names. Those
that return a list of weights have none: torch has no public way to tell the placements of a list. Nor has
``draw_key``, whose processes would draw different keys, nor ``encode_levels``, whose size is known only when it has
run. A quantizer needs none of these: it gathers weights together (docs/distributed.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from .. import functional  # defines the operators  # noqa: F401

Placements = list[Any]  # one for each tensor among the arguments, None for each other one
Strategies = list[tuple[Placements, Placements]]  # pairs of the placements of results and of arguments


def _flat(arguments: Sequence[Any]) -> list[Any]:
    """As torch counts them: those of a list one by one."""
    return [each for one in arguments for each in (_flat(one) if isinstance(one, list | tuple) else [one])]


def _whole(results: int) -> Callable[..., Strategies]:
    def strategies(*arguments: Any) -> Strategies:
        return [([Replicate()] * results, [_whole_or_none(each) for each in _flat(arguments)])]

    return strategies


def _whole_or_none(argument: Any) -> Replicate | None:
    return Replicate() if hasattr(argument, "tensor_meta") else None


def _split_first(result: Callable[[int], Any], dimensions: Callable[[int], int]) -> Callable[..., Strategies]:
    """The first argument may be split along any of so many dimensions, the others are whole."""

    def strategies(first: Any, *others: Any) -> Strategies:
        rest = [_whole_or_none(each) for each in _flat(others)]
        splits = [([result(d)], [Shard(d), *rest]) for d in range(dimensions(first.ndim))]
        return [*_whole(1)(first, *others), *splits]

    return strategies


OPERATORS: dict[str, Callable[..., Strategies]] = {
    "widths_from_logits": _split_first(Shard, lambda ndim: ndim),
    "count_widths": _split_first(lambda _dimension: Partial("sum"), lambda ndim: ndim),
    "unpack_rows": _split_first(Shard, lambda ndim: ndim),
    "packed_linear": _split_first(Shard, lambda ndim: ndim - 1),  # not the columns
    "weight_range": _whole(2),
    "pack_planes_seen": _whole(2),
    **dict.fromkeys(("noise", "weight_sizes", "pack", "unpack", "quantize_pack", "unpack_dequantize"), _whole(1)),
    **dict.fromkeys(("decode_levels", "pack_planes", "unpack_planes", "pack_rows"), _whole(1)),
}

for _name, _strategies in OPERATORS.items():
    register_sharding(getattr(torch.ops.diffq_fast, _name).default)(_strategies)
