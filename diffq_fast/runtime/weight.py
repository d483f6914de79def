"""One weight that stays packed: its rows decode alone, and are multiplied without being unpacked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .. import functional
from ..packed.coding import CodedTensor, least_widths
from ..packed.tensor import PackedTensor
from ..reference.packed_rows import PackedRows, RowForm, segment_size
from .compiling import never_compiled_alone

# Levels around zero may have other widths than the file's: as many bits as the largest of so many needs.
SHORT_SEGMENT, LEAST_SEGMENT = 64, 32
_PARTS = ("data", "starts", "widths", "scales", "offsets")


class PackedWeight(nn.Module):
    """A weight as rows of packed levels, as many as its first dimension has.

    A module of buffers (uint8 ``data``, int32 ``starts``, uint8 ``widths``, float32 ``scales`` and ``offsets``), so
    that ``to``, ``state_dict``, copies and pickles take it along. ``half()`` and ``bfloat16()`` change the dtype of
    what comes of it, and not its scales.

    Attributes:
        shape: of the weight.
        dtype: of the weight, once unpacked; stored_dtype: the one that it had, to which it is rounded first.
        form: how its rows are cut, and what levels stand for.
        activations: "float" or "int8", how :meth:`linear` takes its inputs, see ``functional.packed_linear``.
    """

    stays_packed = True  # no quantizer can be on it

    data: Tensor
    starts: Tensor
    widths: Tensor
    scales: Tensor
    offsets: Tensor

    def __init__(
        self, packed: PackedTensor | CodedTensor, dtype: torch.dtype | None = None, activations: str = "float"
    ) -> None:
        """``packed``: on the CPU, of two dimensions or more. CodeError where its streams are damaged."""
        super().__init__()
        self.activations = activations
        rows = packed.shape[0]
        columns = packed.count // rows if rows else 0
        if len(packed.shape) < 2 or packed.count == 0:
            raise ValueError(f"PackedWeight: expected a matrix with elements, got the shape {list(packed.shape)}")
        self.shape, self.dtype, self.stored_dtype = torch.Size(packed.shape), dtype or packed.dtype, packed.dtype
        group_size = 0 if packed.group_size >= packed.count else packed.group_size
        segment = segment_size(columns, group_size)
        one = packed.range_scope in ("tensor", "scale")
        centred = packed.range_scope in ("scale", "steps")
        if centred and math.gcd(segment, SHORT_SEGMENT) >= LEAST_SEGMENT:
            segment = math.gcd(segment, SHORT_SEGMENT)
        levels, widths = _levels_and_widths(packed, rows, columns, group_size, segment)
        self.form = RowForm(columns, segment, 0 if one else group_size, centred, packed.level_count or 0)
        scales, offsets = _scales_and_offsets(packed)
        for name, part in zip(_PARTS, (*functional.pack_rows(levels, widths, segment), scales, offsets), strict=True):
            self.register_buffer(name, part.contiguous())

    def rows(self, indices: Tensor) -> Tensor:
        """``[*indices.shape, *shape[1:]]``: some rows of the weight, in its dtype. ``indices``: int64 or int32."""
        if indices.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"PackedWeight: indices must be int64 or int32, got {indices.dtype}")
        flat = indices.reshape(-1).to(torch.int64)
        values = functional.unpack_rows(flat, self._rows())
        return values.view(*indices.shape, *self.shape[1:]).to(self.stored_dtype).to(self.dtype)

    @never_compiled_alone
    def unpack(self) -> Tensor:
        """The weight: bit for bit as :meth:`.PackedTensor.unpack` gives it."""
        return self.rows(torch.arange(self.shape[0], dtype=torch.int64, device=self.data.device))

    def linear(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """``torch.nn.functional.linear(input, weight, bias)`` for a matrix, to rounding. Differentiable in the input.

        The product is made in float32, with the weight as the levels give it. A float64 input, and one that needs a
        gradient or carries a tangent, is multiplied with the unpacked weight, as it is. Under autocast the result has
        autocast's dtype.
        """
        if input.dtype == torch.float64 or _is_differentiated(input):
            bias = None if bias is None else bias.to(input.dtype)
            return nn.functional.linear(input, self.unpack().to(input.dtype), bias)
        if not input.is_floating_point() or input.dim() == 0 or input.shape[-1] != self.form.columns:
            functional.packed_linear(input, self._rows())  # says what is wrong
        if bias is None or not _is_plain(bias):
            product = self._product(input)
            product = product if bias is None else product + bias.to(product.dtype)
        else:
            product = self._product(input, bias)
        device = input.device.type
        return product.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else product

    def _product(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """``functional.packed_linear`` without its looking at rows that do not change: kernels guard their memory."""
        rows = self._rows()
        product = functional.packed_linear_operator
        if functional.packed_linear_on_cpu is not None and _is_seen_by_nobody(input) and rows.data.is_cpu:
            product = functional.packed_linear_on_cpu
        return product(input, *rows.arguments(), self.activations == "int8", bias)

    @property
    def bytes(self) -> int:
        """In memory."""
        return sum(part.numel() * part.element_size() for part in self._parts())

    def extra_repr(self) -> str:
        count = math.prod(self.shape)
        return f"{list(self.shape)}, {8 * self.bytes / count:.2f} bits a weight, {self.dtype}"

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        parts: dict[str, Any] = self._buffers  # which a lookup as an attribute comes to last
        return parts["data"], parts["starts"], parts["widths"], parts["scales"], parts["offsets"]

    def _rows(self) -> PackedRows:
        return PackedRows(*self._parts(), self.form)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scales, offsets = self.scales, self.offsets
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=scales.device)).dtype
        self.scales, self.offsets = scales.to(self.data.device), offsets.to(self.data.device)
        return self


def _is_seen_by_nobody(input: Tensor) -> bool:
    """Whether no compiler, tracer, mode or transform has to see the operator that is called with a CPU's tensor."""
    return (
        not is_compiling()
        and type(input) is Tensor
        and input.is_cpu
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.maybe_current_level() is None
        and torch._C._get_tracing_state() is None
    )


