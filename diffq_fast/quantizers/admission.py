"""Which models no quantizer can be on: packed ones, ones sharded in unknown ways, tensors not plain or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .selection import QuantizedParameter, Selection, Slot
from .shards import MANAGED, is_first_of, is_managed, is_sharded, split_dimensions

PAIRS = (["Shard", "Shard"], ["_StridedShard", "Shard"])  # of fully_shard and of tensor parallelism, along a mesh each
_FSDP1 = "FullyShardedDataParallel"
FSDP1 = (
    "which lays its weights into flat pieces that no group of bits fits; use FSDP2 instead: "
    "torch.distributed.fsdp.fully_shard(model), before or after the quantizer, or DistributedDataParallel"
)


def refuse_foreign(who: str, model: nn.Module, slots: Iterable[Slot]) -> None:
    """Look at a model that a quantizer is about to be attached to.

    Args:
        who: the quantizer's name.
        model: the model.
        slots: the places of its parameters.

    Raises:
        TypeError: it is sharded by FSDP1 or holds packed weights, or a parameter is a tensor subclass with operators of
            its own.
        ValueError: a parameter is offloaded.
    """
    kinds: dict[type, str] = {}
    for name, module in model.named_modules():
        kinds.setdefault(type(module), name or "the model")
    for kind, name in kinds.items():
        if is_flattened(kind):
            raise TypeError(f"{who}: {name} is sharded by {_FSDP1}, {FSDP1}")
        if getattr(kind, "stays_packed", False):
            raise TypeError(
                f"{who}: {name} is a weight that stays packed and cannot be trained; load the model without packed=True"
            )
    for slot in slots:
        refuse_tensor(who, slot.full_name, slot.param)
        if is_offloaded(slot.module, slot.param):
            raise ValueError(f"{who}: {offloaded(slot.full_name)}")


def refuse_tensor(who: str, name: str, tensor: Tensor) -> None:
    """TypeError for a tensor subclass that runs code of its own when an operator meets it."""
    if tensor.__class__ is nn.Parameter or is_sharded(tensor) or is_plain(type(tensor)):
        return
    kind = f"{type(tensor).__module__}.{type(tensor).__name__}"
    raise TypeError(
        f"{who}: {name} is a {kind}, a tensor subclass whose numbers the quantizer's kernels cannot read; attach the "
        "quantizer to the model before another tool replaces its weights, or leave that tool out"
    )


def refuse_sparse(who: str, slots: Iterable[Slot]) -> None:
    """TypeError for a weight to be quantised whose elements do not all lie in memory."""
    for slot in slots:
        if slot.param.layout != torch.strided:
            raise TypeError(
                f"{who}: {slot.full_name} must be dense, got {slot.param.layout}; to_dense() makes it so, "
                "exclude leaves it alone"
            )


def is_plain(kind: type) -> bool:
    """Whether tensors of this type are torch's own: Parameter, or a subclass that only carries attributes."""
    return issubclass(kind, FakeTensor) or _interception(kind) in map(_interception, (torch.Tensor, nn.Parameter))


def _interception(kind: Any) -> list[Any]:
    """The functions through which a class sees what operators do with its tensors."""
    return [getattr(method, "__func__", method) for method in (kind.__torch_function__, kind.__torch_dispatch__)]


def is_flattened(kind: type) -> bool:
    """Whether this class of module is the wrapper of FSDP1."""
    return any(each.__name__ == _FSDP1 for each in kind.__mro__)


def refuse_fsdp1(who: str, slots: Iterable[Slot]) -> None:
    """TypeError where the wrapper of FSDP1 holds a parameter.

    It marks those that it leaves in a module, shows them as plain tensors in a forward, and marks a module that it
    leaves none in.
    """
    for slot in slots:
        if not is_managed(slot.module):
            continue
        left = slot.module._parameters.get(slot.name)
        if (
            type(left) is Tensor
            or hasattr(left, "_fsdp_flattened")
            or not slot.module.__dict__.get("_fsdp_use_orig_params", True)
        ):
            raise TypeError(f"{who}: {slot.full_name} is sharded by {_FSDP1}, {FSDP1}")


