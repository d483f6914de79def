"""Parameters that are sharded over processes: torch's DTensors, as ``fully_shard`` and tensor parallelism leave them.

What is learned for a weight of ``fully_shard`` is a DTensor of the same mesh (see ``gathering``). Each process makes
the same noise: the first one tells its key. ``docs/distributed.md`` says what follows from it. torch.distributed is
imported where it is needed: a process without shards does not pay for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WAIT, MOST_WAIT = 1e-3, 1.0  # seconds

MANAGED = "_is_fsdp_managed_module"  # what fully_shard leaves on each module whose parameters it holds


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, of any placement."""
    return type(tensor).__name__ == "DTensor"


def is_managed(module: nn.Module) -> bool:
    """Whether ``fully_shard`` holds the parameters of this very module."""
    return bool(module.__dict__.get(MANAGED, False))


def trained(before: Any, found: Any) -> Any:
    """Of a sharded parameter the DTensor that is trained: ``before``, noted earlier, or what stands there now. After a
    forward, another mesh may hold it; but one that ``before`` has a dimension of is that of ``fully_shard`` around
    tensor parallelism."""
    if found.__class__ is nn.Parameter or not is_sharded(found):
        return before
    if before is None or found.device_mesh == before.device_mesh:
        return found
    return found if is_last_of(before.device_mesh, found.device_mesh) else before


def is_first_of(mesh: Any, of: Any) -> bool:
    """Whether a mesh has this process's first dimensions of the mesh ``of``, which has more: those of ``fully_shard``
    around tensor parallelism."""
    if mesh.ndim >= of.ndim:
        return False
    here = (slice(None),) * mesh.ndim + tuple(of.get_coordinate()[mesh.ndim :])
    return torch.equal(of.mesh[here], mesh.mesh)


def is_last_of(mesh: Any, of: Any) -> bool:
    """Whether a mesh has the last ones: those of tensor parallelism."""
    return mesh.ndim < of.ndim and torch.equal(of.mesh[tuple(of.get_coordinate()[: of.ndim - mesh.ndim])], mesh.mesh)


def is_split_by_parallelism(module: nn.Module, param: Any) -> bool:
    """Whether a parameter of ``module`` that stands in shards is a DTensor of tensor parallelism too, or of that
    alone. Dimensions behind the first one that ``fully_shard`` splits along are those of tensor parallelism."""
    if not is_managed(module):
        return True
    split = split_dimensions(param)
    return bool(split) and split[0] + 1 < param.device_mesh.ndim


def split_dimensions(tensor: Any) -> list[int]:
    """The dimensions of its mesh along which a DTensor is split."""
    return [index for index, each in enumerate(tensor.placements) if not each.is_replicate()]


def is_gathered(found: Any, sharded: Any) -> bool:
    """Whether ``fully_shard`` has gathered the parameter ``sharded``: ``found``, which stands there, is whole, or as
    tensor parallelism alone splits it."""
    return not is_sharded(found) or found.device_mesh.ndim < sharded.device_mesh.ndim


class Split(NamedTuple):
    """How DTensors of one mesh are split: along which of its dimensions, None: along none."""

    mesh: Any
    dimension: int | None

    @classmethod
    def of(cls, tensor: Any) -> Split:
        """Of a DTensor; where tensor parallelism splits it too, along the dimension of ``fully_shard``."""
        split = split_dimensions(tensor)
        return cls(tensor.device_mesh, split[0] if split else None)

    @property
    def parts(self) -> int:
        return 1 if self.dimension is None else self.mesh.size(self.dimension)

    @property
    def own(self) -> int:
        """Which part this process has."""
        return 0 if self.dimension is None else self.mesh.get_local_rank(self.dimension)

    @property
    def others(self) -> list[Any]:
        """The groups of the dimensions along which nothing is split."""
        return [self.mesh.get_group(index) for index in range(self.mesh.ndim) if index != self.dimension]


# -- values ------------------------------------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, without gradient. Of a DTensor: every process of its mesh must ask."""
    with torch.no_grad():
        return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, over the same memory, without gradient."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, placed as ``like`` is; one of no dimension is replicated."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    split = Split.of(like)
    placements: list[Any] = [Replicate()] * split.mesh.ndim
    if value.shape == like.shape:
        placements = list(like.placements)  # type: ignore[attr-defined]
    elif value.dim() and split.dimension is not None:
        placements[split.dimension] = Shard(0)
    return distribute_tensor(value.detach(), split.mesh, placements, src_data_rank=None)


def replicated(value: Tensor, mesh: Any) -> Tensor:
    """A whole tensor, which every process has, as a DTensor that each of them keeps."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def write(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value into a tensor, or into this process's part of it."""
    with torch.no_grad():
        if is_sharded(tensor):
            local(tensor).copy_(local(placed_like(value, tensor)))
        else:
            tensor.copy_(value)


def replaced(tensor: Tensor) -> Tensor:
    """All of a DTensor, differentiable: for computations that every process of its mesh does alike."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


# -- agreement ---------------------------------------------------------------------------------------------------------


def agreed(value: Tensor, mesh: Any) -> Tensor:
    """The value that the first process of the mesh has. Written in place, and returned; asks the device for nothing."""
    first = mesh.mesh.flatten().tolist()[0]
    if mesh.ndim == 1:
        torch.distributed.broadcast(value, src=first, group=mesh.get_group())
        return value
    for index in range(mesh.ndim):
        torch.distributed.broadcast(value, group=mesh.get_group(index), group_src=0)
    return value


def groups_of(mesh: Any) -> list[Any]:
    """The process groups of a mesh, one for each dimension."""
    return [mesh.get_group(index) for index in range(mesh.ndim)]


def largest_of(values: Tensor, groups: Sequence[Any]) -> Tensor:
    """The largest that any process of the groups, those of a mesh, has. Written in place, and returned; asks the device
    for nothing."""
    for group in groups:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=group)
    return values


def running_data_parallel() -> Any:
    """The DistributedDataParallel whose forward runs, or None."""
    return getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)


def _wait_until_let_go(value: Tensor) -> None:
    """Until gloo's thread has let go of a tensor that went through a collective, a second at most.

    It does so after the collective has ended, and takes Python's lock for it: a process that ends meanwhile is aborted
    (torch 2.13). What :func:`on_first` does is often the last of a program.
    """
    if value.device.type != "cpu" or not hasattr(value, "_use_count"):
        return
    end = time.monotonic() + MOST_WAIT
    while value._use_count() > 1 and time.monotonic() < end:
        time.sleep(WAIT)
    time.sleep(WAIT)  # without the lock


def on_first(mesh: Any, act: Callable[[], None]) -> None:
    """Have the first process of the mesh do something, while the others wait.

    Raises:
        RuntimeError: it failed; on the first process, its own exception.
    """
    problem: Exception | None = None
    is_first = not any(mesh.get_coordinate())
    if is_first:
        try:
            act()
        except Exception as error:
            problem = error
    failed = torch.full((), int(problem is not None), dtype=torch.int32, device=mesh.device_type)
    agreed(failed, mesh)
    _wait_until_let_go(failed)
    if problem is not None:
        raise problem
    if int(failed):
        raise RuntimeError("the first process of the mesh could not write; its own error says why")
