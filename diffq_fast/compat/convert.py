"""A stored state of diffq or a Demucs package becomes a packed file, level for level.

The four kinds of diffq_fast.legacy.state are read without running anything that they name. diffq stores neither names
nor buffers, and in its packed form not even shapes; whatever cannot be carried over is said.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..files.atomic_file import check_output
from ..files.budget import Budget
from ..files.safetensors_reader import FileError, open_file, read_header
from ..files.tensor_bytes import memory_key
from ..legacy.fields import describe
from ..legacy.state import LegacyPackage, LegacyState, load_legacy
from ..packed.contents import PackedContents, write_packed
from ..packed.header import FORMAT
from ..packed.tensor import PackedTensor, pack_levels
from ..quantizers.registry import Scheme, scheme_of, schemes


@dataclass
class Conversion:
    """What a packed file is to hold, and what of the old file it cannot hold.

    half: names kept in float16. lost: one sentence for each thing that is not carried over. stored: the memory of the
    plain tensors, and the first name of each.
    """

    quantizer: str
    arguments: dict[str, Any]
    packed: dict[str, PackedTensor] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    half: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    stored: dict[Hashable, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lost += [
            f"the quantizer's argument {name}" for name, value in self.arguments.items() if not _is_json(value)
        ]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the packed file; arguments that JSON cannot hold are left out."""
        stated = {name: value for name, value in self.arguments.items() if _is_json(value)}
        info = {"class": self.quantizer, "arguments": stated}
        half = {name: self.plain[name].dtype for name in self.half}
        write_packed(path, PackedContents(self.packed, self.plain, self.ties, half, quantizer=info))


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model: Any = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    max_bytes: int | None = None,
) -> Conversion:
    """Write what ``source`` holds as a packed file ``target``; the values are those that diffq restores, bit for bit.

    Args:
        source: a file of one of the kinds (a) to (d) of :mod:`diffq_fast.legacy.state`.
        target: the packed file, replaced atomically.
        model: a callable that builds the model, with the arguments that a Demucs package states; it gives names,
            shapes and ties. Without it, weights are called ``quantized.0`` and so on, by position.
        arguments: of the quantizer that wrote the file, where the file does not state them.
        max_bytes: how much its tensors may take, compressed ones decompressed and each counted once; ten times the file
            and 64 MiB when left out.

    Raises:
        ValueError: the file is none of these, needs the model, does not fit it, or holds more than `max_bytes`.
    """
    check_output("convert", target, source)
    _refuse_packed(os.fspath(source))
    found = load_legacy(source, max_bytes=max_bytes)
    budget = Budget(os.fspath(source), os.path.getsize(source), max_bytes)
    package = found if isinstance(found, LegacyPackage) else None
    state = found.state if isinstance(found, LegacyPackage) else found
    built = _build(model, package) if model is not None else None
    if isinstance(state, LegacyState):
        conversion = _convert_state(state, built, dict(arguments or {}), budget)
    else:
        conversion = _convert_plain(state, budget)
    if package:
        conversion.lost.append(f"how to build the model ({package.klass}, its arguments)")
        conversion.lost += ["the training arguments"] if package.training_args is not None else []
    conversion.write(target)
    return conversion


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _refuse_packed(path: str) -> None:
    with open_file(path) as file, suppress(FileError):
        if read_header(file, path).metadata.get("format") != FORMAT:
            return
        raise ValueError(f"convert: {path} is a packed file of diffq_fast already; nothing is left to convert")


