"""Products with packed weights beside float32's, and memory beside the file; writes ``results/packed_linear_*.json``.

    pip install -e '.[runtimes]'
    pip install --no-deps pywhispercpp
    python benchmarks/measure_packed_linear.py

Eight layers of 4096 x 4096 of each kind take turns, so that none stays in the cache, and so do all kinds and libraries,
call by call; one thread. Of the times of each, the least: that of no interruption, where other work shares the
machine. "times" is float32's, of ``torch.nn.functional.linear``, over a packed one's. Other libraries, those that are
installed, stand beside the layers of one width.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import Variant, machine_name, store, time_variants
from packed_linear_peers import GROUP, Peer, installed
from torch import Tensor, nn

import diffq_fast
from diffq_fast import functional
from diffq_fast.functional import PackedRows, RowForm
from diffq_fast.reference.packed_rows import ACTIVATIONS, round_activations
from diffq_fast.runtime.weight import PackedWeight

SIZE, LAYERS, VECTORS = 4096, 8, (1, 8, 64)
# name: segment, a scale for each group of so many elements (0: one scale), widths that occur
CASES = {
    "4 bits, groups of 64": (64, 64, (4,)),
    "2 bits, groups of 64": (64, 64, (2,)),
    "1 to 8 bits, groups of 64": (64, 64, (1, 2, 3, 4, 5, 6, 7, 8)),
    "4 and 5 bits, groups of 64": (64, 64, (4, 5)),
    "4 bits, one scale a row": (SIZE, SIZE, (4,)),
    "4 bits, groups of 8, one scale": (8, 0, (4,)),
    "2 to 6 bits, groups of 8, one scale": (8, 0, (2, 3, 4, 5, 6)),
}
ROWS_AT_ONCE = 512


def layer(segment: int, group_size: int, widths: tuple[int, ...]) -> PackedRows:
    """Random levels; as many groups of each width."""
    parts = []
    width_of = torch.tensor(widths, dtype=torch.uint8)[torch.randint(len(widths), (SIZE, SIZE // segment))]
    for some in width_of.split(ROWS_AT_ONCE):
        top = (1 << some.int()).repeat_interleave(segment, 1)
        parts.append(functional.pack_rows((torch.rand(top.shape) * top).int(), some, segment))
    parts_of_data = [data[:-16] for data, _, _ in parts[:-1]] + [parts[-1][0]]
    begins = itertools.accumulate((len(data) // 4 for data in parts_of_data[:-1]), initial=0)
    starts = torch.cat([part[1][:-1] + begin for part, begin in zip(parts, begins, strict=True)] + [torch.zeros(1)])
    groups = SIZE * SIZE // group_size if group_size else 1
    form = RowForm(SIZE, segment, group_size, False, 0)
    found = torch.cat([part[2] for part in parts])
    return PackedRows(torch.cat(parts_of_data), starts.int(), found, torch.rand(groups), torch.randn(groups), form)


def checked(rows: PackedRows, vectors: Tensor, activations: str) -> None:
    weight = functional.unpack_rows(torch.arange(16), rows)
    products = functional.packed_linear(vectors, rows, activations=activations)[:, :16]
    given = vectors if activations == "float" else round_activations(vectors)
    expected = given @ weight.mT
    error = float((products - expected).norm() / expected.norm())  # an input half-way between two numbers may be either
    assert error < 1e-4, f"the product is wrong by {error:.2g}"


def packed_variant(layers: list[PackedRows], inputs: Tensor, activations: str) -> Variant:
    turns = itertools.cycle(layers)
    return Variant(
        "packed" if activations == "float" else f"packed, {activations}",
        lambda: functional.packed_linear(inputs, next(turns), activations=activations),
        lambda: checked(layers[0], inputs, activations),
    )


def peer_variant(name: str, layers: list[Peer], inputs: Tensor) -> Variant:
    turns = itertools.cycle(layers)
    return Variant(name, lambda: next(turns).run(inputs), lambda: layers[0].check(inputs))


class Case:
    """Eight layers of one kind, and of each library that has such a kind."""

    def __init__(self, segment: int, group_size: int, widths: tuple[int, ...]) -> None:
        first = layer(segment, group_size, widths)
        self.layers = [PackedRows(*(part.clone() for part in first[:5]), first.form) for _ in range(LAYERS)]
        self.peers: dict[str, list[Peer]] = {}
        if (segment, group_size, len(widths)) == (GROUP, GROUP, 1):
            made = installed(widths[0]).items()
            self.peers = {name: [peer(SIZE, widths[0]) for _ in range(LAYERS)] for name, peer in made}

    @property
    def bits(self) -> float:
        return 8 * sum(part.numel() * part.element_size() for part in self.layers[0][:5]) / SIZE**2

    def variants(self, inputs: Tensor) -> list[Variant]:
        own = [packed_variant(self.layers, inputs, activations) for activations in ACTIVATIONS]
        return own + [peer_variant(name, layers, inputs) for name, layers in self.peers.items()]


def products(seconds: float) -> dict[str, Any]:
    """Of all cases, which take turns call by call: each is compared with float32, and with the other cases."""
    floats = [torch.randn(SIZE, SIZE) for _ in range(LAYERS)]
    cases = {name: Case(*kind) for name, kind in CASES.items()}
    found: dict[str, Any] = {name: {"bits": case.bits} for name, case in cases.items()}
    for count in VECTORS:
        inputs, plain = torch.randn(count, SIZE), itertools.cycle(floats)
        variants = {name: case.variants(inputs) for name, case in cases.items()}
        names = {name: [each.name for each in some] for name, some in variants.items()}
        everything = [replace(each, name=f"{name}: {each.name}") for name, some in variants.items() for each in some]
        float32 = Variant("float32", lambda inputs=inputs, plain=plain: nn.functional.linear(inputs, next(plain)))
        times = time_variants([*everything, float32], seconds, least=2 * LAYERS)
        once = times["float32"]["least"]
        for name, ways in names.items():
            took = {way: times[f"{name}: {way}"]["least"] for way in ways}
            faster = {way: once / each for way, each in took.items()}
            found[name][f"{count} vectors"] = {"seconds": took | {"float32": once}, "times": faster}
    return found


def show(cases: dict[str, Any]) -> None:
    for name, case in cases.items():
        print(f"{name}, {case['bits']:.2f} bits: times over float32 at {', '.join(map(str, VECTORS))} vectors")
        for way in case[f"{VECTORS[0]} vectors"]["times"]:
            figures = [case[f"{count} vectors"]["times"][way] for count in VECTORS]
            print(f"    {way:<44}" + "".join(f"{figure:8.2f}" for figure in figures), flush=True)


def memory() -> dict[str, Any]:
    """A trained-like layer of each quantizer: bytes in memory over those of the file."""
    found = {}
    for name, attach in {
        "DiffQ, groups of 8": lambda model: diffq_fast.DiffQuantizer(model, group_size=8),
        "DiffQ, groups of 64": lambda model: diffq_fast.DiffQuantizer(model, group_size=64),
        "LSQ": diffq_fast.LSQ,
        "Rate": diffq_fast.RateQuantizer,
    }.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1024, 1024, bias=False))
        quantizer: Any = attach(model)
        model.eval()
        if isinstance(quantizer, diffq_fast.DiffQuantizer):
            for logits in quantizer.learned_parameters():
                nn.init.normal_(logits, -1.5, 0.5)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            diffq_fast.save(quantizer, path, coding="auto")
            loaded = diffq_fast.load(path, nn.Sequential(nn.Linear(1024, 1024, bias=False)), packed=True)
            size = os.path.getsize(path)
        held = sum(module.bytes for module in loaded.modules() if isinstance(module, PackedWeight))
        found[name] = {"file_bytes": size, "memory_bytes": held, "memory_over_file": held / size}
        print(f"{name:<24}{size:>10,} bytes on disk, {held:>10,} in memory: {held / size:.3f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way at each number of vectors")
    parser.add_argument("--name", help="of the machine, in the name of the file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = products(given.seconds)
    show(cases)
    print(store(f"packed_linear_{given.name or machine_name()}", {"products": cases, "memory": memory()}))


if __name__ == "__main__":
    main()
