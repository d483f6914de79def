"""Save a quantised model to a packed file, and load one: from packed files to torch modules and back."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, overload

from torch import Tensor, nn

from .. import functional
from ..files.safetensors_reader import Progress
from ..files.tensor_bytes import tied_names
from ..quantizers.activations import ActivationQuantizer
from ..quantizers.shards import on_first
from ..reference.packed_rows import ACTIVATIONS
from ..runtime.fill import packed_weights, put_packed
from ..runtime.weight import PackedWeight
from .coding import CODINGS, CodedTensor, code_exported
from .contents import PackedContents, read_packed, write_packed
from .fill import fill
from .input_match import stored_for
from .layout import STEPS, learned_suffix
from .matching import Match, learned_values, match_model
from .report import inspect
from .tensor import PackedTensor, pack_exported

STORED = "stored"  # inputs are rounded as the file says

__all__ = ["inspect", "load", "read_packed", "save", "write_packed"]


def save(
    quantizer: Any,
    path: str | os.PathLike[str],
    *,
    logits: bool = False,
    coding: str = "fixed",
    progress: Progress | None = None,
) -> None:
    """Write the quantizer's model to a packed file (docs/packed_format.md), all or nothing.

    Quantised weights are packed at their present widths; every other entry of the state dict (parameters and
    persistent buffers) is kept as it is, under its own name. Where the model is sharded, every process calls this; the
    weights are gathered one after the other, and the first process of the mesh writes (docs/distributed.md).

    Args:
        quantizer: a quantizer of this package, attached to its model.
        path: a safetensors file, replaced atomically.
        logits: keep the logits too, so that training can go on exactly where it was. Learned ranges are in any file.
        coding: "fixed" gives every level the width of its group, and a file of version 1, of the size that
            ``true_model_size()`` states. "coded" codes the levels of all weights by how frequent they are, which a
            reader of version 1 refuses; "auto" those that get smaller by it. Weights with steps are always coded.
        progress: called as progress(tensor name, bytes done, bytes in all).

    Raises:
        ValueError: a NaN or infinite weight, named. TypeError: an entry that no safetensors file can hold.
    """
    contents = packed_contents(quantizer, logits=logits, coding=coding)
    write = partial(write_packed, path, contents, progress)
    mesh = quantizer.selection.mesh
    write() if mesh is None else on_first(mesh, write)


def packed_contents(quantizer: Any, *, logits: bool = False, coding: str = "fixed") -> PackedContents:
    """What :func:`save` writes, in memory."""
    exported = quantizer.export_model(learned=logits)
    info = exported.quantizer
    if exported.suffix is not None and learned_suffix(info) != exported.suffix:
        info["arguments"]["suffix"] = exported.suffix
    if coding not in CODINGS:
        raise ValueError(f"save: coding must be one of {', '.join(map(repr, CODINGS))}, got {coding!r}")
    packed: dict[str, PackedTensor | CodedTensor] = {}
    aliases: dict[str, str] = {}
    for weight in exported.weights:  # packed as soon as it is there: a sharded one is gathered for it
        plain_levels = coding == "fixed" and weight.range_scope != STEPS
        packed |= pack_exported([weight]) if plain_levels else code_exported([weight], coding)
        aliases |= dict.fromkeys(weight.aliases, weight.name)
    ties = tied_names(exported.plain)
    plain = {name: tensor for name, tensor in exported.plain.items() if name not in ties}
    half = {ties.get(name, name) for name in exported.half}
    return PackedContents(
        packed=packed,
        plain=plain,
        ties=aliases | ties,
        half={name: plain[name].dtype for name in half},
        buffers=exported.buffers & plain.keys(),
        quantizer=info,
        activations=exported.inputs,
    )


@overload
def load(path: str | os.PathLike[str], model: None = None, *, strict: bool = True) -> dict[str, Tensor]: ...
@overload
def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    strict: bool = True,
    packed: bool = False,
    activations: str = "float",
) -> nn.Module: ...
def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    strict: bool = True,
    packed: bool = False,
    activations: str = "float",
) -> dict[str, Tensor] | nn.Module:
    """Load a packed file.

    Args:
        path: a packed file; all of it is verified before anything is decoded.
        model: a plain module, or one with a quantizer attached. Its own ``load_state_dict`` fills its tensors,
            which keep their dtype and device. Logits come from the file, or, where the file has none or the
            quantizer has other arguments, are set to what gives the file's widths again. A model without a
            quantizer passes over the file's logits.
        strict: refuse a model that lacks an entry of the file or has one that the file lacks. An entry of another
            shape is refused in any case.
        packed: keep quantised weights packed in memory, in layers that take their place (docs/runtime.md). For a model
            that is not trained, without a quantizer.
        activations: "float": layers see their inputs as they are, but where an ActivationQuantizer is on the model,
            which takes over the file's ranges and bits. "stored": one is attached that rounds as the file says
            (docs/activations.md). With ``packed`` also "int8": linear layers round what they are given to eight bits,
            64 columns with one scale, which is faster.

    Returns:
        the model; without one, the state dict (float tensors under every name, tied names share one tensor).

    Raises:
        PackedFileError: the file is damaged, naming the tensor.
        ValueError: the file does not fit the model, naming every entry, or its quantizer would not give the file's
            weights again. The model is then unchanged.
    """
    _check_arguments(model, packed, activations)
    loaded = _loaded(path, model, strict, packed, activations)
    if packed:  # who loads packed weights wants the memory that decoding took, and the parameters' own
        functional.empty_cache()
    return loaded


def _loaded(
    path: str | os.PathLike[str], model: nn.Module | None, strict: bool, packed: bool, activations: str
) -> dict[str, Tensor] | nn.Module:
    """Nothing of the parameters that packed weights take the place of is held behind this."""
    contents = read_packed(path)
    if model is None:
        return contents.state_dict()
    match = match_model(model, contents)
    _refuse_packed_layers(model, match)
    if packed and match.quantizers:
        who = type(match.quantizers[0]).__name__
        raise ValueError(f"load: packed=True is for a model without a quantizer, found a {who}; detach() it first")
    targets, entries = match.targets, match.entries
    values = learned_values(match, strict)
    asked = activations == STORED
    inputs = []
    if asked or contents.activations:
        inputs = stored_for(model, contents.activations, contents.path, asked=asked, strict=strict)
    weights = {name: entries[name].stored_name for name in targets if name in entries}
    weights = {name: stored for name, stored in weights.items() if stored in contents.packed}
    kept = packed_weights(model, contents, match.keys, weights, "float" if asked else activations) if packed else {}
    filled = [name for name in targets if name in entries and name not in values and name not in kept]
    devices = {name: targets[name].device for name in filled}
    fill(model, values | contents.tensors(devices), targets, weights.keys() - kept.keys(), f"load: {contents.path}")
    if kept:
        put_packed(model, kept)
    for quantizer, stored in inputs:
        quantizer.take(stored)
    if asked:
        ActivationQuantizer.stored(model, contents.activations)
    return model


def _check_arguments(model: Any, packed: bool, activations: str) -> None:
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"load: expected a torch.nn.Module, got {type(model).__name__}; a quantizer has it as .model")
    if packed and model is None:
        raise TypeError("load: packed=True keeps weights packed in the layers of a model; give one")
    check_activations("load", activations, packed, (STORED,))
    if activations == STORED and model is None:
        raise TypeError("load: activations='stored' rounds the inputs of a model's layers; give one")


def check_activations(who: str, activations: str, packed: bool, further: tuple[str, ...] = ()) -> None:
    """ValueError for activations that are none, or that weights which are not kept packed do not round.

    ``further``: others that are known, and need no packed weights.
    """
    known = (*ACTIVATIONS, *further)
    if activations not in known:
        raise ValueError(f"{who}: activations must be one of {', '.join(map(repr, known))}, got {activations!r}")
    if activations not in ("float", *further) and not packed:
        raise ValueError(
            f"{who}: activations={activations!r} is for layers that keep their weights packed: packed=True"
        )


def _refuse_packed_layers(model: nn.Module, match: Match) -> None:
    """A weight that is packed already takes no other; with strict=False it would be passed over in silence."""
    found = sorted(_packed_names(model) & match.entries.keys())
    if found:
        named = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ValueError(
            f"load: {match.contents.path}: the model keeps {len(found)} of the file's weights packed already "
            f"({named}); load into a new model"
        )


def _packed_names(model: nn.Module) -> set[str]:
    """Names that weights of the model had in its state_dict before they were packed."""
    names = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedWeight):
            prefix, _, own = name.rpartition(".")
            parameter = own.removeprefix("packed_")
            names.add(f"{prefix}.{parameter}" if prefix else parameter)
    return names
