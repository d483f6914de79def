"""Training that begins with a packed file: its steps and levels, on the float weights that it was made of."""

from __future__ import annotations

import os
from typing import cast

import torch
from torch import Tensor

from ..packed.coding import CodedTensor
from ..packed.contents import PackedContents, read_packed
from ..quantizers.arguments import check_number
from ..quantizers.rate import RateQuantizer
from ..quantizers.weights import Weight
from ..reference.groups import grouped, per_element

WHO = "start_from_packed"


def start_from_packed(quantizer: RateQuantizer, path: str | os.PathLike[str], *, within: float = 0.2) -> None:
    """Give a :class:`RateQuantizer` the steps and levels of a packed file, frozen, so that training goes on from there.

    What a calibrated packing has found, a short training does not find again: which rows need small steps, and which
    way each weight is best rounded. So pack first, and train the weights from there, rounded from the first step on::

        diffq_fast.pack_checkpoint("float.safetensors", "packed.safetensors", bits_per_weight=2, calibration=moments)
        quantizer = RateQuantizer(model)  # of the float weights
        quantizer.setup_optimizer(optimizer)
        diffq_fast.start_from_packed(quantizer, "packed.safetensors")
        target = SizeTarget(quantizer, bits_per_weight=2, total_steps=steps)
        ...
        target.step()  # behind each optimizer.step(); target.penalty() is not needed where steps are frozen

    Where a network is trained much, pack it half-way, and attach then, with ``quantizer.no_optimizer()``.
    Afterwards ``quantizer.bits_frozen``, with a straight-through gradient. A group of the quantizer that holds several
    of the file's has the geometric mean of their steps, and of several in one the same step. What the file keeps as it
    is, as vectors in a packing, has its steps from ``init_step``.

    Args:
        quantizer: on the model with the float weights that the file was made of.
        path: a file whose weights have steps: of ``pack_checkpoint``, or of a RateQuantizer.
        within: of a step, how far from its level a weight may lie: weights are moved as little as that needs. Below
            0.5 they are rounded to the file's levels where the steps are the file's; the less, the fewer leave their
            level with the first step of training. 0.5: weights stay where they are.

    Raises:
        FileError: the file is damaged, or not a packed one.
        TypeError: another quantizer.
        ValueError: a weight of the quantizer is not in the file, has another shape there, or ranges instead of steps;
            ``within`` is out of its range. Nothing has changed then.
    """
    if not isinstance(quantizer, RateQuantizer):
        raise TypeError(f"{WHO}: quantizer must be a RateQuantizer, got {type(quantizer).__name__}")
    if not 0 <= check_number(WHO, "within", within) <= 0.5:
        raise ValueError(f"{WHO}: within must be from 0 to 0.5, got {within:g}")
    contents = read_packed(path)
    weights = [weight for weight in quantizer.weights if weight.tied_to is None and weight.parameter.numel()]
    found = [(weight, _coded(contents, weight)) for weight in weights]
    pairs = [(weight, coded) for weight, coded in found if coded is not None]
    quantizer.unfreeze_bits()
    for weight, coded in pairs:
        _take(weight, coded, quantizer.group_size, within)
    quantizer.freeze_bits(straight_through=True)


def _coded(contents: PackedContents, weight: Weight) -> CodedTensor | None:
    where, shape = f"{WHO}: {weight.name}", list(weight.parameter.shape)
    entry = contents.entries().get(weight.name)
    if entry is None:
        raise ValueError(f"{where} is not in {contents.path}")
    if list(entry.shape) != shape:
        raise ValueError(f"{where}: expected shape {shape}, {contents.path} has {list(entry.shape)}")
    stored = contents.packed.get(contents.ties.get(weight.name, weight.name))
    if stored is None:
        return None
    if not isinstance(stored, CodedTensor) or stored.range_scope != "steps":
        raise ValueError(f"{where} has ranges in {contents.path}, expected steps, as pack_checkpoint writes them")
    return stored


@torch.no_grad()
def _take(weight: Weight, coded: CodedTensor, group_size: int | None, within: float) -> None:
    param, learned = weight.parameter, cast(Tensor, weight.learned)
    steps = per_element(coded.steps(), coded.count, coded.group_size)
    size = coded.count // learned.numel() if group_size is None else group_size  # None: rows, or one group
    learned.copy_(grouped(steps.log(), size, torch.nan).nanmean(1).view_as(learned))
    steps, levels = steps.to(param).view_as(param), coded.levels().to(param)
    param.copy_(torch.minimum(torch.maximum(param, (levels - within) * steps), (levels + within) * steps))
