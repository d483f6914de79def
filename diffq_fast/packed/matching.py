"""Whether a packed file fits a model: its names and shapes, and what an attached quantizer learns and makes of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..files.safetensors_reader import escaped, file_error
from ..files.tensor_bytes import memory_key, memory_keys
from ..quantizers.attachment import attached_to
from ..quantizers.input_quantizer import InputQuantizer, without_inputs
from ..quantizers.registry import Rule, scheme_named
from ..reference.level_code import CodeError
from ..reference.logit_rule import LogitRule
from .coding import CodedTensor
from .contents import Entry, PackedContents
from .fill import misfits
from .header import compact_json
from .layout import learned_suffix
from .tensor import PackedTensor

RANGES_OF_WEIGHTS = ("tensor", "group")
REACHED = 1e-5  # of a range's larger end: what rounding may be off


@dataclass(frozen=True)
class Learned:
    """An entry of the model's state_dict that a quantizer learns: for which weight of the file, by which rule.

    ``quantizer`` is None where the entry was told by its name alone. ``stored``: the name under which the file may have
    it; "": under none.
    """

    weight: str
    rule: Rule
    stored: str
    quantizer: Any = None


@dataclass(frozen=True)
class Match:
    """A model beside a packed file.

    targets: the model's state_dict. keys: the memory of its tensors, by name. entries: the file's, by name. rule: the
    file's, for what is learned. quantizers: those attached to the model or to a part of it.
    """

    targets: Mapping[str, Any]
    keys: Mapping[str, Hashable]
    contents: PackedContents
    entries: Mapping[str, Entry]
    rule: Rule
    quantizers: Sequence[Any]

    def packed(self, name: str) -> PackedTensor | CodedTensor | None:
        """The weight that the file has under a name, tied names too."""
        entry = self.entries.get(name)
        return None if entry is None else self.contents.packed.get(entry.stored_name)


def match_model(model: nn.Module, contents: PackedContents) -> Match:
    """The model beside the file. Raises PackedFileError where the file states an impossible rule."""
    rule, targets = read_rule(contents.path, contents.quantizer), model.state_dict()
    if InputQuantizer in map(type, model.modules()):
        targets = without_inputs(model, targets)
    entries, keys = contents.entries(), memory_keys(targets)
    return Match(targets, keys, contents, entries, rule, attached_to(model, with_parts=True))


def learned_values(match: Match, strict: bool) -> dict[str, Tensor]:
    """What the model's quantizers will have learned once the file is loaded, by name in the state_dict.

    Args:
        strict: refuse a model that lacks an entry of the file or has one that the file lacks.

    Raises:
        ValueError: the file does not fit the model, naming every entry, or its quantizer would not give the file's
            weights again.
    """
    contents, learned = match.contents, _learned_entries(match)
    values: dict[str, Tensor] = {}
    problems = _misfits(match, learned, strict)
    if not problems:
        values, unreachable = _values(match, learned)
        problems = [*_unlike_the_file(match, strict), *unreachable]
        if problems:
            stated = compact_json(contents.quantizer)
            problems.append(f"attach one with the arguments of the file ({stated}), or load first and attach then")
    if problems:
        lead = f"load: {contents.path}{_of_another(match)} does not fit the model"
        raise ValueError(escaped(f"{lead}: {'; '.join(problems)}"))
    return values


def _of_another(match: Match) -> str:
    """Whose the file is, where quantizers are attached but none of that class."""
    stated, attached = match.contents.quantizer["class"], sorted({type(each).__name__ for each in match.quantizers})
    if not attached or stated in attached or scheme_named(stated) is None:
        return ""
    return f", a file of {stated} for a model with {', '.join(attached)},"


def read_rule(path: str, quantizer: Mapping[str, Any]) -> Rule:
    """The rule by which what is learned for a weight and its widths belong together, as the file states it.

    What it does not state is the default. Raises PackedFileError where it is impossible.
    """
    scheme = scheme_named(quantizer["class"])
    make = LogitRule.from_arguments if scheme is None or scheme.rule is None else scheme.rule
    rule = make({**quantizer["arguments"], "suffix": learned_suffix(quantizer)})
    problem = rule.problem()
    if problem is not None:
        raise file_error(path, "quantizer", problem)
    return rule


# -- names, shapes and ties --------------------------------------------------------------------------------------------


def _misfits(match: Match, learned: Mapping[str, Learned], strict: bool) -> list[str]:
    """One text for every entry of the model and of the file that does not fit."""
    differing = _differing_names(match, learned) if strict else []
    both = {name: target for name, target in match.targets.items() if name in match.entries and name not in learned}
    plain, problems = misfits(both, match.entries), list(differing)
    for name, target in match.targets.items():
        problem = _learned_misfit(match, target, learned[name]) if name in learned else plain.get(name)
        problems += [f"{name}: {problem}"] if problem else []
    hint = ["strict=False skips missing and additional names"] if differing else []
    return problems + _tie_conflicts(match) + hint


def _differing_names(match: Match, learned: Mapping[str, Learned]) -> list[str]:
    """The names that only the model has, and those that only the file has."""
    entries, packed, suffix = match.entries, match.contents.packed, match.rule.suffix
    missing = [name for name in match.targets if name not in entries and name not in learned]
    weights = {name for name, entry in entries.items() if entry.stored_name in packed}
    spare = {name for name in entries if name.endswith(suffix) and name.removesuffix(suffix) in weights}
    unexpected = [name for name in entries if name not in match.targets and name not in spare]
    problems = [f"missing in the file: {', '.join(missing)}"] if missing else []
    return problems + ([f"not in the model: {', '.join(unexpected)}"] if unexpected else [])


def _tie_conflicts(match: Match) -> list[str]:
    """Names that are one tensor in the model but hold different values in the file."""
    problems = []
    first: dict[Hashable, str] = {}
    for alias, key in match.keys.items():
        if alias not in match.entries:
            continue
        name = first.setdefault(key, alias)
        one, another = match.entries[alias], match.entries[name]
        if one.stored_name != another.stored_name:
            tensor = match.contents.tensor
            if one.shape != another.shape or not torch.equal(tensor(one.stored_name), tensor(another.stored_name)):
                problems.append(f"{alias}: is tied to {name} in the model, but the file has different values for them")
    return problems


# -- what a quantizer learns -------------------------------------------------------------------------------------------


def _learned_entries(match: Match) -> dict[str, Learned]:
    """The model's logits and scales, by name, with the packed weight of the file that each belongs to."""
    owned: dict[Hashable, tuple[Any, Rule | None, Hashable]] = {}
    for quantizer in match.quantizers:
        for weight in quantizer.weights:
            if weight.learned is not None:
                owned[memory_key(weight.learned)] = quantizer, None, memory_key(weight.parameter)
            if quantizer.range_rule is not None:
                owned[memory_key(weight.ends)] = quantizer, quantizer.range_rule, memory_key(weight.parameter)
    names: dict[Hashable, list[str]] = {}
    for name, key in match.keys.items():
        names.setdefault(key, []).append(name)
    learned = {}
    for name in match.targets:
        quantizer, ranges, weight_key = owned.get(match.keys.get(name), (None, None, None))
        if quantizer is None:
            weight = _stored_weight(match, name.removesuffix(match.rule.suffix))
            if weight is not None and name.endswith(match.rule.suffix) and name not in match.entries:
                learned[name] = Learned(weight, match.rule, weight + match.rule.suffix)
            continue
        own = ranges or quantizer.rule()
        candidates = [each for each in names.get(weight_key, []) if _belongs(own, match.packed(each))]
        likely = name.removesuffix(own.suffix)
        if candidates:
            weight = match.entries[likely if likely in candidates else candidates[0]].stored_name
            learned[name] = Learned(weight, own, "" if ranges else weight + match.rule.suffix, quantizer)
    return learned


