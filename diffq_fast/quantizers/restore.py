"""Reading a stored state into a plain model."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ..legacy.state import parse_state
from .registry import scheme_of


def restore_quantized_state(model: nn.Module, state: Any) -> None:
    """Fill ``model`` with the weights of a state written by diffq or by ``get_quantized_state``.

    The state says by which quantizer, with which arguments; that one is attached for the time of the reading.

    Args:
        model: a model of the same architecture, without a quantizer.
        state: the dict (see ``docs/migrating_from_diffq.md`` for reading files), or what
            :func:`diffq_fast.legacy.state.parse_state` made of it.

    Raises:
        ValueError: the state has no ``meta``, is of an unknown quantizer, or does not fit the model, which is
            unchanged then.
    """
    parsed = parse_state(state)
    if parsed.klass is None:
        raise ValueError(
            "restore_quantized_state: the state has no 'meta', so it does not say how it was quantised; attach a "
            "quantizer with the arguments that it was made with, and call its restore_quantized_state"
        )
    quantizer = scheme_of(parsed.klass).quantizer(model, **parsed.init_kwargs)
    try:
        quantizer.restore_quantized_state(parsed)
    finally:
        quantizer.detach()
    buffers = [name for name, _ in model.named_buffers()]
    if buffers:
        warnings.warn(
            "restore_quantized_state: diffq's states hold no buffers; these keep the model's values: "
            + ", ".join(buffers),
            stacklevel=2,
        )
