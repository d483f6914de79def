"""Random arguments for :mod:`random_calls`, most of them fitting one another."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import torch

import diffq_fast.functional as functional

COUNTS = (0, 1, 7, 8, 9, 31, 33, 64, 100, 1023, 1025, 3000)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.int64)
SIZES = (0, 1, 2, 4, 7, 8, 16, 100, 8, 8, 8, 8, -1, -8, -1024, -(2**63), 2**31, 2**62, 2**63 - 1, 2**63, 10**30)
COUNTS_OUT_OF_RANGE = (-1, -1024, -(2**62), -(2**63), 2**40, 2**60, 2**62, 2**63 - 1, 2**63)
ODD_FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45)


class Arguments:
    """Those of one call: group size, scope and count are the same for all of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.group_size = self.random.choice(SIZES)
        self.scope = self.random.choice(("tensor", "tensor", "group", "channel"))
        self.count = self.random.choice(COUNTS)

    def often(self, usual: Any, *others: Any) -> Any:
        return usual if self.random.random() < 0.85 else self.random.choice(others)

    def integer(self, usual: int, *others: int) -> int:
        """``usual`` mostly; else one of the others, or one that no tensor is as large as."""
        return self.often(usual, *others, self.random.choice(COUNTS_OUT_OF_RANGE))

    def mostly(self, usual: Any, *others: Any) -> Any:
        return usual if self.random.random() < 0.98 else self.random.choice(others)

    def tensor(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        dtype = self.often(dtype, *DTYPES, torch.bool, torch.complex64)
        count = max(self.often(count, count + 1, count - 1, 0, 2 * count), 0)
        made = torch.randint(0, 300, (count,)) if dtype in DTYPES[4:] else torch.randn(count) * 10
        made = made.to(dtype)
        if self.random.random() < 0.03 and count and dtype.is_floating_point:
            made[self.random.randrange(count)] = self.random.choice(ODD_FLOATS)
        return self.form(made)

    def form(self, made: torch.Tensor) -> torch.Tensor:
        """The same values laid out in another way, or on another device."""
        form, count = self.random.random(), made.numel()
        if form < 0.05:
            return made.repeat_interleave(2)[::2]  # not contiguous
        if form < 0.1 and count % 2 == 0:
            return made.reshape(2, -1).t()
        if form < 0.12 and count:
            return made[:1].expand(count)
        if form < 0.14 and made.dtype == torch.float32:
            return torch.complex(torch.zeros(count), made).conj().imag  # negated when it is read
        return made.to("meta") if form < 0.15 else made

    @property
    def groups(self) -> int:
        size = self.group_size if self.group_size > 0 else max(self.count, 1)
        return -(-self.count // size)

    def weight(self) -> torch.Tensor:
        made = self.tensor(self.count, torch.float32)
        return made if made.is_meta else self.mostly(made, made.to_sparse())

    def logits(self) -> torch.Tensor:
        return self.tensor(self.groups, torch.float32)

    def widths(self) -> torch.Tensor:
        made = torch.randint(1, self.often(17, 20), (self.groups,), dtype=torch.uint8)
        return self.mostly(self.often(made, made.to(torch.int32), made[1:], made + 20, made * 0), made.to("meta"))

    def found(self) -> torch.Tensor:
        rows = self.groups if self.scope == "group" else 1
        made = torch.tensor([[-1.0, 1.0]]).repeat(rows, 1)
        odd = torch.tensor([[self.random.choice(ODD_FLOATS), self.random.choice(ODD_FLOATS)]]).repeat(rows, 1)
        return self.often(made, torch.zeros(rows, 2), torch.zeros(rows, 3), odd, made.double(), made.to("meta"), -made)

    def levels(self) -> torch.Tensor:
        made = torch.randint(0, 2, (self.count,), dtype=torch.int32)
        return self.form(self.often(made, made * 70000, -made, made * (2**31 - 1), made.to(torch.int16), made[1:]))

    def words(self, widths: torch.Tensor | None = None) -> torch.Tensor:
        words = self.random.choice((0, 1, 8, 64, 1000))
        with suppress(TypeError, ValueError):
            right = functional.packed_word_count(
                self.widths() if widths is None else widths, self.count, self.group_size
            )
            words = self.often(right, right - 1, right + 1, words)
        made = torch.randint(-(2**31), 2**31 - 1, (max(words, 0),))
        return self.form(made.to(self.often(torch.int32, torch.int64, torch.int16)))

    def key(self) -> torch.Tensor:
        return self.often(torch.tensor(5), torch.zeros(2), torch.tensor(1.5), torch.tensor(5, device="meta"))

    def kind(self) -> str:
        return self.often("uniform", "gaussian", "normal")

    def bounds(self) -> dict[str, Any]:
        low, high = self.often((2, 15), (0, 5), (5, 2), (1e-3, 30), (-1, 4), (3, 3), (2, 1e6), (2, float("inf")))
        return {"min_bits": low, "max_bits": high, "param": self.often("bits", "noise", "levels")}

    def shape(self) -> tuple[int, ...]:
        count = self.count
        wrapping = (5, (2**64 + max(count, 1) // 5 * 5) // 5)  # a product that is small modulo 2**64
        return self.often((count,), (count, 1), (-1,), (2**40, 2**40), (0, 2**62, 4), (2**70,), wrapping)
