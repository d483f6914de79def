"""The rounding of layers' inputs in a packed file's metadata. Standard library and numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..files.safetensors_reader import file_error, read_json
from ..quantizers.stored_input import LEAST_BITS, MOST_BITS, StoredInput

KEY = "activations"  # of the metadata
FIELDS = {"bits", "range"}
LARGEST = float(np.finfo(np.float32).max)


def activation_fields(inputs: Mapping[str, StoredInput]) -> dict[str, Any]:
    """The metadata's "activations" as JSON values."""
    return {
        name: {key: value for key, value in each._asdict().items() if value is not None}
        for name, each in inputs.items()
    }


def renamed_inputs(inputs: Mapping[str, StoredInput], rename: Callable[[str], str | None]) -> dict[str, StoredInput]:
    """The inputs of layers whose weights get other names, without those whose weight gets None."""
    names = {name: rename(f"{name}.weight" if name else "weight") for name in inputs}
    return {
        new.removesuffix("weight").removesuffix("."): inputs[name] for name, new in names.items() if new is not None
    }


def read_activations(text: str, path: str) -> dict[str, StoredInput]:
    """The inputs by the layer's name, from the metadata's text.

    Raises PackedFileError naming the layer.
    """
    stated, inputs = read_json(text, path, KEY, floats=True), {}
    for name, fields in stated.items():
        problem = _problem(fields)
        if problem is not None:
            raise file_error(path, KEY, f"{name!r:.80}: {problem}")
        logit = fields.get("logit")
        inputs[name] = StoredInput(fields["bits"], float(fields["range"]), None if logit is None else float(logit))
    return inputs


def _problem(fields: Any) -> str | None:
    if not isinstance(fields, dict) or set(fields) - {"logit"} != FIELDS:
        return "expected bits, range and, of learned bits, logit"
    bits = fields["bits"]
    if type(bits) is not int or not LEAST_BITS <= bits <= MOST_BITS:
        return f"bits must be a whole number from {LEAST_BITS} to {MOST_BITS}, found {str(bits)[:40]}"
    if not _is_float32(fields["range"]) or not fields["range"] > 0:
        return f"range must be a positive number of float32, found {str(fields['range'])[:40]}"
    if "logit" in fields and not _is_float32(fields["logit"]):
        return f"logit must be a number of float32, found {str(fields['logit'])[:40]}"
    return None


def _is_float32(value: Any) -> bool:
    if type(value) not in (int, float) or abs(value) > LARGEST:
        return False
    return float(np.float32(value)) == value
