"""The rule by which the logits of a packed file become widths, as the file states it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..files.safetensors_reader import file_error
from ..reference.bits import PARAMS
from ..reference.logit_rule import LogitRule
from .layout import learned_suffix


def read_rule(path: str, quantizer: Mapping[str, Any]) -> LogitRule:
    """The rule of the file's quantizer, defaults where it states none; PackedFileError if impossible."""
    arguments = quantizer["arguments"]
    given = {name: arguments[name] for name in LogitRule.__dataclass_fields__ if name in arguments}
    rule = LogitRule(**given | {"suffix": learned_suffix(quantizer)})
    numbers = (rule.min_bits, rule.max_bits, rule.extra_bits)
    if not all(type(number) in (int, float) and abs(number) <= 1000 for number in numbers):
        raise file_error(path, "quantizer", f"min_bits, max_bits and extra_bits must be numbers, got {numbers}")
    if not 0 < rule.min_bits < rule.max_bits <= 32:
        bounds = f"got {rule.min_bits} and {rule.max_bits}"
        raise file_error(path, "quantizer", f"expected 0 < min_bits < max_bits <= 32, {bounds}")
    if rule.param not in PARAMS or not isinstance(rule.suffix, str) or not rule.suffix:
        raise file_error(path, "quantizer", f"param must be one of {PARAMS} and suffix a text, got {rule.param!r:.40}")
    return rule