def _build(model: Any, package: LegacyPackage | None) -> nn.Module:
    try:
        built = model(*package.args, **package.kwargs) if package else model()
    except (Exception, SystemExit) as error:
        raise ValueError(f"convert: the model could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"convert: the model must be a torch.nn.Module, got {type(built).__name__}")
    return built


def _convert_plain(state: Mapping[str, Any], budget: Budget) -> Conversion:
    """A package that is not quantised: tensors by name."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    conversion = Conversion("none", {})
    for name, value in tensors.items():
        _take_plain(conversion, name, value, value.dtype, budget)
    conversion.lost += [f"{name}, which is no tensor" for name in state if name not in tensors]
    return conversion


def _take_plain(conversion: Conversion, name: str, value: Tensor, dtype: torch.dtype, budget: Budget) -> None:
    """A tensor under a name; one that the file has under another name already becomes a tie, and takes no memory."""
    first = conversion.stored.setdefault(memory_key(value), name)
    if first != name:
        conversion.ties[name] = first
        return
    budget.take(value.numel() * dtype.itemsize, name)
    conversion.plain[name] = value.to(dtype).contiguous()


def _convert_state(
    state: LegacyState, model: nn.Module | None, arguments: dict[str, Any], budget: Budget
) -> Conversion:
    source = budget.path
    scheme = _scheme_of(state.quantized, source) if state.klass is None else scheme_of(state.klass)
    if state.meta is None:
        arguments = scheme.inferred(state.quantized) | arguments
    _check_arguments(scheme, arguments, "the arguments given", unknown=True)
    _check_arguments(scheme, state.init_kwargs, f"{source}: meta", unknown=False)
    conversion = Conversion(scheme.name, arguments | state.init_kwargs)
    if model is None:
        _take_by_position(conversion, scheme, state, budget)
    else:
        _take_by_model(conversion, scheme, state, model)
    return conversion


def _check_arguments(scheme: Scheme, arguments: Mapping[str, Any], where: str, *, unknown: bool) -> None:
    """Each argument is of the kind that its default is; with ``unknown``, it is one that the quantizer has."""
    parameters = inspect.signature(scheme.quantizer).parameters
    for name, value in arguments.items():
        if name not in parameters or name == "model":
            if unknown:
                known = ", ".join(each for each in parameters if each != "model")
                raise ValueError(f"convert: {where}: {scheme.name} has no argument {name!r}; it has {known}")
            continue
        expected, default = None, parameters[name].default
        if isinstance(default, bool):
            expected = None if isinstance(value, bool | int) else "true or false"
        elif name == "group_size":
            expected = None if isinstance(value, int) and 0 <= value < 2**60 else "a whole number, 0 or more"
        elif isinstance(default, int | float):
            expected = None if _is_number(value) else "a number"
        elif isinstance(default, str):
            expected = None if isinstance(value, str) else "a text"
        elif not isinstance(value, str | list | tuple | set) or not all(isinstance(each, str) for each in value):
            expected = "a list of patterns"
        if expected:
            raise ValueError(f"convert: {where}: {name} of {scheme.name} must be {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A number or a short text as it is, anything else by its kind."""
    plain = isinstance(value, bool | float | None) or (isinstance(value, int) and value.bit_length() < 100)
    return repr(value[:50] if isinstance(value, str) else value) if plain or isinstance(value, str) else describe(value)


def _is_number(value: Any) -> bool:
    single = isinstance(value, Tensor) and value.numel() == 1
    return single or (isinstance(value, int | float | Fraction) and not isinstance(value, bool) and value == value)


def _scheme_of(entries: Sequence[Any], source: str) -> Scheme:
    """Of an older state without meta: told by the form of its entries; DiffQ's where there are none."""
    known = [scheme for scheme in schemes().values() if scheme.recognises is not None]
    for scheme in known:
        if not entries or (scheme.recognises is not None and scheme.recognises(entries[0])):
            return scheme
    raise ValueError(f"convert: {source}: entries of {len(entries[0])} parts are of no known quantizer")


# -- without the model -----------------------------------------------------------------------------------------------


def _take_by_position(conversion: Conversion, scheme: Scheme, state: LegacyState, budget: Budget) -> None:
    for index, entry in enumerate(state.quantized):
        levels = entry[0] if entry else None
        if state.packed or not isinstance(levels, Tensor):
            raise ValueError(
                f"convert: {budget.path}: its levels are packed, and diffq keeps no shapes with them; give the model "
                "that they belong to (--model module:callable)"
            )
        name = f"quantized.{index}"
        budget.take(levels.numel() * torch.int32.itemsize, name)
        conversion.packed[name] = _packed(conversion, scheme, entry, tuple(levels.shape), torch.float32, name)
    for kind, tensors in (("float16", state.float16), ("others", state.others)):
        for index, tensor in enumerate(tensors):
            _take_plain(conversion, f"{kind}.{index}", tensor, torch.float32, budget)
    conversion.half |= {name for name in conversion.plain if name.startswith("float16.")}
    conversion.lost.append("names (diffq stores none; --model gives them), so weights are called quantized.0 …")
    if conversion.quantizer == "DiffQuantizer" and state.quantized:
        conversion.lost.append("the shapes of the weights, which are [groups, group size] here")
    conversion.lost.append("buffers, if the model has any (diffq stores none)")


# -- with the model --------------------------------------------------------------------------------------------------


def _take_by_model(conversion: Conversion, scheme: Scheme, state: LegacyState, model: nn.Module) -> None:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = [name for name in model.state_dict() if name not in parameters]
    quantizer = scheme.quantizer(model, **conversion.arguments)
    entries, plain = quantizer.selection.originals, quantizer.selection.rest
    rest = state.float16 if quantizer.float16 else state.others
    counts = {
        "quantised parameters": (len(entries), len(state.quantized)),
        "other parameters": (len(plain), len(rest)),
    }
    for what, (expected, stored_count) in counts.items():
        if expected != stored_count:
            raise ValueError(
                f"convert: the model has {expected} {what}, the file {stored_count}; is it this model, with these "
                f"arguments of the quantizer ({json.dumps(conversion.arguments, default=str)})?"
            )
    names = quantizer.state_dict_names()
    for entry, stored in zip(entries, state.quantized, strict=True):
        param = entry.param
        conversion.packed[entry.full_name] = _packed(
            conversion, scheme, stored, tuple(param.shape), param.dtype, entry.full_name
        )
    for slot, value in zip(plain, rest, strict=True):
        if slot.param.shape != value.shape:
            found = f"the model has {list(slot.param.shape)}, the file {list(value.shape)}"
            raise ValueError(f"convert: {slot.full_name}: {found}")
        conversion.plain[slot.full_name] = value.to(slot.param.dtype)
    for slot in (*entries, *plain):
        others = [name for name in names.get(id(slot.param), []) if name != slot.full_name]
        conversion.ties |= dict.fromkeys(others, slot.full_name)
    if quantizer.float16:
        conversion.half |= {slot.full_name for slot in plain if slot.param.is_floating_point()}
    if buffers:
        conversion.lost.append("buffers, which diffq does not store: " + ", ".join(buffers))


# -- one weight ------------------------------------------------------------------------------------------------------


def _packed(
    conversion: Conversion, scheme: Scheme, entry: Any, shape: tuple[int, ...], dtype: torch.dtype, name: str
) -> PackedTensor:
    """The levels of one entry of the state, packed."""
    if scheme.decode is None:
        raise ValueError(f"convert: diffq's states do not hold the weights of a {scheme.name}")
    made = scheme.decode(entry, shape, conversion.arguments, name)
    if made.range_scope == "scale" or made.level_count is not None:
        width, options = int(made.widths[0]), {"range_scope": made.range_scope, "name": name}
        return pack_levels(made.levels, width, made.ranges, dtype=dtype, level_count=made.level_count, **options)
    words = functional.pack(made.levels, made.widths, group_size=made.group_size)
    return PackedTensor(words, made.widths, made.ranges.reshape(2), shape, dtype, made.group_size)
