"""Calls the public functions with random arguments, right and wrong ones: each answers or raises a clear error.

    python tests/random_calls.py [calls] [seed]

A crash, or an error of another kind, ends it with the call that made it. For the sanitizer build, see CONTRIBUTING.md.
"""

from __future__ import annotations

import contextlib
import random
import sys
from typing import Any

import torch

import diffq_fast.functional as functional
from diffq_fast import bitpack, torch_pack

EXPECTED = (TypeError, ValueError)
COUNTS = (0, 1, 7, 8, 9, 31, 33, 64, 100, 1023, 1025, 3000)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.int64)


class Arguments:
    """Random arguments, most of them fitting one another."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.group_size = self.random.choice((0, 1, 2, 4, 7, 8, 16, 100, -1, 8, 8))
        self.scope = self.random.choice(("tensor", "tensor", "group", "channel"))
        self.count = self.random.choice(COUNTS)

    def often(self, usual: Any, *others: Any) -> Any:
        return usual if self.random.random() < 0.85 else self.random.choice(others)

    def tensor(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        dtype = self.often(dtype, *DTYPES)
        count = max(self.often(count, count + 1, count - 1, 0, 2 * count), 0)
        made = torch.randn(count) * 10 if dtype.is_floating_point else torch.randint(0, 300, (count,))
        made = made.to(dtype)
        form = self.random.random()
        if form < 0.05:
            made = made.repeat_interleave(2)[::2]  # not contiguous
        elif form < 0.1 and count % 2 == 0:
            made = made.reshape(2, -1).t()
        if form > 0.97 and count and dtype.is_floating_point:
            made.view(-1)[0] = self.random.choice((float("nan"), float("inf"), -float("inf")))
        return made

    @property
    def groups(self) -> int:
        size = self.group_size if self.group_size > 0 else max(self.count, 1)
        return -(-self.count // size)

    def weight(self) -> torch.Tensor:
        return self.tensor(self.count, torch.float32)

    def logits(self) -> torch.Tensor:
        return self.tensor(self.groups, torch.float32)

    def widths(self) -> torch.Tensor:
        made = torch.randint(1, self.often(17, 20), (self.groups,), dtype=torch.uint8)
        return self.often(made, made.to(torch.int32), made[1:], made + 20)

    def found(self) -> torch.Tensor:
        rows = self.groups if self.scope == "group" else 1
        return self.often(torch.tensor([[-1.0, 1.0]]).repeat(rows, 1), torch.zeros(rows, 2), torch.zeros(rows, 3))

    def levels(self) -> torch.Tensor:
        made = torch.randint(0, 2, (self.count,), dtype=torch.int32)
        return self.often(made, made * 70000, -made, made.to(torch.int16), made[1:])

    def words(self) -> torch.Tensor:
        words = self.random.choice((0, 1, 8, 64, 1000))
        with contextlib.suppress(*EXPECTED):
            words = self.often(functional.packed_word_count(self.widths(), self.count, self.group_size), words)
        return torch.randint(-(2**31), 2**31 - 1, (max(words, 0),)).to(self.often(torch.int32, torch.int64))


def call(a: Arguments) -> None:
    """One of the functions."""
    size = {"group_size": a.group_size}
    both = {"group_size": a.group_size, "range_scope": a.scope}
    key = a.often(torch.tensor(5), torch.zeros(2), torch.tensor(1.5))
    kind = a.often("uniform", "gaussian", "normal")
    choice = a.random.randrange(12)
    if choice == 0:
        functional.weight_range([a.weight(), a.weight()], **both)
    elif choice == 1:
        functional.noise(key, a.often(3, -1, 2**40), a.often(a.count, -1), first=a.often(0, 5, -3), noise=kind)
    elif choice == 2:
        dtype = a.often(None, *DTYPES)
        functional.add_noise([a.weight()], [a.logits()], key, noise=kind, dtype=dtype, **both)
    elif choice == 3:
        functional.quantize([a.weight()], [a.widths()], a.found(), **both)
    elif choice == 4:
        functional.quantize_pack(a.weight(), a.widths(), a.found(), **both)
    elif choice == 5:
        functional.pack(a.levels(), a.widths(), **size)
    elif choice == 6:
        functional.unpack(a.words(), a.widths(), a.often(a.count, -1, 10**6), **size)
    elif choice == 7:
        shape = a.often((a.count,), (a.count, 1), (-1,), (2**40, 2**40))
        functional.unpack_dequantize(a.words(), a.widths(), a.found(), shape, **both)
    elif choice == 8:
        functional.dequantize([a.levels()], [a.widths()], a.found(), **both)
    elif choice == 9:
        functional.quantize_planes(a.weight(), a.widths(), a.found(), **size)
    elif choice == 10:
        rows, columns = a.often(64, 8, 16, 32, 5), a.often(32, 1, 70, 0, -1)
        planes = functional.pack_planes(a.levels(), a.often(3, 0, 16, 17, -1), rows=rows, columns=columns)
        functional.unpack_planes(planes, a.often(a.count, -1, 10**7))
    else:
        packer = a.random.choice((bitpack, torch_pack))
        packer.unpack(packer.pack(a.levels(), a.often(0, 4, 20)), a.often(a.count, -1, 10**7))


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(2)
    refused = 0
    for seed in range(first, first + calls):
        torch.manual_seed(seed)
        try:
            call(Arguments(seed))
        except EXPECTED as error:
            if "unexpected keyword" in str(error):  # a mistake of this script
                raise
            refused += 1
        except Exception:
            print(f"seed {seed}", file=sys.stderr)
            raise
    print(f"{calls} calls, {refused} of them refused")
    assert 0 < refused < calls


if __name__ == "__main__":
    main()