def _stored_weight(match: Match, name: str) -> str | None:
    """The name under which the file has the packed weight `name`, which may be tied; None for any other name."""
    entry = match.entries.get(name)
    return entry.stored_name if entry is not None and entry.stored_name in match.contents.packed else None


def _belongs(rule: Rule, packed: PackedTensor | CodedTensor | None) -> bool:
    return packed is not None and rule.belongs_to(packed)


def _learned_misfit(match: Match, target: Any, entry: Learned) -> str | None:
    """Why the weight's logits or scale cannot be the model's."""
    packed, stored = match.contents.packed[entry.weight], match.entries.get(entry.stored)
    shape = entry.rule.shape(packed)
    if tuple(target.shape) != shape:
        return entry.rule.misfit(packed, list(target.shape))
    if stored is not None and stored.shape != shape:
        return f"expected {math.prod(shape)} {entry.rule.noun}, the file has {list(stored.shape)}"
    return None


def _values(match: Match, learned: Mapping[str, Learned]) -> tuple[dict[str, Tensor], list[str]]:
    """Logits and scales by name, and what is wrong where the widths of the file are out of reach."""
    values, problems = {}, []
    for name, entry in learned.items():
        differing = entry.rule.differing(match.rule)
        if entry.stored in match.entries and not differing:
            values[name] = match.contents.tensor(entry.stored)
        else:
            packed = match.contents.packed[entry.weight]
            values[name] = entry.rule.learned(packed)
            changed = entry.rule.changed(packed, values[name])
            problem = f"{name}: {changed} of {len(packed.widths)} groups have widths that "
            problems += _out_of_reach(problem, entry, differing, match.contents) if changed else []
    return values, problems


