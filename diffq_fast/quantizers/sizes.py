"""What learned bits take in a file, and whole numbers of bits that fill a size: which groups are rounded up, and which
down.

Where learned bits have settled, one bit more is worth the same in every group. A common shift of all bits keeps it so:
the error of a group falls like 4**-bits, so the shift multiplies what a bit is worth by one factor everywhere. Hence
the rule: the largest common shift whose rounded bits fit, then single groups in the order of what they lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.bits import MAX_WHOLE_BITS
from ..reference.short_ranges import GROUPS_PER_UNIT
from ..reference.sizes import group_count, short_range_bytes
from ..reference.weight_sizes import elements_sum, table_bits

BISECTIONS = 60
FILLING_ROUNDS = 64


class SizeRule(NamedTuple):
    """What decides the size of weights whose bits are learned."""

    group_size: int
    min_bits: float
    max_bits: float
    extra_bits: float
    range_scope: str
    short_ranges: bool = False

    def weight_bits(self, used: Tensor, count: int) -> Tensor:
        """Bits of a weight of ``count`` elements whose groups use ``used`` bits: levels, ranges, table of widths.

        Only the levels are differentiable.
        """
        table = len(used) * self._table_bits(used.detach())
        return self.total(used, count) + self.range_bits(count) + table

    def range_bits(self, count: int) -> int:
        """Bits of a weight's ranges, and of the width of its table's entries."""
        groups = group_count(count, self.group_size) if self.range_scope == "group" else 1
        return 8 * (short_range_bytes(groups, GROUPS_PER_UNIT) if self.short_ranges else 8 * groups) + 8

    def total(self, per_group: Tensor, count: int) -> Tensor:
        """Sum over a weight's elements of a value per group."""
        return elements_sum(per_group, count, self.group_size)

    def _table_bits(self, used: Tensor) -> Tensor:
        """Bits of one entry of a weight's table of widths."""
        lowest: float | Tensor = self.min_bits
        if self.extra_bits < 0:
            lowest = used.min().round().clamp(max=self.min_bits)
        return table_bits(lowest, used.max())


def reachable_widths(min_bits: float, max_bits: float, extra_bits: float) -> range:
    """The whole numbers that bits strictly between ``min_bits`` and ``max_bits`` are rounded to."""
    found = [
        width
        for width in range(1, MAX_WHOLE_BITS + 1)
        if (width == 1 or width - extra_bits - 0.5 < max_bits)
        and (width == MAX_WHOLE_BITS or width - extra_bits + 0.5 > min_bits)
    ]
    return range(found[0], found[-1] + 1)


