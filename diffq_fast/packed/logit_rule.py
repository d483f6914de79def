"""The rule by which what is learned for a packed weight and its widths belong together, as the file states it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..files.safetensors_reader import file_error
from ..quantizers.registry import Rule, scheme_named
from ..reference.logit_rule import LogitRule
from .layout import learned_suffix


def read_rule(path: str, quantizer: Mapping[str, Any]) -> Rule:
    """The rule of the file's quantizer, defaults where it states none; PackedFileError if impossible."""
    scheme = scheme_named(quantizer["class"])
    make = LogitRule.from_arguments if scheme is None or scheme.rule is None else scheme.rule
    rule = make({**quantizer["arguments"], "suffix": learned_suffix(quantizer)})
    problem = rule.problem()
    if problem is not None:
        raise file_error(path, "quantizer", problem)
    return rule