def _out_of_reach(problem: str, entry: Learned, differing: Mapping[str, Any], contents: PackedContents) -> list[str]:
    """The problem, where other arguments would give the widths; a warning, where none would."""
    if differing and contents.quantizer["class"] != "none":
        given = ", ".join(f"{argument}={value}" for argument, value in differing.items())
        return [f"{problem}{type(entry.quantizer).__name__} with {given} cannot give"]
    text = escaped(f"load: {contents.path}: {problem}{entry.rule.reach} cannot give; their logits come near")
    warnings.warn(text, stacklevel=5)
    return []


# -- what a quantizer makes of the weights -----------------------------------------------------------------------------


def _unlike_the_file(match: Match, strict: bool) -> Iterator[str]:
    """Say which weights an attached quantizer would not give as the file has them, whatever it learns."""
    owners = {memory_key(each.parameter): quantizer for quantizer in match.quantizers for each in quantizer.weights}
    for name, key in match.keys.items():
        quantizer = owners.get(key) if name in match.entries else None
        if quantizer is None:
            continue
        who, packed = type(quantizer).__name__, match.packed(name)
        if packed is None:
            if strict and quantizer.rule() is None:
                yield f"{name}: this {who} quantises it, but in the file it is not quantised"
        elif packed.count:
            stated = match.contents.quantizer["class"]
            misfit = quantizer.misfit(packed)
            if misfit is None and stated != who and quantizer.range_rule is None:
                # what a quantizer saves has its weights' ranges, and is not decoded twice
                misfit = _unreached(packed)
            if misfit:
                has, expected = misfit
                yield f"{name}: the file ({stated}) has {has or _described(packed)}, this {who} {expected}"


def _unreached(packed: PackedTensor | CodedTensor) -> tuple[str, str] | None:
    """Ranges that no quantizer would make again, as it takes them from the weights: short ones may lie further out."""
    if packed.range_scope not in RANGES_OF_WEIGHTS:
        return None
    try:
        weight = packed.unpack(torch.float32)
    except CodeError:
        return None  # whoever decodes it for the model names the file
    size, scope = packed.group_size, packed.range_scope
    found = functional.weight_range([weight], group_size=size, range_scope=scope)
    expected = packed.ranges.reshape(-1, 2)
    if bool(((found - expected).abs() <= REACHED * expected.abs().amax(1, keepdim=True)).all()):
        return None
    return "ranges that its weights do not reach", "takes its ranges from the weights"


def _described(packed: PackedTensor | CodedTensor) -> str:
    """A packed weight's widths, or its levels."""
    if packed.level_count:
        return f"{packed.level_count} levels"
    widths = packed.widths.unique().tolist()
    described = f"{widths[0]} bits" if len(widths) == 1 else f"groups of {widths[0]} to {widths[-1]} bits"
    return described + " and a scale" if packed.range_scope == "scale" else described
