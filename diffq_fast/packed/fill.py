"""Tell what of a state dict cannot be copied into a model, and fill a model with all of it, or with nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..files.safetensors_reader import escaped
from ..quantizers.shards import is_sharded, placed_like
from .contents import Entry

PLAIN = (Tensor, nn.Parameter)
_LOADERS = ("load_state_dict", "_load_from_state_dict", "set_extra_state")


def misfits(targets: Mapping[str, Any], entries: Mapping[str, Entry]) -> dict[str, str]:
    """By name, why an entry of a file cannot be copied into the model's entry of that name."""
    problems = {name: _misfit(name, target, entries[name]) for name, target in targets.items()}
    return {name: problem for name, problem in problems.items() if problem is not None}


def _misfit(name: str, target: Any, entry: Entry) -> str | None:
    if is_lazy(target):
        return "the model's entry has no shape yet; run one forward before loading"
    if not isinstance(target, Tensor) or target.is_meta:
        return "the model's entry holds no data; use to_empty() before loading"
    if name.rpartition(".")[2] == "_extra_state":
        return None  # of any shape; the module's own set_extra_state takes it
    if tuple(target.shape) != entry.shape:
        return f"expected shape {list(target.shape)}, the file has {list(entry.shape)}"
    if target.dtype != entry.dtype and not (target.is_floating_point() and entry.dtype.is_floating_point):
        return f"expected {target.dtype}, the file has {entry.dtype}"
    if any(step == 0 and size > 1 for size, step in zip(entry.shape, target.stride(), strict=True)):
        return "several elements of the model's entry share their memory; put its clone() there before loading"
    if target.is_inference() and not torch.is_inference_mode_enabled():
        return "the model's entry was made in inference mode; put its clone() there before loading"
    return None


def fill(
    model: nn.Module, values: Mapping[str, Tensor], targets: Mapping[str, Any], last: Collection[str], who: str
) -> None:
    """Hand ``values`` to the model's own ``load_state_dict``.

    Args:
        targets: the model's state_dict before.
        last: names that win where the memory of several entries overlaps.
        who: the beginning of errors.

    Raises:
        ValueError: the model's code failed, or does not take a name. The model is put back as it was.
    """
    sharded = [name for name in values if type(targets[name]) not in PLAIN]
    values = dict(values) | {name: placed_like(values[name], targets[name]) for name in sharded}
    state = OrderedDict(values)
    state._metadata = getattr(targets, "_metadata", OrderedDict())  # type: ignore[attr-defined]
    before = _copies(targets) if _has_loaders_of_its_own(model) else {}
    try:
        with torch.no_grad():
            result = model.load_state_dict(state, strict=False)
            refused = [name for name in getattr(result, "unexpected_keys", ()) if name in values]
            if refused:
                raise ValueError(f"it does not take {', '.join(refused)}")
            for name in _overlapping(targets, set(last) & values.keys()):
                targets[name].copy_(values[name])
    except BaseException as error:
        _put_back(model, targets, before)
        if not isinstance(error, Exception):
            raise
        problem = f"{who}: the model's load_state_dict failed: {type(error).__name__}: {error}"
        raise ValueError(escaped(problem)) from error


def _has_loaders_of_its_own(model: nn.Module) -> bool:
    """Whether code other than torch's takes part in loading: it may fail half way."""
    for module in model.modules():
        own = [getattr(type(module), name).__module__ for name in _LOADERS]
        if not all(name.startswith("torch.") for name in own):
            return True
        if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
            return True
    return False


def _copies(targets: Mapping[str, Any]) -> OrderedDict[str, Any]:
    made = {
        name: each.detach().clone() if isinstance(each, Tensor) else copy.deepcopy(each)
        for name, each in targets.items()
    }
    state = OrderedDict(made)
    state._metadata = getattr(targets, "_metadata", OrderedDict())  # type: ignore[attr-defined]
    return state


def _put_back(model: nn.Module, targets: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Restore what lies in the model's memory exactly, and the rest as far as the model takes its own state back."""
    with torch.no_grad():
        if before:
            with suppress(Exception):
                model.load_state_dict(before, strict=False)
        for name, value in before.items():
            if isinstance(value, Tensor):
                targets[name].copy_(value)


def _overlapping(targets: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Those of ``names`` whose storage holds another entry too."""
    names = [name for name in names if type(targets[name]) in PLAIN or not is_sharded(targets[name])]
    storages = {
        target.untyped_storage().data_ptr()
        for name, target in targets.items()
        if name not in names
        and isinstance(target, Tensor)
        and target.layout == torch.strided
        and (type(target) in PLAIN or not is_sharded(target))
    }
    return [name for name in names if targets[name].untyped_storage().data_ptr() in storages]
