"""A PyTorch model and its packed file as one ONNX file: the graph is made here, and then packed like any other."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from typing import Any

import torch
from torch import nn

from ..packed.save_load import load
from .export import export
from .onnx import imported
from .report import ExportReport

OPSET = 20  # the most of torch's exporter that keeps the names of parameters


def export_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    inputs: Any,
    output: str | os.PathLike[str],
    *,
    graph_options: dict[str, Any] | None = None,
    **options: Any,
) -> ExportReport:
    """Write a model with the weights of a packed file as an ONNX file (docs/exporting.md).

    Args:
        path: a packed file of this model.
        model: a plain module in eval mode; it is not changed.
        inputs: a tuple of example inputs, or one tensor.
        output: the new file, replaced all at once.
        graph_options: for ``torch.onnx.export``, such as ``input_names`` and ``dynamic_axes``.
        options: portable, keep_float, floats and progress, of :class:`.ExportOptions`.

    Raises:
        ValueError: the file does not fit the model, or the model trains. ImportError: the package onnx is not there.
        ExportError: a weight that the graph has not got, such as those of an LSTM.
    """
    imported("onnx")
    if model.training:
        raise ValueError("export_onnx: the model is in train mode; call model.eval() first")
    filled = load(path, copy.deepcopy(model))
    with tempfile.TemporaryDirectory(prefix="diffq_fast_onnx_") as folder:
        graph = os.path.join(folder, "float.onnx")
        stated: dict[str, Any] = {"opset_version": OPSET, "do_constant_folding": False, "dynamo": False}
        stated["training"] = torch.onnx.TrainingMode.PRESERVE  # as for EVAL, but no normalisation goes into weights
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that keeps names
            torch.onnx.export(filled, inputs, graph, **stated | (graph_options or {}))
        return export(path, output, to="onnx", graph=graph, **options)
