"""Save a quantised model to a packed file, and load one: from packed files to torch modules and back."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..files.safetensors_writer import Progress
from ..files.tensor_bytes import memory_key
from ..quantizers.registry import Rule
from .contents import PackedContents, read_packed, write_packed
from .fill import fill
from .layout import compact_json, learned_suffix
from .logit_rule import read_rule
from .matching import Learned, learned_entries, unlike_the_file
from .report import inspect
from .tensor import PackedTensor, pack_levels, pack_weight

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
    exported = quantizer.export_model(learned=logits)
    packed = {record.name: _packed(record) for record in exported.weights}
    ties = {alias: record.name for record in exported.weights for alias in record.aliases}
    plain, plain_ties = _stored_once(exported.plain)
    half = {plain_ties.get(name, name) for name in exported.half}
    info, rule = quantizer.describe(), quantizer.rule()
    if rule is not None and learned_suffix(info) != rule.suffix:
        info["arguments"]["suffix"] = rule.suffix
    write_packed(
        path, packed, plain, ties | plain_ties, half, info, buffers=exported.buffers & plain.keys(), progress=progress
    )


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
        model: a plain module, or one with a quantizer attached. Its own ``load_state_dict`` fills its tensors,
            which keep their dtype and device. Logits come from the file, or, where the file has none or the
            quantizer has other arguments, are set to what gives the file's widths again. A model without a
            quantizer passes over the file's logits.
        strict: refuse a model that lacks an entry of the file or has one that the file lacks.

    Returns:
        the model; without one, the state dict (float tensors under every name, tied names share one tensor).

    Raises:
        PackedFileError: the file is damaged, naming the tensor.
        ValueError: the file does not fit the model, naming every entry, or its quantizer would not give the file's
            weights again. The model is then unchanged.
    """
    contents = read_packed(path)
    if model is None:
        return contents.state_dict()
    rule = read_rule(contents.path, contents.quantizer)
    targets = model.state_dict()
    learned = learned_entries(model, targets, contents, rule)
    problems = _misfits(targets, learned, contents, rule, strict)
    unlike = [*unlike_the_file(model, targets, contents, strict)] if not problems else []
    values, unreachable = _learned_values(learned, contents, rule) if not problems else ({}, [])
    if unlike or unreachable:
        stated = compact_json(contents.quantizer)
        hint = f"attach one with the arguments of the file ({stated}), or load first and attach then"
        problems = [*unlike, *unreachable, hint]
    if problems:
        raise ValueError(f"load: {contents.path} does not fit the model: {'; '.join(problems)}")
    decoded: dict[Any, Tensor] = {}
    for name, target in targets.items():
        if name not in values and name in contents:
            source = (contents.ties.get(name, name), target.device)
            values[name] = decoded[source] = decoded[source] if source in decoded else contents.tensor(*source)
    weights = [name for name in targets if contents.ties.get(name, name) in contents.packed]
    fill(model, values, targets, weights, f"load: {contents.path}")
    return model


def _packed(record: Any) -> PackedTensor:
    """The packed form of one of a quantizer's ``export_weights``."""
    options = {"range_scope": record.range_scope, "name": record.name}
    if record.levels is None:
        widths = record.widths.to(record.weight.device)
        return pack_weight(record.weight, widths, group_size=int(record.group_size), found=record.ranges, **options)
    width, dtype = int(record.widths[0]), record.weight.dtype
    return pack_levels(record.levels, width, record.ranges, dtype=dtype, level_count=record.level_count, **options)


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


def _learned_values(
    learned: Mapping[str, Learned], contents: PackedContents, rule: Rule
) -> tuple[dict[str, Tensor], list[str]]:
    """Logits and scales by name, and what is wrong where the widths of the file are out of reach."""
    values, problems = {}, []
    for name, entry in learned.items():
        packed, stored = contents.packed[entry.weight], entry.weight + rule.suffix
        differing = entry.rule.differing(rule)
        if stored in contents and not differing:
            values[name] = contents.tensor(stored)
        else:
            values[name] = entry.rule.learned(packed)
            problems += _out_of_reach(name, entry, packed, values[name], differing, contents)
    return values, problems


def _out_of_reach(
    name: str,
    entry: Learned,
    packed: PackedTensor,
    learned: Tensor,
    differing: Mapping[str, Any],
    contents: PackedContents,
) -> list[str]:
    """A problem where what is learned does not give the widths, a warning where no other arguments would."""
    changed = entry.rule.changed(packed, learned)
    if not changed:
        return []
    found = f"{name}: {changed} of {len(packed.widths)} groups have widths that "
    if differing and contents.quantizer["class"] != "none":
        given = ", ".join(f"{argument}={value}" for argument, value in differing.items())
        return [f"{found}{type(entry.quantizer).__name__} with {given} cannot give"]
    warnings.warn(f"load: {contents.path}: {found}{entry.rule.reach} cannot give; their logits come near", stacklevel=4)
    return []


def _misfits(
    targets: Mapping[str, Any],
    learned: Mapping[str, Learned],
    contents: PackedContents,
    rule: Rule,
    strict: bool,
) -> list[str]:
    """One text for every entry of the model and of the file that does not fit."""
    problems, hint = [], []
    if strict:
        missing = [name for name in targets if name not in contents and name not in learned]
        spare = {name + rule.suffix for name in contents.names() if contents.ties.get(name, name) in contents.packed}
        unexpected = [name for name in contents.names() if name not in targets and name not in spare]
        problems += [f"missing in the file: {', '.join(missing)}"] if missing else []
        problems += [f"not in the model: {', '.join(unexpected)}"] if unexpected else []
        hint = ["strict=False skips missing and additional names"] if problems else []
    for name, target in targets.items():
        problem = None
        if name in learned:
            problem = _learned_misfit(target, learned[name], contents, rule)
        elif name in contents:
            problem = _misfit(name, target, contents)
        problems += [f"{name}: {problem}"] if problem else []
    return problems + _tie_conflicts(targets, contents) + hint


def _learned_misfit(target: Any, entry: Learned, contents: PackedContents, rule: Rule) -> str | None:
    """Why the weight's logits or scale cannot be the model's."""
    packed, stored = contents.packed[entry.weight], entry.weight + rule.suffix
    shape = entry.rule.shape(packed)
    if tuple(target.shape) != shape:
        return entry.rule.misfit(packed, list(target.shape))
    if stored in contents and contents.shape(stored) != shape:
        return f"expected {math.prod(shape)} {entry.rule.noun}, the file has {list(contents.shape(stored))}"
    return None


def _misfit(name: str, target: Any, contents: PackedContents) -> str | None:
    """Why the file's tensor cannot be copied into the model's, or None."""
    shape, dtype = contents.shape(name), contents.dtype(name)
    if is_lazy(target):
        return "the model's entry has no shape yet; run one forward before loading"
    if not isinstance(target, Tensor) or target.is_meta:
        return "the model's entry holds no data; use to_empty() before loading"
    if name.rpartition(".")[2] == "_extra_state":
        return None  # of any shape; the module's own set_extra_state takes it
    if tuple(target.shape) != shape:
        return f"expected shape {list(target.shape)}, the file has {list(shape)}"
    if target.dtype != dtype and not (target.is_floating_point() and dtype.is_floating_point):
        return f"expected {target.dtype}, the file has {dtype}"
    if any(step == 0 and size > 1 for size, step in zip(shape, target.stride(), strict=True)):
        return "several elements of the model's entry share their memory; put its clone() there before loading"
    if target.is_inference() and not torch.is_inference_mode_enabled():
        return "the model's entry was made in inference mode; put its clone() there before loading"
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
