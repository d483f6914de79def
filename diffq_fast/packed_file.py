"""Save a quantised model to a packed file, and load one: from packed files to torch modules and back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from .packed_container import PackedContents, read_packed, write_packed
from .packed_logits import LogitRule, read_rule
from .packed_report import inspect
from .packed_tensor import PackedTensor, pack_levels, pack_weight
from .safetensors_writer import Progress
from .tensor_bytes import memory_key

__all__ = ["inspect", "load", "read_packed", "save", "write_packed"]


def save(
    quantizer: Any, path: str | os.PathLike[str], *, logits: bool = False, progress: Progress | None = None
) -> None:
    """Write the quantizer's model to a packed file (docs/packed_format.md), all or nothing.

    Quantised weights are packed at their present widths; every other entry of the state dict (parameters and
    persistent buffers) is kept as it is, under its own name.

    Args:
        quantizer: a quantizer of this package, attached to its model.
        path: a safetensors file, replaced atomically.
        logits: keep the logits too, so that training can go on exactly where it was.
        progress: called as progress(tensor name, bytes done, bytes in all).

    Raises:
        ValueError: a NaN or infinite weight, named. TypeError: an entry that no safetensors file can hold.
    """
    packed: dict[str, PackedTensor] = {}
    ties: dict[str, str] = {}
    for record in quantizer.export_weights():
        packed[record.name] = _packed(record)
        ties |= dict.fromkeys(record.aliases, record.name)
    plain, plain_ties = _stored_once(quantizer.plain_state(logits))
    stored = quantizer.stored_names()
    half = {plain_ties.get(name, name) for each in quantizer.half_names for name in (stored.get(each, each),)}
    buffers = {name for name, _ in quantizer.model.named_buffers() if name in plain}
    info = quantizer.describe()
    write_packed(path, packed, plain, ties | plain_ties, half, info, buffers=buffers, progress=progress)


@overload
def load(path: str | os.PathLike[str], model: None = None, *, strict: bool = True) -> dict[str, Tensor]: ...
@overload
def load(path: str | os.PathLike[str], model: nn.Module, *, strict: bool = True) -> nn.Module: ...
def load(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, strict: bool = True
) -> dict[str, Tensor] | nn.Module:
    """Load a packed file.

    Args:
        path: a packed file; all of it is verified before anything is decoded.
        model: a plain module, or one with a quantizer attached. Its tensors are filled in place and keep
            their dtype and device. Logits come from the file, or, where the file has none, are set to what
            gives the file's widths again. A model without a quantizer passes over the file's logits.
        strict: refuse a model that lacks an entry of the file or has one that the file lacks.

    Returns:
        the model; without one, the state dict (float tensors under every name, tied names share one tensor).

    Raises:
        PackedFileError: the file is damaged, naming the tensor.
        ValueError: the file does not fit the model, naming every entry. The model is then unchanged.
    """
    contents = read_packed(path)
    if model is None:
        return contents.state_dict()
    rule = read_rule(contents.path, contents.quantizer)
    targets = model.state_dict()
    logits = {name: weight for name in targets if (weight := _weight_of_logit(name, contents, rule))}
    _check_fit(targets, logits, contents, rule, strict)
    values = {name: _logits(name, weight, contents, rule) for name, weight in logits.items()}
    with torch.no_grad():
        for name, target in targets.items():
            if name in values:
                target.copy_(values[name])
            elif name in contents:
                target.copy_(contents.tensor(name, target.device))
    return model


def _packed(record: Any) -> PackedTensor:
    """The packed form of one of a quantizer's ``export_weights``."""
    options = {"range_scope": record.range_scope, "name": record.name}
    if record.levels is None:
        widths = record.widths.to(record.weight.device)
        return pack_weight(record.weight, widths, group_size=int(record.group_size), **options)
    width, dtype = int(record.widths[0]), record.weight.dtype
    return pack_levels(record.levels, width, record.range, dtype=dtype, level_count=record.level_count, **options)