class BitBudget:
    """The groups of all weights of a quantizer in one row, and what any choice of bits for them costs.

    Sizes are in bits, float64, and agree with ``model_size()``. :meth:`fit` waits for the device about a hundred times.

    Args:
        rule: the quantizer's.
        counts: elements of each weight; none of them 0.
        plain: parameters that are not quantised, and their bits.
        device: where to compute.

    Attributes:
        widths: the whole numbers of bits that a group can have.
        fixed: bits that are there whatever the groups have: ranges, and the parameters that are not quantised.
        plain: of these, the parameters that are not quantised.
        count: parameters of the model, tied ones once; quantised: those of them that are quantised.
        rounds: whether whole bits take another size than learned ones.
    """

    rounds = True

    def __init__(self, rule: SizeRule, counts: Sequence[int], plain: tuple[int, int], device: torch.device) -> None:
        self.device = device if device.type != "mps" else torch.device("cpu")  # which has no float64
        self.widths = reachable_widths(rule.min_bits, rule.max_bits, rule.extra_bits)
        self._min_bits, self._extra_bits = rule.min_bits, rule.extra_bits
        self._lengths = [group_count(count, rule.group_size) for count in counts]
        self._groups = torch.tensor(self._lengths, dtype=torch.float64, device=self.device)
        owners = torch.arange(len(counts), dtype=torch.int64, device=self.device)
        self._owner = owners.repeat_interleave(self._groups.long())
        pairs = zip(counts, self._lengths, strict=True)
        self._elements = self.row([_group_sizes(count, groups, rule.group_size) for count, groups in pairs])
        plain_count, self.plain = plain
        self.fixed = self.plain + sum(map(rule.range_bits, counts))
        self.quantised = sum(counts)
        self.count = self.quantised + plain_count

    def row(self, per_weight: Sequence[Tensor]) -> Tensor:
        """float64 ``[groups of all weights]`` from one tensor per weight that has elements."""
        moved = [each.detach().to(self.device, torch.float64) for each in per_weight]
        return torch.cat(moved) if moved else torch.zeros(0, dtype=torch.float64, device=self.device)

    def split(self, row: Tensor) -> list[Tensor]:
        """The inverse of :meth:`row`."""
        return list(row.split(self._lengths))

    def uniform_size(self, bits: float) -> float:
        """The size with the same bits everywhere."""
        return float(self.size(torch.full_like(self._elements, bits)))

    def size(self, used: Tensor) -> Tensor:
        """The size with these bits: float64 ``[groups]`` to 0-dim, in bits."""
        tables = self._groups * table_bits(self._lowest(used), self._highest(used))
        return (self._elements * used).sum() + tables.sum() + self.fixed

    def fit(self, bits: Tensor, budget: float) -> Tensor:
        """Whole bits whose size is at most ``budget``, and so near to it that no group more can be rounded up.

        Args:
            bits: float64 ``[groups]``: the real-valued bits, ``extra_bits`` included.
            budget: in bits, at least ``uniform_size(widths[0])``.
        """
        if not len(bits):
            return bits
        low, high = float(self.widths[0] - bits.max()) - 1, float(self.widths[-1] - bits.min()) + 1
        if self.size(self._rounded(bits, high)) <= budget:
            return self._rounded(bits, high)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.size(self._rounded(bits, middle)) <= budget else (low, middle)
        used = self._rounded(bits, low)
        return self._filled(used, bits + low - used, budget)

    def _rounded(self, bits: Tensor, shift: float) -> Tensor:
        return (bits + shift).round().clamp(self.widths[0], self.widths[-1])

    def _filled(self, used: Tensor, lacking: Tensor, budget: float) -> Tensor:
        """One bit more for single groups, those that lack most first, while the budget lasts.

        In one round every group that would widen its weight's table pays for the table; in the next it is paid.
        """
        for _ in range(FILLING_ROUNDS):
            left = budget - self.size(used)
            cost = self._cost_of_one_more(used)
            order = lacking.argsort(descending=True, stable=True)
            order = order[(used < self.widths[-1])[order] & (cost <= left)[order]]
            raised = order[cost[order].cumsum(0) <= left]
            if not len(raised):
                break
            used[raised] += 1
            lacking[raised] -= 1
        return used

    def _cost_of_one_more(self, used: Tensor) -> Tensor:
        """What one bit more costs each group, with the wider table where the group is its weight's widest."""
        lowest, highest = self._lowest(used), self._highest(used)
        wider = self._groups * (table_bits(lowest, highest + 1) - table_bits(lowest, highest))
        return self._elements + torch.where(used == highest[self._owner], wider[self._owner], 0.0)

    def _highest(self, used: Tensor) -> Tensor:
        """float64 ``[weights]``"""
        return torch.zeros_like(self._groups).scatter_reduce_(0, self._owner, used, "amax")

    def _lowest(self, used: Tensor) -> Tensor | float:
        """From which width the tables count, as ``model_size`` has it."""
        if self._extra_bits >= 0:
            return self._min_bits
        lowest = torch.full_like(self._groups, torch.inf).scatter_reduce_(0, self._owner, used, "amin")
        return lowest.round().clamp(max=self._min_bits)


def _group_sizes(count: int, groups: int, group_size: int) -> Tensor:
    """Elements of each group; the last one may be shorter."""
    size = group_size or count
    sizes = torch.full((groups,), size, dtype=torch.float64, device="cpu")
    sizes[-1] -= groups * size - count
    return sizes
