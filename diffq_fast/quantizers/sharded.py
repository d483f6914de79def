"""Forwards of a sharded model: a weight is made when the call of a module has gathered it, and only for that call.

``fully_shard`` puts a module's parameters there whole when the module is called, and in shards again when it ends. Its
hook stands before all others. Under tensor parallelism nothing is gathered: weights are made at the root as always, and
what stands in their place is split as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from .admission import look_at_shards, refuse_fsdp1
from .replay import Maker
from .selection import QuantizedParameter, Selection
from .shards import is_managed, is_sharded, replicated


class ShardedForwards:
    """Which weights the modules that are being called have gathered.

    Args:
        who: the quantizer's name, for errors.
        selection: its weights.
    """

    def __init__(self, who: str, selection: Selection) -> None:
        self._who, self._selection = who, selection
        self._entries = selection.quantised
        self._stack: list[tuple[nn.Module, list[int]]] = []
        self._own: dict[nn.Module, list[QuantizedParameter]] = {}
        for entry in self._entries:
            self._own.setdefault(entry.module, []).append(entry)

    def look(self) -> None:
        """Note the shards of all weights. Raises TypeError for those of FSDP1."""
        refuse_fsdp1(self._who, self._entries)
        for entry in self._entries:
            for param in entry.params:
                del param  # reading it notes it
        if any(is_managed(entry.module) for entry in self._entries):
            look_at_shards(self._who, self._selection)

    def begin(self, maker: Maker, everything: Sequence[int]) -> tuple[Maker, Sequence[int]]:
        """A forward begins: what makes its weights, and the indices of those that the root has whole."""
        self._stack.clear()
        return partial(_split_again, maker, self._entries), self.ready(everything)

    def ready(self, indices: Sequence[int]) -> list[int]:
        """Those of ``indices`` whose weights are whole."""
        return [index for index in indices if self._entries[index].is_whole]

    def enter(self, module: nn.Module, members: Sequence[int]) -> Sequence[int]:
        """A call of ``module`` begins: those of its weights that are to be made."""
        indices = self.ready([index for index in members if not self._entries[index].is_shadowed])
        self._stack.append((module, indices))
        return indices

    def refuse_unmade(self, module: nn.Module) -> None:
        """RuntimeError where the called module would read a weight of its own that nobody has made."""
        for entry in self._own.get(module, ()):
            if not entry.is_shadowed:
                raise RuntimeError(
                    f"{self._who}: {entry.full_name} is not gathered while its module is called, so it cannot be "
                    "quantised; call fully_shard on the module or on one around it that the forward calls "
                    "(docs/distributed.md)"
                )

    def leave(self, module: nn.Module) -> list[int]:
        """A call of ``module`` has ended: the indices of the weights that it has gathered."""
        if self._stack and self._stack[-1][0] is module:
            return self._stack.pop()[1]
        return []

    def end(self) -> None:
        """The forward has ended."""
        self._stack.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stack": []}


def _split_again(maker: Maker, entries: Sequence[QuantizedParameter], indices: Sequence[int]) -> list[Tensor]:
    """What ``maker`` makes, under tensor parallelism split as the weights are."""
    return [_as_split(tensor, entries[index]) for tensor, index in zip(maker(indices), indices, strict=True)]


def _as_split(tensor: Tensor, entry: QuantizedParameter) -> Tensor:
    like: Any = entry.module._parameters[entry.name] if is_managed(entry.module) else entry.sharded
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    mesh, placements = like.device_mesh, like.placements
    return replicated(tensor, mesh).redistribute(mesh, placements)  # type: ignore[attr-defined]