def _is_plain(bias: Tensor) -> bool:
    """Whether the operator can add it: it takes no gradient, and vmap may have several biases for one product."""
    differentiated = torch.is_grad_enabled() and bias.requires_grad
    return not differentiated and torch._C._functorch.maybe_current_level() is None


def _is_differentiated(input: Tensor) -> bool:
    """Whether a gradient may be asked for, or a tangent (``torch.func.jvp``, ``jacfwd``) is being carried along."""
    if torch.is_grad_enabled() and input.requires_grad:
        return True
    return forward_ad._current_level >= 0


def _levels_and_widths(
    packed: PackedTensor | CodedTensor, rows: int, columns: int, group_size: int, segment: int
) -> tuple[Tensor, Tensor]:
    """Levels from 0 on, int32 ``[rows, columns]``, and the width of each segment: the file's, or the least."""
    if isinstance(packed, CodedTensor):
        levels = packed.levels().reshape(rows, columns)
    else:
        flat = functional.unpack(packed.words, packed.widths, packed.count, group_size=packed.group_size)
        levels = flat.view(rows, columns)
    if packed.range_scope == "scale":
        levels = levels - (1 << int(packed.widths[0]) - 1)
    if packed.range_scope in ("scale", "steps"):
        return _centred(levels.view(rows, -1, segment))
    of_groups = packed.widths.to(torch.uint8)
    if not group_size:
        return levels, of_groups.expand(rows, 1)
    begins = torch.arange(0, packed.count, segment, dtype=torch.int64, device="cpu")
    return levels, of_groups[begins // group_size].view(rows, -1)


def _centred(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Signed levels ``[rows, segments, segment]`` on the fewest bits that hold each segment's."""
    widths = least_widths(levels)
    shifted = levels + (1 << widths.to(torch.int32) - 1)[:, :, None]
    return shifted.flatten(1), widths


def _scales_and_offsets(packed: PackedTensor | CodedTensor) -> tuple[Tensor, Tensor]:
    none = torch.empty(0, dtype=torch.float32, device="cpu")
    if isinstance(packed, CodedTensor) and packed.range_scope == "steps":
        return packed.steps(), none
    if packed.range_scope == "scale":
        return packed.ranges.reshape(-1).float(), none
    lows, highs = packed.ranges.reshape(-1, 2).float().unbind(1)
    return highs - lows, lows
