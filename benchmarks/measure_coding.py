"""Bytes and speed of coded levels beside pcodec and zstandard; writes ``results/coding_*.json``.

    pip install -e '.[coders]'
    python benchmarks/measure_coding.py [model.safetensors ...]

Levels: bell-shaped ones of several rates, and, for each file that is given, those of its matrices with a step of half
of each row's deviation. One thread, except where it is said; CPU time, so that a busy machine matters less. Bytes are
compared with the entropy of all levels of a tensor taken as one source (of order 0).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pcodec
import torch
import zstandard
from harness import machine_name, store
from torch import Tensor

from diffq_fast import functional
from diffq_fast.backends.cpu.loading import core

COUNT = 1 << 22
SECONDS = 1.0


def bells() -> dict[str, list[Tensor]]:
    """Gaussian and heavier-tailed levels, by the entropy that they have."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(COUNT, generator=generator)
    tailed = normal * torch.exp(0.6 * torch.randn(COUNT, generator=generator))
    made = {}
    for name, source in (("gaussian", normal), ("heavy tails", tailed)):
        for deviation in (0.25, 0.5, 1.0, 2.0, 8.0):
            made[f"{name}, step = deviation / {deviation:g}"] = [
                (source * deviation).round().clamp(-32767, 32767).int()
            ]
    return made


def entropy_bytes(levels: Tensor) -> float:
    counts = torch.bincount(levels - levels.min())
    counts = counts[counts > 0].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum()) / 8


class Coder:
    """Bytes of levels, and back to what the coder's user gets: integers of 8, 16 or 32 bits."""

    def __init__(
        self, name: str, encode: Callable[[Tensor], Any], decode: Callable[[Any, int], Any], size: Callable
    ) -> None:
        self.name, self.encode, self.decode, self.size = name, encode, decode, size


def integers(levels: Tensor) -> np.ndarray:
    """The smallest integers that hold the levels."""
    narrow = int(levels.abs().max()) < 128
    return levels.numpy().astype(np.int8 if narrow else np.int16)


def coders() -> list[Coder]:
    def ours(levels: Tensor) -> Tensor:
        return functional.encode_levels(levels)

    def pco(levels: Tensor) -> bytes:
        return pcodec.standalone.simple_compress(levels.numpy().astype(np.int16), pcodec.ChunkConfig())

    made = [
        Coder("diffq_fast", ours, functional.decode_levels, lambda words: 2 * len(words)),
        Coder("pcodec", pco, lambda data, _: pcodec.standalone.simple_decompress(data), len),
    ]
    for level in (3, 19):
        pack, unpack = zstandard.ZstdCompressor(level), zstandard.ZstdDecompressor()
        made.append(
            Coder(
                f"zstd -{level}",
                lambda levels, pack=pack: pack.compress(integers(levels).tobytes()),
                lambda data, _, unpack=unpack: unpack.decompress(data),
                len,
            )
        )
    return made


def best_time(run: Callable[[], Any], seconds: float = SECONDS) -> float:
    """The least CPU time of a call."""
    least, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or least == math.inf:
        start = time.process_time()
        run()
        least = min(least, time.process_time() - start)
    return least


def check(coder: Coder, data: Any, levels: Tensor) -> None:
    made = coder.decode(data, len(levels))
    if isinstance(made, bytes):
        made = np.frombuffer(made, dtype=integers(levels).dtype)
    assert np.array_equal(np.asarray(made), levels.numpy()), coder.name


def measure(name: str, tensors: list[Tensor]) -> dict[str, Any]:
    count, entropy = sum(map(len, tensors)), sum(map(entropy_bytes, tensors))
    row: dict[str, Any] = {"levels": count, "entropy_bits": 8 * entropy / count, "coders": {}}
    for coder in coders():
        encoded = [coder.encode(each) for each in tensors]
        for data, levels in zip(encoded, tensors, strict=True):
            check(coder, data, levels)
        size = sum(map(coder.size, encoded))

        def encode(coder: Coder = coder) -> None:
            for each in tensors:
                coder.encode(each)

        def decode(coder: Coder = coder, encoded: list[Any] = encoded) -> None:
            for data, levels in zip(encoded, tensors, strict=True):
                coder.decode(data, len(levels))

        row["coders"][coder.name] = {
            "bits": 8 * size / count,
            "over_entropy": size / entropy - 1 if entropy else None,
            "encode_per_second": count / best_time(encode),
            "decode_per_second": count / best_time(decode),
        }
    if core is not None:
        row["decode_per_second_by_instruction_set"] = by_instruction_set(tensors)
    print(name, f"{row['entropy_bits']:.3f} bits", flush=True)
    for coder_name, got in row["coders"].items():
        print(
            f"    {coder_name:<12}{got['bits']:8.3f} bits {100 * got['over_entropy']:+7.2f} % "
            f"{got['encode_per_second'] / 1e6:7.0f} M/s in {got['decode_per_second'] / 1e6:7.0f} M/s out"
        )
    return row


def by_instruction_set(tensors: list[Tensor]) -> dict[str, float]:
    used, made = core.instruction_set(), {}
    encoded = [functional.encode_levels(each) for each in tensors]
    for each in core.instruction_sets():
        core.use_instruction_set(each)

        def decode() -> None:
            for words, levels in zip(encoded, tensors, strict=True):
                functional.decode_levels(words, len(levels))

        made[each] = sum(map(len, tensors)) / best_time(decode)
    core.use_instruction_set(used)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = bells() | {path.name: file_levels(path) for path in arguments.files}
    results = {name: measure(name, tensors) for name, tensors in cases.items()}
    versions = {"pcodec": "1.1.0", "zstandard": zstandard.__version__}
    print(store(f"coding_{machine_name()}", {"versions": versions, "cases": results}))


def file_levels(path: Path) -> list[Tensor]:
    """Levels of every matrix of a safetensors file, with steps of half of each row's deviation."""
    from diffq_fast.packed.checkpoint import open_checkpoint

    levels = []
    with open_checkpoint(path) as checkpoint:
        for name, entry in checkpoint.header.tensors.items():
            if len(entry.shape) != 2 or checkpoint.count(name) < 4096 or not checkpoint.packable(name):
                continue
            weight = checkpoint.tensor(name).float()
            steps = functional.steps_from_codes(functional.codes_from_steps(weight.std(1).clamp(min=1e-9) / 2))
            levels.append((weight / steps[:, None]).round().clamp(-32767, 32767).int().reshape(-1))
    return levels


if __name__ == "__main__":
    main()