def look_at_shards(who: str, selection: Selection) -> None:
    """Note how the quantised weights are sharded, if they are: ``selection.mesh``.

    Raises:
        RuntimeError: some are sharded in a way that is not supported, with the name, and what to do.
        TypeError: that way is FSDP1.
    """
    refuse_fsdp1(who, selection.quantised)
    mesh: Any = None
    for entry in selection.quantised:
        param: Any = entry.param
        if param.__class__ is nn.Parameter and not entry.module.__dict__.get(MANAGED, False):
            continue  # without a call: models have thousands of small weights
        if is_sharded(param):
            _refuse_placement(who, entry, param)
            if is_managed(entry.module) and entry.original.learned_name is not None and not is_sharded(entry.logit):
                raise _unsupported(
                    who, entry, "is sharded, and what is learned for it is not: do not give it to ignored_params"
                )
            mesh = _common_mesh(mesh, param.device_mesh)
            if mesh is None:
                raise _unsupported(
                    who, entry, "is sharded over another mesh than weights before it; give all of them one mesh"
                )
        elif is_managed(entry.module):
            raise _unsupported(
                who,
                entry,
                "is held by fully_shard, but stands there whole: it was ignored (ignored_params), or a forward has "
                "gathered it. Attach to the outermost FSDP module, after reshard() on each, or exclude the weight",
            )
    if mesh is not None:
        _refuse_unlike(who, selection)
        mesh = _mesh_of_rest(mesh, selection.rest)
    selection.mesh = mesh


def _refuse_unlike(who: str, selection: Selection) -> None:
    """Beside weights of ``fully_shard`` all must be: nobody would average the gradients of others."""
    by_fsdp = [entry for entry in selection.quantised if is_managed(entry.module)]
    for entry in selection.quantised:
        if by_fsdp and not is_managed(entry.module):
            raise _unsupported(
                who,
                entry,
                f"is not sharded, while {by_fsdp[0].full_name} is: call fully_shard on the outermost module too, or "
                "exclude the weight",
            )


def _common_mesh(before: Any, found: Any) -> Any:
    """Of the meshes of two weights the one that holds both; None: there is none. Beside weights that tensor parallelism
    splits too, ``fully_shard`` has others on its own dimension of their mesh."""
    if before is None or before == found:
        return found
    small, large = sorted((before, found), key=lambda mesh: mesh.ndim)
    return large if is_first_of(small, large) else None


def _mesh_of_rest(mesh: Any, rest: Iterable[Slot]) -> Any:
    """The mesh that holds the quantised weights, and others that tensor parallelism splits too: processes that it has
    compute one model, and need one noise."""
    for slot in rest:
        param: Any = slot.param
        if param.__class__ is not nn.Parameter and is_sharded(param) and is_first_of(mesh, param.device_mesh):
            return param.device_mesh
    return mesh


def _refuse_placement(who: str, entry: QuantizedParameter, param: Any) -> None:
    split = [type(param.placements[index]).__name__ for index in split_dimensions(param)]
    dimensions = param.device_mesh.ndim
    both = is_managed(entry.module) and dimensions in (2, 3)
    if dimensions > 2 + both or split not in ([], ["Shard"], *(PAIRS if both else ())):
        placed = ", ".join(map(str, param.placements))
        raise _unsupported(
            who,
            entry,
            f"is placed as ({placed}); supported are fully_shard over a mesh of one or two dimensions, tensor "
            "parallelism over one, and both together; shard in one of these ways, or exclude the weight",
        )


def _unsupported(who: str, entry: QuantizedParameter, what: str) -> RuntimeError:
    return RuntimeError(f"{who}: {entry.full_name} {what} (docs/distributed.md)")


def is_offloaded(module: nn.Module, param: Tensor) -> bool:
    """Whether the values of a module's parameter come only when the module runs: accelerate's hooks do that."""
    return param.is_meta and hasattr(module, "_hf_hook")


def offloaded(name: str) -> str:
    """What is told of such a parameter."""
    return (
        f"{name} is offloaded: it is on the meta device until its layer runs, and the quantizer reads it before; keep "
        "the model on its device (accelerate: remove_hook_from_submodules), or offload what quantizer.bake() leaves"
    )
