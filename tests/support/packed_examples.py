"""The contents of the golden packed files. Run as a script it writes those that are missing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffq_fast import functional
from diffq_fast.packed.coding import CodedTensor
from diffq_fast.packed.contents import PackedContents, write_packed
from diffq_fast.packed.ranges import RangeOptions, ShortRanges
from diffq_fast.packed.tensor import PackedTensor, pack_levels, pack_weight
from diffq_fast.reference.level_code import LevelCode
from diffq_fast.reference.sizes import group_count
from support.paths import DATA


@dataclass
class Example:
    packed: dict[str, PackedTensor | CodedTensor]
    plain: dict[str, Tensor] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    half: set[str] = field(default_factory=set)
    quantizer_info: dict | None = None
    buffers: set[str] = field(default_factory=set)

    def contents(self) -> PackedContents:
        half = {name: self.plain[name].dtype for name in self.half}
        info = self.quantizer_info or {"class": "none", "arguments": {}}
        return PackedContents(self.packed, self.plain, self.ties, half, self.buffers, info)

    def write(self, path: str | Path) -> Path:
        write_packed(path, self.contents())
        return Path(path)


def scattered(count: int, seed: int) -> np.ndarray:
    """float32 multiples of 2^-24 in [-1/2, 1/2), the same on every machine and in every version."""
    mixed = (np.arange(count, dtype=np.uint64) + np.uint64(seed)) * np.uint64(2654435761) % np.uint64(2**32)
    return ((mixed >> np.uint64(8)).astype(np.float64) / 2**24 - 0.5).astype(np.float32)


def example_weight(
    shape: tuple[int, ...],
    widths: list[int] | int,
    group_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    range_scope: str = "tensor",
    seed: int = 0,
    options: RangeOptions | None = None,
) -> PackedTensor:
    """A packed weight of scattered values; the widths are repeated to one per group."""
    count = int(np.prod(shape))
    weight = torch.from_numpy(scattered(count, seed)).reshape(shape).to(dtype)
    cycle = [widths] if isinstance(widths, int) else widths
    per_group = np.resize(np.array(cycle, dtype=np.uint8), group_count(count, group_size))
    scheme = {"group_size": group_size, "range_scope": range_scope, "options": options}
    return pack_weight(weight, torch.from_numpy(per_group), **scheme)


def documented() -> Example:
    """Section 9 of docs/packed_format.md."""
    weight = torch.tensor([[0, 1, 2], [3, 0.5, 3]])
    packed = pack_weight(weight, torch.tensor([2, 3], dtype=torch.uint8), group_size=4)
    info = {"class": "DiffQuantizer", "arguments": {"group_size": 4}}
    return Example({"w": packed}, {"b": torch.tensor([0.25])}, {"v": "w"}, {"b"}, info)


def kinds() -> Example:
    """Every width, coding, dtype, scope and kind of tensor; blocks of 1,024 and ragged ends."""
    packed = {
        "all_widths": example_weight((16, 81), list(range(1, 17)), 8),
        "blocks.weight": example_weight((2100,), [3, 3, 3, 3, 4], 7, seed=1),
        "fixed": example_weight((90, 13), [9, 2, 5, 2, 7, 3], 4, seed=2),
        "runs": example_weight((999,), [4] * 60 + [11] * 40, 8, seed=3),
        "long_runs": example_weight((4500,), [2] * 2500 + [1] * 2000, 1, seed=4),
        "one_group": example_weight((5, 7), 6, 0, seed=5),
        "per_group": example_weight((7, 9), [4, 8], 8, range_scope="group", seed=6),
        "half.weight": example_weight((40,), [5, 12], 8, dtype=torch.float16, seed=7),
        "brain.weight": example_weight((41,), [5, 16], 8, dtype=torch.bfloat16, seed=8),
        "constant": pack_weight(torch.full((3, 5), -0.75), torch.tensor([3], dtype=torch.uint8), group_size=0),
        "empty": example_weight((0, 4), 5, 8),
        "scalar": example_weight((), 5, 8, seed=9),
    }
    plain = {
        "bias": torch.from_numpy(scattered(9, 10)),
        "fine": torch.from_numpy(scattered(3, 11)).double(),
        "brain.bias": torch.from_numpy(scattered(5, 12)).bfloat16(),
        "norm.running_mean": torch.from_numpy(scattered(4, 13)),
        "norm.num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([[True, False], [False, True]]),
        "größe": torch.arange(3, dtype=torch.int16),
        "nothing": torch.empty(0, 2),
    }
    info = {"class": "DiffQuantizer", "arguments": {"group_size": 8, "min_bits": 2.5, "float16": True}}
    ties = {"head.weight": "fixed", "head.bias": "bias"}
    buffers = {"norm.running_mean", "norm.num_batches_tracked", "mask"}
    return Example(packed, plain, ties, {"bias", "fine", "brain.bias"}, info, buffers)


def even_and_scaled() -> Example:
    """Levels in a number that is no power of two, and indices times a scale."""
    levels = torch.from_numpy((scattered(1100, 1) + 0.5) * 776).to(torch.int32)
    few = torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.int32)
    found = torch.tensor([-0.375, 1.1])
    packed = {
        "even": pack_levels(levels, 10, found, dtype=torch.float32, level_count=776),
        "even.few": pack_levels(few, 2, found, dtype=torch.float16, level_count=3),
        "scaled": pack_levels(
            levels.remainder(16), 4, torch.tensor([0.0371]), dtype=torch.float32, range_scope="scale"
        ),
        "scaled.down": pack_levels(few, 2, torch.tensor([-1.7]), dtype=torch.bfloat16, range_scope="scale"),
    }
    return Example(
        packed, {"bias": torch.from_numpy(scattered(9, 10))}, quantizer_info={"class": "LSQ", "arguments": {}}
    )


def coded_example(
    shape: tuple[int, ...],
    streams: list[tuple[Tensor, LevelCode]],
    group_size: int,
    *,
    widths: list[int] | int = 1,
    ranges: list[float] | None = None,
    scheme: tuple[str, int | None] = ("steps", None),
    dtype: torch.dtype = torch.float32,
) -> CodedTensor:
    """A coded weight of the given streams; the widths, or classes, are repeated to one per group."""
    count = int(np.prod(shape))
    coded = torch.cat([torch.empty(0, dtype=torch.int16), *(functional.encode_levels(*stream) for stream in streams)])
    coded = torch.nn.functional.pad(coded, (0, max(-(-count // 512) - len(coded), 0)))
    cycle = [widths] if isinstance(widths, int) else widths
    per_group = np.resize(np.array(cycle, dtype=np.uint8), group_count(count, group_size))
    found = torch.tensor(ranges or [])
    return CodedTensor(coded, torch.from_numpy(per_group), found, shape, dtype, group_size, *scheme)


def cubed(count: int, most: int, seed: int) -> Tensor:
    """int32 levels from -most to most, most of them near zero."""
    return torch.from_numpy(np.rint((2 * scattered(count, seed)).astype(np.float64) ** 3 * most)).to(torch.int32)


def coded() -> Example:
    """Tables, low bits, escapes, lanes and blocks of coded levels, with steps and with every kind of range."""
    one, wide = LevelCode(0, 0), LevelCode(-16, 5)
    table = LevelCode(-2, 0, (300, 700, 2000, 700, 300, 96), escape=True)
    sparse, few = LevelCode(0, 0, (3800, 196, 100), escape=True), LevelCode(-1, 0, (50, 4000, 46), block_bits=19)
    fine = LevelCode(-300, 3, tuple([96] + [50] * 80))
    codes = torch.arange(40, dtype=torch.int32) % 7 - 90
    far = cubed(2400, 40, 20)
    far[[5, 1000, 2399]] = torch.tensor([32767, -32767, 3], dtype=torch.int32)
    classes = cubed(995, 30, 21)
    in_one = (torch.arange(995) // 7) % 2 == 0
    packed = {
        "steps": coded_example((40, 60), [(codes, LevelCode(-90, 3)), (far, table)], 60),
        "classes": coded_example(
            (5, 199),
            [
                (torch.full((143,), -160), LevelCode(-160, 0)),
                (classes[in_one].clamp(-16, 15), wide),
                (classes[~in_one], table),
            ],
            7,
            widths=[1, 9],
            dtype=torch.float16,
        ),
        "fine": coded_example((4000,), [(torch.tensor([33]), LevelCode(33, 0)), (cubed(4000, 300, 22), fine)], 0),
        "blocks": coded_example(
            (140001,),
            [(torch.tensor([-5]), LevelCode(-5, 0)), (cubed(140001, 1, 23) * (torch.arange(140001) % 3 == 0), sparse)],
            0,
        ),
        "few": coded_example(
            (300, 1),
            [(torch.arange(300) // 100, LevelCode(0, 0, (1365, 1366, 1365))), (cubed(300, 1, 28), few)],
            1,
        ),
        "zero": coded_example((30, 50), [(torch.tensor([0]), one), (torch.zeros(1500, dtype=torch.int32), one)], 0),
        "empty": coded_example((0, 4), [], 8),
        "widths": coded_example(
            (10, 17),
            [(cubed(90, 4, 24).clamp(-4, 3), LevelCode(-4, 3)), (cubed(80, 7, 25), LevelCode(-8, 1, (*[512] * 8,)))],
            10,
            widths=[3, 4],
            ranges=[-0.5, 0.75],
            scheme=("tensor", None),
            dtype=torch.bfloat16,
        ),
        "counted": coded_example(
            (70,),
            [(cubed(70, 300, 26) - 130, LevelCode(-512, 10))],
            0,
            widths=10,
            ranges=[0.0, 1.0],
            scheme=("tensor", 776),
        ),
        "scaled": coded_example(
            (9, 9), [(cubed(81, 8, 27).clamp(max=7), table)], 0, widths=4, ranges=[-0.37], scheme=("scale", None)
        ),
        "fixed": example_weight((9, 13), [9, 2, 5], 4, seed=2),
    }
    return Example(packed, {"bias": torch.from_numpy(scattered(9, 10))}, {"tied": "steps"})


def short_ranges() -> Example:
    """Ranges of groups in 16 bits: units for one group, some, and all; every kind of weight that may have them."""
    kinds = {
        "each": ((7, 9), [4, 8], 8, 1, torch.float32),
        "some": ((40, 33), 3, 16, 5, torch.float16),
        "all": ((500,), [2, 5], 7, 1 << 30, torch.bfloat16),
        "one": ((3, 3), 6, 0, 4, torch.float32),
        "empty": ((0, 4), 5, 8, 2, torch.float32),
    }
    packed: dict[str, PackedTensor | CodedTensor] = {
        name: example_weight(
            shape, widths, size, dtype=dtype, range_scope="group", seed=30, options=RangeOptions(groups_per_unit=units)
        )
        for name, (shape, widths, size, units, dtype) in kinds.items()
    }
    zeros = torch.zeros(20)
    zeros[:5] = torch.tensor([1, -2, 3, 0.5, -0.5])
    width = torch.full((4,), 3, dtype=torch.uint8)
    options = RangeOptions(groups_per_unit=2)
    packed["zeros"] = pack_weight(zeros, width, group_size=5, range_scope="group", options=options)
    codes, units = torch.tensor([[-127, 127], [3, 3], [-5, 90]], dtype=torch.int8), torch.tensor([0.25, 3.0])
    short = ShortRanges(codes, units, 2)
    levels = LevelCode(-4, 3)
    packed["coded"] = replace(
        coded_example((60,), [(cubed(60, 4, 31).clamp(-4, 3), levels)], 20, widths=3, scheme=("group", None)),
        ranges=short.ranges(),
        short=short,
    )
    return Example(packed, {"bias": torch.from_numpy(scattered(9, 10))}, {"tied": "each"})


GOLDEN = {
    "packed_v1_documented": documented,
    "packed_v1_kinds": kinds,
    "packed_v1_even_and_scaled": even_and_scaled,
    "packed_v2_coded": coded,
    "packed_v2_short_ranges": short_ranges,
}

if __name__ == "__main__":
    for name, example in GOLDEN.items():
        if (DATA / f"{name}.safetensors").exists():
            continue  # golden files are written once
        print(example().write(DATA / f"{name}.safetensors"))
