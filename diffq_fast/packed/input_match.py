"""Whether the inputs that a packed file rounds fit a model, and what the model's quantizer takes over."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..files.safetensors_reader import escaped
from ..quantizers.input_quantizer import InputQuantizer, input_quantizers
from ..quantizers.stored_input import StoredInput


def stored_for(
    model: nn.Module, stored: Mapping[str, StoredInput], path: str, *, asked: bool, strict: bool
) -> list[tuple[InputQuantizer, StoredInput]]:
    """What each input quantizer on the model takes over from the file.

    Args:
        asked: ``activations="stored"``: the file must have inputs, and the model the layers, without a quantizer.
        strict: refuse inputs that one side lacks, where both have some.

    Raises:
        ValueError: naming every input that does not fit.
    """
    attached, who = dict(input_quantizers(model)), f"load: {path}"
    if asked:
        problems = _not_as_asked(model, stored, attached)
    elif attached and stored:
        differing = sorted(attached.keys() ^ stored.keys()) if strict else []
        problems = [f"{name}: its input is rounded {_side(name in stored)} only" for name in differing]
        both = [name for name in attached if name in stored]
        misfits = {name: attached[name].problem(stored[name]) for name in both}
        problems += [f"the input of {name} {problem}" for name, problem in misfits.items() if problem is not None]
    else:
        return []
    if problems:
        raise ValueError(escaped(f"{who}: the activations do not fit the model: {'; '.join(problems)}"))
    return [(attached[name], each) for name, each in stored.items() if name in attached]


def _side(in_file: bool) -> str:
    return "in the file" if in_file else "in the model"


def _not_as_asked(
    model: nn.Module, stored: Mapping[str, StoredInput], attached: Mapping[str, InputQuantizer]
) -> list[str]:
    if not stored:
        return ["the file has none; it was saved without an ActivationQuantizer, or before a training forward"]
    if attached:
        return ["an ActivationQuantizer is on the model, which takes over the file's: leave activations= out"]
    names = {name for name, _ in model.named_modules()}
    return [f"the model has no layer {name!r}" for name in stored if name not in names]
