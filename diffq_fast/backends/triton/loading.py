"""Finds Triton and a device for it, or the reason why the kernels stay unregistered."""

from __future__ import annotations

import importlib.util
import os

import torch


def _find() -> tuple[bool, str]:
    if os.environ.get("DIFFQ_FAST_DISABLE_TRITON", "0") not in ("", "0"):
        return False, "DIFFQ_FAST_DISABLE_TRITON is set"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return False, "TRITON_INTERPRET is set: the kernels would run on the CPU"
    from triton import __version__

    return True, f"triton {__version__} is loaded"


active, _reason = _find()


def status() -> tuple[bool, str]:
    """Whether Triton kernels answer for CUDA tensors, and why (not)."""
    return active, _reason
