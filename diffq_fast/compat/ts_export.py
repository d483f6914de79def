"""Programs of a quantised model: TorchScript with packed weights, as diffq has it, and ``torch.export``.

A TorchScript file of :func:`export` holds the levels as bit planes (:mod:`diffq_fast.torch_pack`, 8 bits to a word)
and unpacks them in its first forward, with torch operations alone: it runs where this package is not installed.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, List, Optional  # noqa: UP035  (what TorchScript knows)

import torch
from torch import Tensor, nn

from ..files.atomic_file import atomic_file
from ..legacy import torch_pack
from ..quantizers.base import BaseQuantizer
from ..quantizers.diffq import DiffQuantizer
from ..quantizers.selection import QuantizedParameter, Slot, untied


def export(quantizer: DiffQuantizer, path: str | os.PathLike[str] | None = None) -> torch.jit.ScriptModule:
    """The quantised model as a TorchScript module whose file is small: its weights stay packed until its first forward.

    PyTorch has deprecated TorchScript; :func:`export_program` is the way to go on. The model, whose forward takes one
    tensor, and the quantizer are consumed: they cannot be used afterwards.

    Args:
        quantizer: a DiffQuantizer, without ``float16``.
        path: where to save the module too, all or nothing; None: nowhere.

    Raises:
        TypeError: for another quantizer.
        ValueError: ``float16=True``, or a weight with NaN or infinite elements.
        RuntimeError: TorchScript cannot compile the model. Its weights are then as they were, without the quantizer.
    """
    warnings.warn(
        "ts_export.export: PyTorch has deprecated TorchScript; use export_program(quantizer, args)",
        DeprecationWarning,
        stacklevel=2,
    )
    if not isinstance(quantizer, DiffQuantizer):
        raise TypeError(
            f"ts_export.export: expected a DiffQuantizer, got {type(quantizer).__name__}; use export_program"
        )
    if quantizer.float16:
        raise ValueError("ts_export.export: float16=True is not supported; use export_program")
    quantizer.check_exportable()
    with torch.no_grad():
        packed = [_PackedWeight(quantizer, entry) for entry in quantizer.selection.originals]
    quantizer.unquantize()
    quantizer.detach()
    script = _script(quantizer.model, quantizer.selection.quantised, packed)
    if path is not None:
        with atomic_file(path) as file:
            torch.jit.save(script, file)
    return script


def export_program(
    quantizer: BaseQuantizer,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> torch.export.ExportedProgram:
    """The quantised model in eval mode as a ``torch.export`` program with plain weights; the model stays as it is.

    Args:
        quantizer: any quantizer, attached to its model.
        args, kwargs: example inputs of the model's forward.
        options: of ``torch.export.export``, such as ``dynamic_shapes``.

    Raises:
        ValueError: a weight with NaN or infinite elements.
    """
    quantizer.check_exportable()
    twin = copy.deepcopy(quantizer)
    twin.bake()
    return torch.export.export(twin.model.eval(), tuple(args), dict(kwargs or {}), **options)


# -- TorchScript -----------------------------------------------------------------------------------------------------


class _PackedWeight:
    """A weight's levels as planes, one tensor for each width in use, its widths, and bounds ``[1 or groups, 2]``."""

    def __init__(self, quantizer: DiffQuantizer, entry: QuantizedParameter) -> None:
        made = quantizer.levels(entry)
        levels, widths, self.bounds = made.levels, made.widths, made.ranges
        self.shape, self.dtype = list(levels.shape), entry.param.dtype
        self.groups = len(widths)
        self.group_size = quantizer.group_size or levels.numel()
        padding = self.groups * self.group_size - levels.numel()
        rows = nn.functional.pad(levels.flatten(), (0, padding)).view(self.groups, self.group_size)
        self.planes = [_planes(rows[widths == width], int(width)) for width in widths.unique()]
        self.lowest = int(widths.min())
        self.table = _planes(widths.to(torch.int32) - self.lowest, 0)

    def code(self, index: int) -> str:
        """The expression that unpacks it inside the module, where it is the ``index``-th weight."""
        data = f"self.planes[{index}], self.tables[{index}], self.bounds[{index}]"
        sizes = f"{self.lowest}, {self.groups}, {self.group_size}, {self.shape}"
        return f"_unpack_weight({data}, {sizes}).to({self.dtype})"


