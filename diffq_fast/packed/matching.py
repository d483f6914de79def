"""The quantizer on a model that a packed file is loaded into: what it learns, and whether its weights will be the
file's again. Known by its hooks and attributes: quantizers are a layer above the files."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..files.tensor_bytes import memory_key
from ..reference.logit_rule import LogitRule
from .contents import PackedContents
from .tensor import PackedTensor


@dataclass(frozen=True)
class Learned:
    """An entry of the model's state_dict that a quantizer learns: for which weight of the file, by which rule.

    ``quantizer`` is None where the entry was told by its name alone.
    """

    weight: str
    rule: LogitRule
    quantizer: Any = None


def learned_entries(
    model: nn.Module, targets: Mapping[str, Any], contents: PackedContents, rule: LogitRule
) -> dict[str, Learned]:
    """The model's logits and scales, by name, with the packed weight of the file that each belongs to.

    Args:
        targets: the model's state_dict.
        rule: of the file, for logits that no attached quantizer owns.
    """
    owned: dict[Hashable, tuple[Any, Hashable]] = {}
    for quantizer, entry in _entries(model):
        if entry.first.learned_name is not None:
            owned[memory_key(entry.logit)] = quantizer, memory_key(entry.param)
    names: dict[Hashable, list[str]] = {}
    for name, target in targets.items():
        if isinstance(target, Tensor):
            names.setdefault(memory_key(target), []).append(name)
    found = {}
    for name, target in targets.items():
        quantizer, weight_key = owned.get(memory_key(target) if isinstance(target, Tensor) else None, (None, None))
        if quantizer is None:
            weight = _weight_by_name(name, contents, rule.suffix)
            if weight is not None and name not in contents:
                found[name] = Learned(weight, rule)
            continue
        candidates = [each for each in names.get(weight_key, []) if _fits(quantizer, _packed(contents, each))]
        own = name.removesuffix(quantizer.suffix)
        weight = own if own in candidates else next(iter(candidates), None)
        if weight is not None:
            found[name] = Learned(contents.ties.get(weight, weight), _own_rule(quantizer) or rule, quantizer)
    return found


def unlike_the_file(
    model: nn.Module, targets: Mapping[str, Any], contents: PackedContents, strict: bool
) -> Iterator[str]:
    """Say which weights an attached quantizer would not give as the file has them, whatever it learns."""
    owners = {memory_key(entry.param): quantizer for quantizer, entry in _entries(model)}
    for name, target in targets.items():
        quantizer = owners.get(memory_key(target)) if isinstance(target, Tensor) and name in contents else None
        if quantizer is None:
            continue
        who, packed = type(quantizer).__name__, _packed(contents, name)
        if packed is None:
            if strict and not hasattr(quantizer, "suffix"):
                yield f"{name}: this {who} quantises it, but in the file it is not quantised"
        elif packed.count:
            problem = _problem(quantizer, packed)
            if problem:
                stated = contents.quantizer["class"]
                yield f"{name}: the file ({stated}) has {problem[0]}, this {who} {problem[1]}"


def _problem(quantizer: Any, packed: PackedTensor) -> tuple[str, str] | None:
    """What the file has and what the quantizer makes, where these are not the same."""
    widths = packed.widths.unique().tolist()
    has = f"{widths[0]} bits" if len(widths) == 1 else f"groups of {widths[0]} to {widths[-1]} bits"
    if packed.range_scope == "scale":
        has += " and a scale"
    if packed.level_count:
        has = f"{packed.level_count} levels"
    if hasattr(quantizer, "max_bits"):
        if packed.range_scope not in ("tensor", "group") or packed.level_count:
            return has, "has a range and whole bits for each group"
        if packed.range_scope != quantizer.range_scope:
            return f"range_scope={packed.range_scope!r}", f"has range_scope={quantizer.range_scope!r}"
        if len(packed.widths) > 1 and packed.group_size != quantizer.group_size:
            return f"group_size={packed.group_size}", f"has group_size={quantizer.group_size}"
        return None
    if hasattr(quantizer, "suffix"):
        same = packed.range_scope == "scale" and widths == [quantizer.bits]
        return None if same else (has, f"has bits={quantizer.bits} and a scale")
    count = packed.level_count or 1 << widths[0]
    same = packed.range_scope == "tensor" and len(widths) == 1 and count == quantizer._count
    return None if same else (has, f"has bits={quantizer.bits} ({quantizer._count} levels)")


def _entries(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """(quantizer, entry) for every weight of every quantizer on the model, or on a part of it."""
    quantizers: dict[int, Any] = {}
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if hasattr(owner, "_qparams") and hasattr(owner, "describe"):
                quantizers[id(owner)] = owner
    for quantizer in quantizers.values():
        for entry in quantizer._qparams:
            yield quantizer, entry


def _own_rule(quantizer: Any) -> LogitRule | None:
    if not hasattr(quantizer, "max_bits"):
        return None
    low, high, extra = (float(getattr(quantizer, name)) for name in ("min_bits", "max_bits", "extra_bits"))
    return LogitRule(low, high, extra, quantizer.param, quantizer.suffix)


def _packed(contents: PackedContents, name: str) -> PackedTensor | None:
    return contents.packed.get(contents.ties.get(name, name))


def _fits(quantizer: Any, packed: PackedTensor | None) -> bool:
    """Scales belong to scales, logits to all else."""
    return packed is not None and (packed.range_scope == "scale") != hasattr(quantizer, "max_bits")


def _weight_by_name(name: str, contents: PackedContents, suffix: str) -> str | None:
    weight = contents.ties.get(name.removesuffix(suffix), name.removesuffix(suffix))
    return weight if name.endswith(suffix) and weight in contents.packed else None
