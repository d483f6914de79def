"""logit <-> bits <-> step: the parametrisation of a learned bit width, the only place of the oracle that knows it.

Two parametrisations (``docs/method.md``; DiffQ, TMLR 2022, section 3): ``"bits"`` interpolates the number of bits
linearly in ``t = sigmoid(logit)``; ``"noise"`` interpolates the logarithm of the quantisation step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .options import PARAMS, unknown_choice

MAX_WHOLE_BITS = 15
LOGITS_IN_CACHE = 2**17


def _check_param(who: str, param: str) -> None:
    if param not in PARAMS:
        raise unknown_choice(who, "param", param, PARAMS)


def _check_real(who: str, argument: str, values: Tensor) -> None:
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{who}: {argument} must be real numbers, got {values.dtype}")


def _float(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.to(torch.float32)


def _log_steps(min_bits: float, max_bits: float) -> tuple[float, float]:
    """Natural logarithms of the smallest and the largest step."""
    if not 0 < min_bits < max_bits <= 1000:
        given = f"got min_bits={min_bits}, max_bits={max_bits}"
        raise ValueError(f"bits: param='noise' needs 0 < min_bits < max_bits <= 1000, {given}")
    return -math.log(2**max_bits - 1), -math.log(2**min_bits - 1)


def bits_from_logits(logits: Tensor, min_bits: float, max_bits: float, param: str = "bits") -> Tensor:
    """The real-valued number of bits of each group.

    Args:
        logits: any shape; computed in float32 (float64 when given so).
        min_bits, max_bits: the open interval of the result.
        param: ``"bits"`` or ``"noise"``.

    Returns:
        tensor of the same shape, differentiable in ``logits``.
    """
    _check_real("bits_from_logits", "logits", logits)
    _check_param("bits_from_logits", param)
    t = torch.sigmoid(_float(logits))
    if param == "bits":
        return max_bits * t + (1 - t) * min_bits  # in this order: another one rounds some widths differently
    log_smallest, log_largest = _log_steps(min_bits, max_bits)
    step = torch.exp(t * log_smallest + (1 - t) * log_largest)
    return torch.log2(1 + 1 / step)


def logits_from_bits(bits: Tensor, min_bits: float, max_bits: float, param: str = "bits") -> Tensor:
    """Inverse of :func:`bits_from_logits`; ``bits`` strictly between ``min_bits`` and ``max_bits``."""
    _check_real("logits_from_bits", "bits", bits)
    return _logit(_fraction(bits, min_bits, max_bits, param))


def initial_logit(init_bits: float, min_bits: float, max_bits: float, param: str = "bits") -> Tensor:
    """The float32 logit, 0-dim, that gives ``init_bits``. The fraction is rounded to float32 before the logarithm,
    which is where diffq rounds it, so that both start from the same numbers."""
    bits = torch.tensor(init_bits, dtype=torch.float64, device="cpu")
    _check_real("logits_from_bits", "bits", bits)
    return _logit(_fraction(bits, min_bits, max_bits, param).to(torch.float32))


def _fraction(bits: Tensor, min_bits: float, max_bits: float, param: str) -> Tensor:
    """The t = sigmoid(logit) that gives ``bits``."""
    _check_param("logits_from_bits", param)
    if param == "bits":
        return (bits - min_bits) / (max_bits - min_bits)
    log_smallest, log_largest = _log_steps(min_bits, max_bits)
    return (-torch.log(2**bits - 1) - log_largest) / (log_smallest - log_largest)


def _logit(fraction: Tensor) -> Tensor:
    return torch.log(fraction / (1 - fraction))


def step_from_bits(bits: Tensor) -> Tensor:
    """One quantisation step as a fraction of the range, ``1 / (2**bits - 1)``."""
    _check_real("step_from_bits", "bits", bits)
    return 1 / (2**bits - 1)


def step_and_derivative(logits: Tensor, min_bits: float, max_bits: float, param: str = "bits") -> tuple[Tensor, Tensor]:
    """:func:`step_from_bits` of the logits' bits, and its derivative with respect to the logits."""
    logits = _float(logits)
    t = torch.sigmoid(logits)
    bits = bits_from_logits(logits, min_bits, max_bits, param)
    step = step_from_bits(bits)
    if param == "bits":
        by_t = -math.log(2) * (max_bits - min_bits) * step * (1 + step)  # 2**b / (2**b - 1) = 1 + step
    else:
        log_smallest, log_largest = _log_steps(min_bits, max_bits)
        by_t = step * (log_smallest - log_largest)
    return step, by_t * t * torch.sigmoid(-logits)


def bits_derivative(logits: Tensor, min_bits: float, max_bits: float, param: str = "bits") -> Tensor:
    """The derivative of :func:`bits_from_logits`, differentiable itself."""
    _check_param("bits_derivative", param)
    t = torch.sigmoid(_float(logits))
    by_logit = t * (1 - t)
    if param == "bits":
        return (max_bits - min_bits) * by_logit
    log_smallest, log_largest = _log_steps(min_bits, max_bits)
    step = torch.exp(t * log_smallest + (1 - t) * log_largest)
    return (log_largest - log_smallest) / math.log(2) * by_logit / (1 + step)


def whole_bits_from_logits(
    logits: Tensor, min_bits: float, max_bits: float, param: str = "bits", extra_bits: float = 0
) -> Tensor:
    """:func:`whole_bits` of the logits' bits, as an export needs them, without gradient: uint8 of the same shape."""
    with torch.no_grad():
        # On a CPU in pieces whose intermediate results stay in the cache: 2**21 logits in 3 ms instead of 10.
        parts = logits.split(LOGITS_IN_CACHE) if logits.device.type == "cpu" and logits.dim() else [logits]
        made = [whole_bits(bits_from_logits(part, min_bits, max_bits, param), extra_bits) for part in parts]
        return torch.cat(made) if len(made) > 1 else made[0]


def whole_bits(bits: Tensor, extra_bits: float = 0) -> Tensor:
    """uint8 number of bits used in eval and export: ``clamp(round(extra_bits + bits), 1, 15)``, half to even."""
    _check_real("whole_bits", "bits", bits)
    return torch.round(extra_bits + bits).clamp(1, MAX_WHOLE_BITS).to(torch.uint8)
