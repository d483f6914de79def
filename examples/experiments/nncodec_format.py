"""Neural network coding (ISO/IEC 15938-17) by NNCodec 2: DeepCABAC, with dependent quantisation."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor

from .peer_formats import State

MODELS_AND_DATA = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.transforms",
    "ptflops",
    "cv2",
)


def nncodec_file(state: State, step: int, path: Path) -> dict[str, Tensor]:
    """Write NNCodec's bit stream of all floating tensors; returns what it decodes, as floats.

    step: its ``qp``: four more are a step twice as large, one for all matrices. All else is as NNCodec chooses it, but
    for dependent quantisation, which is on.
    """
    codec = _library()
    values = {name: np.float32(tensor.numpy()) for name, tensor in state.items() if tensor.is_floating_point()}
    options = {"qp": step, "use_dq": True, "verbose": False, "results": str(path.parent)}  # it writes a file there too
    stream = codec.encode(values, args=options)
    path.write_bytes(stream)
    decoded = codec.decode(bytearray(path.read_bytes()))
    return dict(state) | {
        name: torch.from_numpy(np.array(decoded[name], np.float32)).reshape(state[name].shape) for name in values
    }


def _library() -> Any:
    """What it imports for its own examples of models and data need not be there."""
    for name in MODELS_AND_DATA:
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = MagicMock()
    from nncodec import nn

    return nn
