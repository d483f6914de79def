"""Which sizes a quantizer can reach, and what would make another one reachable."""

from __future__ import annotations

from typing import Any

from .base import BITS_PER_MB
from .sizes import BitBudget


def check_reachable(mb: float, quantizer: Any, budget: BitBudget) -> None:
    """Refuse a target that no whole bits give.

    Raises:
        ValueError: with the smallest (or largest) size, what it is made of, and the ways out.
    """
    smallest, largest = (budget.uniform_size(budget.widths[end]) / BITS_PER_MB for end in (0, -1))
    if not mb >= smallest:
        raise ValueError(
            f"SizeTarget: the target must be at least {smallest:.6g} MB ({_per_weight(smallest, budget)}), got "
            f"{mb:.6g} MB ({_per_weight(mb, budget)}). {_parts(budget)}. {_ways_down(quantizer, budget)}"
        )
    if not mb <= largest:
        raise ValueError(
            f"SizeTarget: the target must be at most {largest:.6g} MB ({_per_weight(largest, budget)}), the size with "
            f"{budget.widths[-1]} bits everywhere, got {mb:.6g} MB ({_per_weight(mb, budget)}). Raise max_bits "
            f"(now {quantizer.max_bits:g}), or quantise less (exclude, min_size)"
        )


def _per_weight(mb: float, budget: BitBudget) -> str:
    return f"{mb * BITS_PER_MB / max(budget.count, 1):.4g} bits per weight"


def _parts(budget: BitBudget) -> str:
    levels = budget.quantised * budget.widths[0] / BITS_PER_MB
    ranges, rest = (budget.fixed - budget.plain) / BITS_PER_MB, budget.plain / BITS_PER_MB
    return (
        f"The smallest size has {levels:.6g} MB for {budget.quantised:,} weights at {budget.widths[0]} bits, "
        f"{ranges:.6g} MB for their ranges, and {rest:.6g} MB for {budget.count - budget.quantised:,} parameters that "
        "are not quantised"
    )


def _ways_down(quantizer: Any, budget: BitBudget) -> str:
    """What to change, with what it saves, most specific first."""
    ways = []
    if budget.widths[0] > 1:
        saved = budget.quantised * (budget.widths[0] - 1) / BITS_PER_MB
        ways.append(f"lower min_bits (1 bit everywhere saves {saved:.6g} MB)")
    if budget.plain and not quantizer.float16:
        ways.append(
            f"keep the rest in half precision with float16=True (saves {budget.plain / 2 / BITS_PER_MB:.6g} MB)"
        )
    if budget.plain:
        ways.append(f"quantise more of it with a smaller min_size (now {quantizer.min_size:g} MB) or exclude")
    if quantizer.range_scope == "group":
        if not quantizer.short_ranges:
            saved = (budget.fixed - budget.plain) * (1 - 18 / 64) / BITS_PER_MB
            ways.append(f"keep ranges in 16 bits with learn_range=True, short_ranges=True (saves about {saved:.6g} MB)")
        ways.append(f"make ranges fewer with a larger group_size (now {quantizer.group_size}) or range_scope='tensor'")
    return "To reach it: " + "; ".join(ways) if ways else "Nothing that the quantizer can be told makes it smaller"