def _stored_once(plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Entries that are one tensor under several names: the first name keeps it, the others become ties."""
    kept: dict[str, Any] = {}
    ties: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in plain.items():
        identity = memory_key(tensor) if isinstance(tensor, Tensor) else name
        if first.setdefault(identity, name) == name:
            kept[name] = tensor
        else:
            ties[name] = first[identity]
    return kept, ties


def _weight_of_logit(name: str, contents: PackedContents, rule: LogitRule) -> str | None:
    """The packed weight whose logit this is, unless the file has an entry of this very name."""
    weight = name.removesuffix(rule.suffix)
    weight = contents.ties.get(weight, weight)
    return weight if name not in contents and name.endswith(rule.suffix) and weight in contents.packed else None


def _logits(name: str, weight: str, contents: PackedContents, rule: LogitRule) -> Tensor:
    """The stored logits of the weight (this name may be a tied one), or those that give its widths."""
    if weight + rule.suffix in contents:
        return contents.tensor(weight + rule.suffix)
    if contents.packed[weight].range_scope == "scale":
        return contents.packed[weight].range.reshape(())
    widths = contents.packed[weight].widths
    logits = rule.logits(widths)
    changed = int((rule.widths(logits) != widths).sum())
    if changed:
        warnings.warn(
            f"load: {contents.path}: {name}: {changed} of {len(widths)} groups have widths that bits "
            f"strictly between {rule.min_bits} and {rule.max_bits} cannot give; their logits come near",
            stacklevel=4,
        )
    return logits


def _check_fit(
    targets: Mapping[str, Any],
    logits: Mapping[str, str],
    contents: PackedContents,
    rule: LogitRule,
    strict: bool,
) -> None:
    """One ValueError that names every entry of the model and of the file that does not fit."""
    problems = []
    if strict:
        missing = [name for name in targets if name not in contents and name not in logits]
        spare = {name + rule.suffix for name in contents.packed}
        unexpected = [name for name in contents.names() if name not in targets and name not in spare]
        problems += [f"missing in the file: {', '.join(missing)}"] if missing else []
        problems += [f"not in the model: {', '.join(unexpected)}"] if unexpected else []
    for name, target in targets.items():
        if name in logits:
            packed = contents.packed[logits[name]]
            groups = len(packed.widths)
            if packed.range_scope == "scale":
                problems += [f"{name}: expected one scale, the model has {list(target.shape)}"] if target.dim() else []
            elif tuple(target.shape) != (groups,):
                found = f"the model has {list(target.shape)} logits, the file {groups} groups of "
                problems.append(f"{name}: {found}{packed.group_size}; use the same group_size")
        elif name in contents:
            problem = _misfit(target, contents, name)
            problems += [f"{name}: {problem}"] if problem else []
    problems += _tie_conflicts(targets, contents)
    if problems:
        hint = "; strict=False skips missing and additional names" if strict and (missing or unexpected) else ""
        raise ValueError(f"load: {contents.path} does not fit the model: {'; '.join(problems)}{hint}")


def _misfit(target: Any, contents: PackedContents, name: str) -> str | None:
    """Why the file's tensor cannot be copied into the model's, or None."""
    shape, dtype = contents.shape(name), contents.dtype(name)
    if not isinstance(target, Tensor) or target.is_meta:
        return "the model's entry holds no data; use to_empty() before loading"
    if tuple(target.shape) != shape:
        return f"expected shape {list(target.shape)}, the file has {list(shape)}"
    if target.dtype != dtype and not (target.is_floating_point() and dtype.is_floating_point):
        return f"expected {target.dtype}, the file has {dtype}"
    return None


def _tie_conflicts(targets: Mapping[str, Any], contents: PackedContents) -> list[str]:
    """Names that are one tensor in the model but hold different values in the file."""
    problems = []
    _, ties = _stored_once({name: target for name, target in targets.items() if name in contents})
    for alias, name in ties.items():
        one, other = (contents.ties.get(each, each) for each in (alias, name))
        same_shape = contents.shape(one) == contents.shape(other)
        if one != other and not (same_shape and torch.equal(contents.tensor(one), contents.tensor(other))):
            problems.append(f"{alias}: is tied to {name} in the model, but the file has different values for them")
    return problems
