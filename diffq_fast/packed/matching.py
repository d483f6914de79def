"""The quantizer on a model that a packed file is loaded into: what it learns, and whether its weights will be the
file's again."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..files.tensor_bytes import memory_key
from ..quantizers.attachment import attached_to
from ..quantizers.registry import Rule
from .contents import PackedContents
from .tensor import PackedTensor


@dataclass(frozen=True)
class Learned:
    """An entry of the model's state_dict that a quantizer learns: for which weight of the file, by which rule.

    ``quantizer`` is None where the entry was told by its name alone.
    """

    weight: str
    rule: Rule
    quantizer: Any = None


def learned_entries(
    model: nn.Module, targets: Mapping[str, Any], contents: PackedContents, rule: Rule
) -> dict[str, Learned]:
    """The model's logits and scales, by name, with the packed weight of the file that each belongs to.

    Args:
        targets: the model's state_dict.
        rule: of the file, for logits that no attached quantizer owns.
    """
    owned: dict[Hashable, tuple[Any, Hashable]] = {}
    for quantizer in attached_to(model, with_parts=True):
        for weight in quantizer.weights:
            if weight.learned is not None:
                owned[memory_key(weight.learned)] = quantizer, memory_key(weight.parameter)
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
        own = quantizer.rule()
        pairs = [(each, _packed(contents, each)) for each in names.get(weight_key, [])]
        candidates = [each for each, packed in pairs if packed is not None and own.belongs_to(packed)]
        likely = name.removesuffix(own.suffix)
        weight = likely if likely in candidates else next(iter(candidates), None)
        if weight is not None:
            found[name] = Learned(contents.ties.get(weight, weight), own, quantizer)
    return found


def unlike_the_file(
    model: nn.Module, targets: Mapping[str, Any], contents: PackedContents, strict: bool
) -> Iterator[str]:
    """Say which weights an attached quantizer would not give as the file has them, whatever it learns."""
    quantizers = attached_to(model, with_parts=True)
    owners = {memory_key(weight.parameter): quantizer for quantizer in quantizers for weight in quantizer.weights}
    for name, target in targets.items():
        quantizer = owners.get(memory_key(target)) if isinstance(target, Tensor) and name in contents else None
        if quantizer is None:
            continue
        who, packed = type(quantizer).__name__, _packed(contents, name)
        if packed is None:
            if strict and quantizer.rule() is None:
                yield f"{name}: this {who} quantises it, but in the file it is not quantised"
        elif packed.count:
            misfit = quantizer.misfit(packed)
            if misfit:
                has, expected = misfit
                stated = contents.quantizer["class"]
                yield f"{name}: the file ({stated}) has {has or _described(packed)}, this {who} {expected}"


def _described(packed: PackedTensor) -> str:
    """A packed weight's widths, or its levels."""
    if packed.level_count:
        return f"{packed.level_count} levels"
    widths = packed.widths.unique().tolist()
    described = f"{widths[0]} bits" if len(widths) == 1 else f"groups of {widths[0]} to {widths[-1]} bits"
    return described + " and a scale" if packed.range_scope == "scale" else described


def _packed(contents: PackedContents, name: str) -> PackedTensor | None:
    return contents.packed.get(contents.ties.get(name, name))


def _weight_by_name(name: str, contents: PackedContents, suffix: str) -> str | None:
    weight = contents.ties.get(name.removesuffix(suffix), name.removesuffix(suffix))
    return weight if name.endswith(suffix) and weight in contents.packed else None
