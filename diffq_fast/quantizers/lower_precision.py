"""Noisy weights made in autocast's dtype: which, and what a module is given where that would change a result.

Autocast casts the weights of linear, convolution and attention layers to its dtype each time they are read, and the
gradients back. A noisy weight that is made in that dtype spares both. The same numbers come out where (1) only such an
operator reads it, (2) autocast is on there, with this dtype, and (3) it is read once: the gradients of several reads
would be summed up in the lower dtype. (1) is told by the type of the module that owns the weight, (2) and (3) are
checked when that module is called; where they fail, it is given the weight in the weight's own dtype, and from the next
forward on that is what is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import shadows
from .replay import unseen_by_checkpoints
from .selection import QuantizedParameter, Slot

# Exact types: a subclass may do anything with its weight. Not here, as autocast leaves their weights in float32 or
# casts them in ways of its own: normalisation, embeddings, Bilinear, PReLU, recurrent layers.
LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_LAYER_NAMES = ("weight", "bias")
_ATTENTION_NAMES = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
LOWER_DTYPES = (torch.bfloat16, torch.float16)
NOT_OF_SHARDS = "noisy_dtype='auto' is for whole models; leave it out, and give fully_shard a MixedPrecisionPolicy"

Dtypes = Mapping[QuantizedParameter, torch.dtype]


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast casts to on this kind of device; None where it is off."""
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


@dataclass(frozen=True)
class LoweringMaker:
    """Makes the weights of given indices as one forward saw them, those of ``dtypes`` in these dtypes."""

    noisy_weights: Callable[[Dtypes, Sequence[int]], list[Tensor]]
    dtypes: Dtypes

    def __call__(self, indices: Sequence[int]) -> list[Tensor]:
        return self.noisy_weights(self.dtypes, indices)

    def in_own_dtype(self, index: int) -> Tensor:
        """The same noisy weight in the weight's own dtype."""
        return self.noisy_weights({}, [index])[0]


@dataclass
class Lowered:
    """A weight that stands in its module in a lower dtype, and whether it has been read."""

    maker: LoweringMaker
    index: int
    tensor: Tensor
    read: bool = False

    def in_own_dtype(self) -> Tensor:
        """What stands in its place from now on. Made inside the forward, but with gradients as at its beginning."""
        with (
            unseen_by_checkpoints(),
            torch.inference_mode(False),
            torch.set_grad_enabled(self.tensor.requires_grad),
        ):
            return self.maker.in_own_dtype(self.index)


class LowerPrecision:
    """Which weights of a model may be made in autocast's dtype."""

    def __init__(self, model: nn.Module, entries: Sequence[QuantizedParameter]) -> None:
        self._readers = _readers(model, entries)
        self._read_by: dict[nn.Module, list[QuantizedParameter]] = {}
        for entry, reader in self._readers.items():
            self._read_by.setdefault(reader, []).append(entry)
        self._refused: set[QuantizedParameter] = set()
        self._latest: dict[QuantizedParameter, torch.dtype] = {}

    def dtypes(self) -> dict[QuantizedParameter, torch.dtype]:
        """The weights to make in another dtype than their own, if a forward began now. Forwards are remembered, so
        those with the same dtypes share one dict."""
        found: dict[QuantizedParameter, torch.dtype] = {}
        lower: dict[str, torch.dtype | None] = {}
        for entry, reader in self._readers.items():
            param = entry.param
            if param.dtype != torch.float32 or entry in self._refused:
                continue
            kind = param.device.type
            if kind not in lower:
                lower[kind] = autocast_dtype(kind)
            dtype = lower[kind]
            if dtype in LOWER_DTYPES and reader.training and "forward" not in reader.__dict__:
                found[entry] = dtype
        if found != self._latest:
            self._latest = found
        return self._latest

    def lowered(
        self, maker: Callable, indices: Sequence[int], entries: Sequence[QuantizedParameter]
    ) -> dict[Slot, Lowered | None]:
        """Which of the weights that ``maker`` has made, and that stand in their modules now, have a lower dtype."""
        if not isinstance(maker, LoweringMaker):
            return {}
        return {
            entry: Lowered(maker, index, entry.module.__dict__[entry.name])
            for index, entry in zip(indices, entries, strict=True)
            if entry in maker.dtypes
        }

    def before_reading(self, module: nn.Module, shown: dict) -> None:
        """``module`` is about to read its weights: have it find them in a dtype in which its result is right.

        ``shown``: what stands in the place of weights, with a :class:`Lowered` for each one in a lower dtype.
        """
        for entry in self._read_by.get(module, ()):
            lowered = shown.get(entry)
            if lowered is None:
                continue
            if not lowered.read and autocast_dtype(lowered.tensor.device.type) == lowered.tensor.dtype:
                lowered.read = True
                continue
            self._refused.add(entry)
            shown[entry] = None
            shadows.put([(entry, lowered.in_own_dtype())])


def _readers(model: nn.Module, entries: Iterable[QuantizedParameter]) -> dict[QuantizedParameter, nn.Module]:
    """For each untied weight that one module reads, in operators that autocast runs in its dtype: that module."""
    uses = Counter(entry.original for entry in entries)
    attentions = {module.out_proj: module for module in model.modules() if type(module) is nn.MultiheadAttention}
    found: dict[QuantizedParameter, nn.Module] = {}
    for entry in entries:
        module = entry.module
        if uses[entry.original] > 1:
            continue
        if type(module) is nn.MultiheadAttention and entry.name in _ATTENTION_NAMES:
            found[entry] = module
        elif module in attentions and entry.name in _LAYER_NAMES:
            found[entry] = attentions[module]  # which reads these without calling the layer
        elif type(module) in LAYERS and entry.name in _LAYER_NAMES:
            found[entry] = module
    return found
