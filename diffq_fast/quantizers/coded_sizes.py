"""The size of a file of coded levels: from a sample of the weights with its slopes, or from all of them.

A sampled size does not wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional
from ..reference.classes import (
    CLASSES,
    LEAST_GROUPS,
    TABLE_BITS,
    WORTH,
    choose_classes,
    class_bytes,
    classes_of_sizes,
    size_of_group,
)
from ..reference.groups import grouped, per_element
from ..reference.level_code import HIGHEST_VALUE
from ..reference.log_steps import codes_from_steps
from ..reference.rate import HIGHEST_LEVEL, entropy_of_sample, fixed_bits, level_costs, stream_bits
from ..reference.sizes import ELEMENTS_PER_WORD, group_count
from ..reference.steps import levels_of_steps

LEAST_SAMPLE = 4096  # elements of a weight
COARSE = 16.0  # deviation, in levels, above which several levels count as one
FINE_LEVELS = 256  # the same where every element is counted
_MOST_FINE = 8 * FINE_LEVELS
SAMPLING_STREAM = 2**32 - 1  # of the noise that draws the sample
LEAST_STREAM_BITS = 32  # of a stream of equal values
MOST_CODES = 256  # step codes of a weight that are told apart
COUNTED_AT_ONCE = 2**22
_MIXER = 0x5851F42D4C957F2D


class Coded(NamedTuple):
    """A weight whose levels are coded, and the natural logarithms of its groups' steps.

    classes: of groups that share a table, uint8 ``[groups]``; None: those that its levels give.
    """

    weight: Tensor
    log_steps: Tensor
    group_size: int
    classes: Tensor | None = None

    @property
    def groups(self) -> int:
        return len(self.log_steps)


@dataclass(frozen=True)
class Strata:
    """How a weight is sampled: one group of ``stride`` consecutive ones, and of each ``samples`` elements.

    An element is drawn from each of ``samples`` nearly equal pieces of a group, so a sample tells about every part of
    a weight, has no element twice, and each of its elements stands for as many as its piece has.
    """

    count: int
    group_size: int
    groups: int
    stride: int
    samples: int

    @classmethod
    def of(cls, coded: Coded, share: float) -> Strata:
        count = coded.weight.numel()
        size = min(coded.group_size or count, count)
        per_group = size * min(1.0, max(share, LEAST_SAMPLE / count))
        stride = max(1, int(1 / per_group))
        return cls(count, size, group_count(count, size), stride, min(size, max(1, round(per_group))))

    @property
    def rows(self) -> int:
        return -(-self.groups // self.stride)

    def draws(self) -> int:
        """Uniform numbers that a weight's sample takes."""
        return self.rows * (self.samples + (self.stride > 1))

    def sample(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``uniform``: float32 ``[weights, draws()]`` in (0, 1). Groups ``[weights, rows]``, elements ``[weights, rows,
        samples]``, and for how many each stands, of a shape that fits the elements'."""
        rows = torch.arange(self.rows, dtype=torch.int64, device=uniform.device)
        chances = uniform[:, : self.rows * self.samples].view(-1, self.rows, self.samples)
        number: int | Tensor = 1
        groups = rows.expand(len(uniform), -1)
        if self.stride > 1:
            members = (self.groups - rows * self.stride).clamp(max=self.stride)
            groups = rows * self.stride + _part_of(uniform[:, -self.rows :], members)
            number = members[:, None]
        lengths: int | Tensor = self.group_size
        if self.count % self.group_size:
            last = self.count - (self.groups - 1) * self.group_size
            lengths = torch.where(groups == self.groups - 1, last, self.group_size)[:, :, None]
        ends = torch.arange(self.samples + 1, dtype=torch.int64, device=uniform.device) * lengths // self.samples
        begins, sizes = ends[..., :-1], ends.diff(dim=-1)
        elements = groups[:, :, None] * self.group_size + begins + _part_of(chances, sizes)
        return groups, elements.clamp(max=self.count - 1), (sizes * number).to(torch.float32)


def _part_of(uniform: Tensor, sizes: Tensor) -> Tensor:
    """Whole numbers from 0 to ``sizes - 1``."""
    return torch.minimum((uniform * sizes).long(), (sizes - 1).clamp(min=0))


class _Sampled(NamedTuple):
    """The samples of weights that are sampled alike."""

    members: list[int]
    groups: Tensor  # [weights, rows]
    elements: Tensor  # [weights, rows, samples]
    standing_for: Tensor
    in_levels: Tensor  # [weights, rows, samples], in units of ``coarse`` levels
    coarse: Tensor  # [weights]
    sizes: Tensor | None  # [weights, rows]: logarithms of the mean level of each group; None: no weight has classes


def sampled_size(coded: Sequence[Coded], share: float, to_weights: bool) -> Tensor:
    """The bits of the coded weights, estimated from a share of their elements: 0-dim, differentiable in the log-steps.

    The sample is drawn from a key that is made of the log-steps themselves. So the result depends on nothing but its
    arguments, another step draws another sample, and the processes of a distributed training draw the same one.

    Args:
        share: of the elements of each weight, but at least ``LEAST_SAMPLE`` of them.
        to_weights: differentiable in the weights too.
    """
    total: Tensor | float = 0.0
    for device in dict.fromkeys(each.weight.device for each in coded):
        of_device = [each for each in coded if each.weight.device == device]
        part = _size_on_device(of_device, share, to_weights)
        total = part if isinstance(total, float) else total + part.to(total.device)
    return total if isinstance(total, Tensor) else torch.zeros((), dtype=torch.float32, device="cpu")


def _size_on_device(coded: Sequence[Coded], share: float, to_weights: bool) -> Tensor:
    with torch.no_grad():
        sampled = list(_samples(coded, share))
        counts = torch.cat([_count_levels(each) for each in sampled])
        costs = level_costs(counts)
    total = counts.new_zeros(())
    begin = 0
    for each in sampled:
        rows = slice(begin, begin + len(each.members))
        begin = rows.stop
        total = total + _linearised(each, coded, costs[rows], counts[rows], to_weights)
    return total


def _samples(coded: Sequence[Coded], share: float) -> Iterator[_Sampled]:
    families: dict[Strata, list[int]] = {}
    for index, each in enumerate(coded):
        families.setdefault(Strata.of(each, share), []).append(index)
    key = _key_of(coded)
    draws = [strata.draws() * len(members) for strata, members in families.items()]
    chances = functional.noise(key, SAMPLING_STREAM, sum(draws), noise_kind="uniform") + 0.5
    for (strata, members), uniform in zip(families.items(), chances.split(draws), strict=True):
        groups, elements, standing_for = strata.sample(uniform.view(len(members), -1))
        weights = [coded[m].weight.detach().reshape(-1)[places] for m, places in zip(members, elements, strict=True)]
        log_steps = torch.stack([coded[member].log_steps.detach().float() for member in members])
        drawn = log_steps.gather(1, groups)
        in_levels = torch.stack(weights).float() / drawn.exp()[:, :, None]
        middle, spread = _middle(in_levels.flatten(1), COARSE)
        coarse = (spread / COARSE).clamp(min=1)
        in_levels = (in_levels - middle[:, None, None]) / coarse[:, None, None]
        sizes = None
        if strata.groups >= LEAST_GROUPS:
            parts = zip(members, groups, drawn.exp(), strict=True)
            sizes = size_of_group(
                torch.stack([_mean_levels(coded[m].weight.detach(), strata, *each) for m, *each in parts])
            )
        yield _Sampled(members, groups, elements, standing_for, in_levels, coarse, sizes)


def _mean_levels(weight: Tensor, strata: Strata, groups: Tensor, steps: Tensor) -> Tensor:
    """float32 ``[rows]``: the mean absolute level of each of these groups, unrounded where all groups are there."""
    flat, size = weight.reshape(-1), strata.group_size
    if strata.stride > 1:
        places = groups[:, None] * size + torch.arange(size, dtype=torch.int64, device=flat.device)
        return (flat[places.clamp(max=strata.count - 1)].float() / steps[:, None]).round().abs().mean(1)
    rows = grouped(flat, size, 0.0)
    if rows.dtype == torch.float64:  # which torch does not sum in float32
        rows = rows.float()
    return torch.linalg.vector_norm(rows, 1, dim=1, dtype=torch.float32) / (size * steps)


def _middle(levels: Tensor, fine: float) -> tuple[Tensor, Tensor]:
    """Of each row: the whole level that it is counted from, and the deviation from there.

    That is 0 as long as its levels deviate from 0 by at most ``fine``: a table can begin anywhere, so a weight far from
    0 takes no more bits than another one, but close to it no level is to be moved.
    """
    from_zero = levels.square().mean(1).sqrt()
    middle = torch.where(from_zero > fine, levels.mean(1).round(), 0.0)
    return middle, (levels - middle[:, None]).square().mean(1).sqrt()


def _key_of(coded: Sequence[Coded]) -> Tensor:
    """int64, 0-dim: changes with every bit of the log-steps."""
    bits = torch.cat([each.log_steps.detach().float() for each in coded]).view(torch.int32).long()
    places = torch.arange(1, 2 * len(bits), 2, dtype=torch.int64, device=bits.device)
    mixed = (bits ^ places) * (_MIXER * places)
    return (mixed ^ (mixed >> 29)).sum()


def _count_levels(sampled: _Sampled) -> Tensor:
    """float32 ``[weights, 2 * HIGHEST_LEVEL + 1]``"""
    levels = sampled.in_levels.round().nan_to_num().clamp(-HIGHEST_LEVEL, HIGHEST_LEVEL).long() + HIGHEST_LEVEL
    return _counts(levels.flatten(1), 2 * HIGHEST_LEVEL + 1).float()


def _bits_in_classes(sampled: _Sampled, counts: Tensor, count: int, groups: int) -> Tensor:
    """float32 ``[weights]``: bits of the levels and their tables; where groups share tables in classes, with those."""
    rate = entropy_of_sample(counts)
    tables = 8.0 * counts.count_nonzero(1).to(counts.dtype) + fixed_bits(count, rate)
    bits = rate * count + tables
    if sampled.sizes is None:
        return bits
    most = max(CLASSES)
    class_of = classes_of_sizes(sampled.sizes, most).long()
    levels = sampled.in_levels.round().nan_to_num().clamp(-HIGHEST_LEVEL, HIGHEST_LEVEL).long() + HIGHEST_LEVEL
    places = (class_of[:, :, None] * counts.shape[1] + levels).flatten(1)
    split = _counts(places, most * counts.shape[1]).float().view(len(counts), most, counts.shape[1])
    changes = class_of.diff(dim=1)
    needed = [WORTH * bits]
    for classes in reversed(CLASSES):
        number = split.sum(2)
        rates = entropy_of_sample(split.flatten(0, 1)).view(len(counts), classes)
        of_levels = (rates * number).sum(1) / number.sum(1) * count
        used = torch.stack([split.count_nonzero(2).sum(1), (number > 0).sum(1) - 1]).to(bits.dtype)
        stream = torch.full_like(bits, groups * math.log2(classes))
        if changes.shape[1] + 1 == groups:
            stream = stream.minimum(8.0 * (changes != 0).sum(1).to(bits.dtype) + 8)
        needed.append(of_levels + 8.0 * used[0] + TABLE_BITS * used[1] + fixed_bits(count, rate) + stream)
        split = split.view(len(counts), classes // 2, 2, -1).sum(2)
        changes = (class_of := class_of // 2).diff(dim=1)
    least = torch.stack(needed).amin(0)
    return torch.where(least < needed[0], least, bits)


def _counts(values: Tensor, number: int) -> Tensor:
    """How often each of ``0 … number - 1`` occurs in each row: float64, exact."""
    if values.is_cpu and len(values) == 1 and not torch.compiler.is_compiling():
        return torch.bincount(values[0], minlength=number)[None].double()
    rows = torch.arange(len(values), dtype=torch.int64, device=values.device)[:, None] * number
    counts = torch.zeros(len(values) * number, dtype=torch.float64, device=values.device)
    ones = torch.ones((), dtype=torch.float64, device=values.device).expand(values.numel())
    return counts.index_add_(0, (values + rows).reshape(-1), ones).view(len(values), number)


def _linearised(sampled: _Sampled, coded: Sequence[Coded], costs: Tensor, counts: Tensor, to_weights: bool) -> Tensor:
    """The bits of the sampled weights: their value from the counts of the sample, their slopes from the costs.

    A level that is not whole costs what lies between those of its two neighbours, as it does in the mean when it is
    rounded with noise. The value has no slope of its own.
    """
    own = [coded[member] for member in sampled.members]
    count = own[0].weight.numel()
    with torch.no_grad():
        bits = _bits_in_classes(sampled, counts, count, own[0].groups) + sampled.coarse.log2() * count
        value = torch.maximum(bits, bits.new_tensor(16.0 * -(-count // ELEMENTS_PER_WORD))).sum()
        slopes = _slopes(sampled, costs)
        of_steps = -(slopes * sampled.in_levels).sum(2)
    drawn = torch.stack([each.log_steps.float() for each in own]).gather(1, sampled.groups)
    value = value + (of_steps * (drawn - drawn.detach())).sum()
    if to_weights:
        scales = drawn.detach().exp()[:, :, None] * sampled.coarse[:, None, None]
        weights = torch.stack(
            [each.weight.reshape(-1)[places].float() for each, places in zip(own, sampled.elements, strict=True)]
        )
        value = value + (slopes / scales * (weights - weights.detach())).sum()
    return value


def _slopes(sampled: _Sampled, costs: Tensor) -> Tensor:
    """By how many bits the file grows with each sampled element, per (coarse) level: those that it stands for too."""
    levels = sampled.in_levels.nan_to_num()
    lower = levels.floor().clamp(-HIGHEST_LEVEL, HIGHEST_LEVEL - 1).long() + HIGHEST_LEVEL
    flat, rows = lower.flatten(1), costs
    rise = (rows.gather(1, flat + 1) - rows.gather(1, flat)).view_as(levels)
    return torch.where(levels.abs() <= HIGHEST_LEVEL, rise * sampled.standing_for, 0.0)


def least_steps(weight: Tensor, group_size: int) -> Tensor:
    """float32 ``[groups]``: the smallest steps at which every level fits a file's 16 bits. A NaN counts as 0."""
    rows = grouped(weight.detach().float().reshape(-1).abs().nan_to_num(0.0), group_size, 0.0)
    return rows.amax(1) / HIGHEST_VALUE


def step_code_bits(coded: Sequence[Coded]) -> Tensor:
    """float64, 0-dim: bits of the streams of the groups' step codes."""
    families: dict[tuple[int, torch.device], list[Tensor]] = {}
    for each in coded:
        families.setdefault((each.groups, each.weight.device), []).append(each.log_steps.detach().float())
    total: Tensor | None = None
    for (groups, _), log_steps in families.items():
        codes = codes_from_steps(torch.stack(log_steps).exp()).long()
        codes = (codes - codes.amin(1, keepdim=True)).clamp(max=MOST_CODES - 1)
        part = stream_bits(_counts(codes, MOST_CODES), groups).sum()
        total = part if total is None else total + part.to(total.device)
    return torch.zeros((), dtype=torch.float64, device="cpu") if total is None else total


def level_bits(coded: Coded, steps: Tensor, beside: int = 0) -> Tensor:
    """float64, 0-dim: bits of the streams of a weight's levels and of its classes, every element counted.

    At least those of the fewest words that a file has for so many levels, less the bits of the streams ``beside`` them.
    """
    levels, low_bits = _fine_levels(coded, steps)
    classes = coded.classes
    if classes is None and not levels.is_meta:
        classes = choose_classes(levels, coded.group_size)
    count = levels.numel()
    if classes is None or class_bytes(classes) == 0:
        bits = stream_bits(_all_counts(levels + _MOST_FINE, 1), count)[0]
    else:
        span = 2 * _MOST_FINE
        begins = per_element(classes.int() - 1, count, coded.group_size) * span + _MOST_FINE
        counts = _all_counts(levels + begins, int(classes.max()))
        totals = counts.sum(1).long().tolist()
        parts = [stream_bits(counts[index : index + 1], total)[0] for index, total in enumerate(totals) if total]
        bits = torch.stack(parts).sum() + 8 * class_bytes(classes)
    return (bits + low_bits * count).clamp(min=16.0 * -(-count // ELEMENTS_PER_WORD) - beside)


def classes_of(coded: Coded, steps: Tensor) -> Tensor:
    """The classes that the levels of these steps give."""
    return choose_classes(_fine_levels(coded, steps)[0], coded.group_size)


def _fine_levels(coded: Coded, steps: Tensor) -> tuple[Tensor, Tensor]:
    """int32 levels, flat, without their low bits; and how many low bits there are.

    A file's table has 256 symbols: where there are more levels, they have low bits that are not coded.
    """
    levels = levels_of_steps(coded.weight, steps, coded.group_size).reshape(-1)
    middle, spread = _middle(levels[None], FINE_LEVELS)
    low_bits = (spread[0] / FINE_LEVELS).clamp(min=1).log2().ceil()
    levels = ((levels - middle) / low_bits.exp2()).floor().nan_to_num().clamp(-_MOST_FINE, _MOST_FINE - 1)
    return levels.to(torch.int32), low_bits


def _all_counts(places: Tensor, classes: int) -> Tensor:
    """float64 ``[classes, 2 * _MOST_FINE]``, a part of the elements at a time."""
    number = classes * 2 * _MOST_FINE
    counts = torch.zeros((1, number), dtype=torch.float64, device=places.device)
    for chunk in places.split(COUNTED_AT_ONCE):
        counts = counts + _counts(chunk[None].long(), number)
    return counts.view(classes, -1)
