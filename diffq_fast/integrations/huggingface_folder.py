"""The packed folder of a transformers model: what it holds, and how it is written."""

from __future__ import annotations

import json
import os
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..files.tensor_bytes import tied_names
from ..packed.activations import renamed_inputs
from ..packed.coding import CodedTensor
from ..packed.contents import PackedContents, write_packed
from ..packed.save_load import packed_contents
from ..packed.tensor import PackedTensor
from ..quantizers.base import BaseQuantizer
from ..quantizers.input_quantizer import export_inputs, without_inputs
from ..runtime.weight import PackedWeight

WEIGHTS = "model.safetensors"
Contents = Callable[[], PackedContents]


# -- what a folder holds -----------------------------------------------------------------------------------------------


def of_quantizer(quantizer: BaseQuantizer, model: nn.Module, coding: str) -> Contents:
    """What a folder of ``model``, the quantizer's or a part of it, holds: read when it is written."""

    def contents() -> PackedContents:
        prefix = next((name for name, module in quantizer.model.named_modules() if module is model), None)
        if prefix is None:
            raise RuntimeError(
                f"save_pretrained: the {type(model).__name__} is no longer a part of the model of its "
                f"{type(quantizer).__name__}; call pack_on_save again"
            )
        whole = packed_contents(quantizer, coding=coding)
        return renamed(whole, lambda name: _without(name, prefix))

    return contents


def _without(name: str, prefix: str) -> str | None:
    """The name inside of the module ``prefix``; None for what is outside."""
    if not prefix:
        return name
    return name.removeprefix(prefix + ".") if name.startswith(prefix + ".") else None


def renamed(contents: PackedContents, rename: Callable[[str], str | None]) -> PackedContents:
    """The contents under other names, without those for which there is None."""
    names = {name: rename(name) for name in contents.entries()}
    packed = {new: weight for name, weight in contents.packed.items() if (new := names[name]) is not None}
    plain = {new: tensor for name, tensor in contents.plain.items() if (new := names[name]) is not None}
    ties: dict[str, str] = {}
    lost: dict[str, str] = {}  # a stored name that is left out -> the alias that stands for it
    for alias, stored in contents.ties.items():
        new, new_stored = names[alias], names[stored]
        if new is None:
            continue
        if new_stored is not None:
            ties[new] = new_stored
        elif stored in lost:
            ties[new] = lost[stored]
        else:
            lost[stored] = new
            if stored in contents.packed:
                packed[new] = contents.packed[stored]
            else:
                plain[new] = contents.plain[stored]
    stood_in = {new: stored for stored, new in lost.items()}
    origin = {new: name for name, new in names.items() if new is not None} | stood_in
    half = {new: contents.half[origin[new]] for new in plain if origin[new] in contents.half}
    buffers = {new for new in plain if origin[new] in contents.buffers}
    inputs = renamed_inputs(contents.activations, rename)
    return replace(contents, packed=packed, plain=plain, ties=ties, half=half, buffers=buffers, activations=inputs)


def of_files(model: PreTrainedModel, loaded: PackedContents, stored_names: Mapping[str, str]) -> Contents:
    """What a folder of a model holds that was loaded from packed files, and perhaps trained since.

    Weights that are as they were loaded stay packed; others are kept as they are.

    Args:
        loaded: the packed weights of the files.
        stored_names: the name in the files of each such weight, by its name in the model.
    """

    def contents() -> PackedContents:
        state = without_inputs(model, model.state_dict())
        inside = {
            f"{name}.{part}"
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, PackedWeight)
            for part, _ in module.named_buffers()
        }
        packed: dict[str, PackedTensor | CodedTensor] = {}
        ties: dict[str, str] = {}
        first: dict[str, str] = {}
        changed = []
        for name, stored in stored_names.items():
            if name in state and not _is_as_loaded(state[name], loaded, stored):
                changed.append(name)
            elif stored in first:
                ties[name] = first[stored]
            else:
                first[stored] = name
                packed[name] = loaded.packed[stored]
        if changed:
            warnings.warn(
                f"save_pretrained: {len(changed)} of {len(stored_names)} quantised weights have changed since they "
                f"were loaded ({', '.join(changed[:3])} …) and are saved as they are; a quantizer, with pack_on_save, "
                "quantises them",
                stacklevel=4,
            )
        left_out = inside | packed.keys() | ties.keys()
        rest = {name: tensor.detach() for name, tensor in state.items() if name not in left_out}
        tied = tied_names(rest)
        plain = {name: tensor for name, tensor in rest.items() if name not in tied}
        buffers = {name for name, _ in model.named_buffers() if name in plain}
        half = {name: loaded.half[name] for name in plain.keys() & loaded.half.keys() if _fits_half(plain[name])}
        inputs = export_inputs(model, learned=False) or loaded.activations
        return replace(
            loaded, packed=packed, plain=plain, ties=ties | tied, buffers=buffers, half=half, activations=inputs
        )

    return contents


def _is_as_loaded(value: Tensor, loaded: PackedContents, stored: str) -> bool:
    expected = loaded.tensor(stored, value.device).to(value.dtype)
    return expected.shape == value.shape and torch.equal(expected, value)