def _planes(values: Tensor, nbits: int) -> Tensor:
    return torch_pack.pack(values, nbits, storage_dtype=torch.uint8)


def _unpack_planes(planes: Tensor, count: int) -> Tensor:
    """int32 ``[count]`` from planes uint8 ``[nbits, columns]``."""
    rows = torch.arange(8, device=planes.device, dtype=torch.int32).unsqueeze(1)
    values = torch.zeros(8, planes.size(1), device=planes.device, dtype=torch.int32)
    for bit in range(planes.size(0)):
        values += ((planes[bit].to(torch.int32) >> rows) & 1) << bit
    return values.view(-1)[:count]


def _unpack_weight(
    planes: List[Tensor],  # noqa: UP006
    table: Tensor,
    bounds: Tensor,
    lowest: int,
    groups: int,
    group_size: int,
    shape: List[int],  # noqa: UP006
) -> Tensor:
    """float32, bit for bit what eval sees. Compiled by TorchScript, so written in its part of Python."""
    widths = _unpack_planes(table, groups) + lowest
    levels = torch.zeros(groups, group_size, device=table.device, dtype=torch.float32)
    used = 0
    for width in range(1, 16):
        chosen = (widths == width).nonzero().view(-1)
        if chosen.numel() > 0:
            found = _unpack_planes(planes[used], chosen.numel() * group_size)
            levels[chosen] = found.view(-1, group_size).to(torch.float32)
            used += 1
    step = 1 / ((torch.ones_like(widths) << widths) - 1).to(torch.float32)
    length = bounds[:, 1:] - bounds[:, :1]
    weight = levels * step.unsqueeze(1) * length + bounds[:, :1]
    count = 1
    for size in shape:
        count *= size
    return weight.view(-1)[:count].view(shape)


def _fill(place: Optional[Tensor], weight: Tensor) -> None:  # noqa: UP045
    """Give the tensor at ``place`` (TorchScript calls a bias optional) the values, and the memory, of ``weight``."""
    if place is not None:
        place.set_(weight.to(place.device))  # type: ignore[call-overload]


def _script(
    model: nn.Module, entries: Sequence[QuantizedParameter], packed: Sequence[_PackedWeight]
) -> torch.jit.ScriptModule:
    """The compiled module: the model with one element in the place of each weight, the planes, and a forward."""

    class PackedModel(nn.Module):  # a new class each time: TorchScript adds the forward to the class
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.planes = [weight.planes for weight in packed]
            self.tables = [weight.table for weight in packed]
            self.bounds = [weight.bounds for weight in packed]
            self.unpacked = not packed

    weights = {entry: entry.param.data for entry in entries}
    try:
        for entry, weight in weights.items():
            entry.param.data = weight.new_zeros(()).expand(weight.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.script(PackedModel().train(model.training))
            script.define(_forward_code(entries, packed))
    except Exception:
        for entry, weight in weights.items():
            entry.param.data = weight
        raise
    return script


def _forward_code(entries: Sequence[QuantizedParameter], packed: Sequence[_PackedWeight]) -> str:
    lines = ["def forward(self, x):", "    if not self.unpacked:", "        with torch.no_grad():"]
    originals = untied(entries)
    for index, weight in enumerate(packed):
        lines.append(f"            weight = {weight.code(index)}")
        for entry in entries:
            if entry.original is originals[index]:
                lines += [f"            _fill({place}, weight)" for place in _places(entry)]
    lines += ["        self.unpacked = True", "    return self.model(x)"]
    if not packed:
        lines = lines[:1] + lines[-1:]
    return "\n".join(lines) + "\n"


def _places(slot: Slot) -> Iterator[str]:
    """Expressions of the tensors to fill: the parameter, and what an RNN keeps beside it (another one in a file)."""
    *modules, name = slot.full_name.split(".")
    owner = "self.model"
    for module in modules:
        owner = f"{owner}.{module}" if module.isidentifier() else f'getattr({owner}, "{module}")'
    yield f"{owner}.{name}" if name.isidentifier() else f'getattr({owner}, "{name}")'
    if slot.rnn_index is not None:
        yield f"{owner}._flat_weights[{slot.rnn_index}]"