def _fits_half(tensor: Tensor) -> bool:
    return torch.equal(tensor.half().to(tensor.dtype), tensor)


# -- saving ------------------------------------------------------------------------------------------------------------


def hook_saving(model: PreTrainedModel) -> None:
    """Have ``model.save_pretrained``, which ``push_to_hub`` calls too, write a packed folder.

    A method of the instance: transformers writes what its hook for quantizers gives with its own writer, which sets the
    file's format to "pt" and leaves no place for a header with a checksum.
    """
    model.__dict__["save_pretrained"] = types.MethodType(_save_pretrained, model)


def unhook_saving(model: PreTrainedModel) -> None:
    """Have it write what transformers writes."""
    model.__dict__.pop("save_pretrained", None)


def _save_pretrained(
    model: PreTrainedModel, save_directory: str | os.PathLike[str], is_main_process: bool = True, **options: Any
) -> None:
    """``PreTrainedModel.save_pretrained`` with a packed ``model.safetensors``, or several and their index.

    Its arguments; ``state_dict`` is passed over, since the file holds what the model has.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        type(model).save_pretrained(model, save_directory, is_main_process=is_main_process, **options)
        return  # adapters alone
    options.pop("state_dict", None)
    push = options.pop("push_to_hub", False)
    size, variant = options.pop("max_shard_size", "50GB"), options.pop("variant", None)
    hub = {name: options.pop(name) for name in ("repo_id", "commit_message", "create_pr", "private") if name in options}
    contents = model.hf_quantizer.saved_contents()  # first: what cannot be saved leaves the folder as it was
    with model.hf_quantizer.saving():  # configurations, and a file without tensors, whose place ours takes
        type(model).save_pretrained(model, save_directory, is_main_process=is_main_process, **options)
    if is_main_process:
        write_files(Path(save_directory), contents, size, variant)
    if push and is_main_process:
        hub.setdefault("repo_id", Path(save_directory).name)
        model.push_to_hub(max_shard_size=size, token=options.get("token"), **hub)


def write_adapted_base(quantizer: BaseQuantizer, model: Any, folder: Path, config: Any) -> None:
    """The model inside of PEFT's as a packed folder, and its adapters as PEFT writes them in ``folder/adapter``.

    The quantizer is on PEFT's model; what PEFT has put around its layers is not in the packed folder.
    """
    base = model.get_base_model()
    prefix = next(name for name, module in quantizer.model.named_modules() if module is base)
    adapters = {name for name, _ in base.named_parameters() if model.prefix in name}

    def rename(name: str) -> str | None:
        inner = _without(name, prefix)
        return None if inner is None or inner in adapters else inner.replace(".base_layer.", ".")

    contents = renamed(packed_contents(quantizer, coding=config.coding), rename)
    folder.mkdir(parents=True, exist_ok=True)
    base.config.architectures = [type(base).__name__]
    stated = {**base.config.to_dict(), "quantization_config": config.to_dict()}
    type(base.config).from_dict(stated).save_pretrained(folder)
    write_files(folder, contents, "50GB")
    model.save_pretrained(folder / "adapter")


def write_files(folder: Path, contents: PackedContents, max_shard_size: int | str, variant: str | None = None) -> None:
    """Write the contents as one packed file, or as several of about this size and the index of their tensors."""
    stem = WEIGHTS if variant is None else f"model.{variant}.safetensors"
    values: dict[str, Any] = {**contents.packed, **contents.plain}
    split = split_state_dict_into_shards_factory(
        values,
        get_storage_size=lambda value: _bytes(value),
        filename_pattern=stem.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=max_shard_size,
    )
    index = folder / f"{stem}.index.json"
    index.unlink(missing_ok=True)
    if not split.is_sharded:
        write_packed(folder / stem, contents)
        return
    (folder / stem).unlink(missing_ok=True)
    places: dict[str, str] = {}
    for file, names in split.filename_to_tensors.items():
        shard = _part(contents, names)
        write_packed(folder / file, shard)
        places |= {tensor: file for name in names for tensor in _tensors(shard, name)}
    text = json.dumps({"metadata": dict(split.metadata), "weight_map": places}, indent=2, sort_keys=True)
    index.write_text(text + "\n", encoding="utf-8")


def _part(contents: PackedContents, names: Collection[str]) -> PackedContents:
    chosen = set(names)
    return replace(
        contents,
        packed={name: each for name, each in contents.packed.items() if name in chosen},
        plain={name: each for name, each in contents.plain.items() if name in chosen},
        ties={alias: name for alias, name in contents.ties.items() if name in chosen},
        half={name: each for name, each in contents.half.items() if name in chosen},
        buffers=set(contents.buffers) & chosen,
        activations=renamed_inputs(contents.activations, lambda name: name if name in chosen else None),
    )


def _tensors(contents: PackedContents, name: str) -> Iterator[str]:
    """The tensors of a file for one entry."""
    weight = contents.packed.get(name)
    if weight is None:
        yield name
        return
    yield name + (".coded" if isinstance(weight, CodedTensor) else ".words")
    yield name + ".widths"
    yield name + ".range"


def _bytes(value: Any) -> int:
    """About what an entry takes in a file."""
    if isinstance(value, PackedTensor):
        return sum(value.size.values()) // 8
    return int(value.nbytes)
