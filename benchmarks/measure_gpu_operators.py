"""The training operators on a GPU: G1-G7, G9 and G10 of the targets. ``python measure_gpu_operators.py
FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gpu_peers
import torch
from gpu_timing import host_milliseconds, interleaved, launches, peak_bytes, print_rows, row, store
from torch import Tensor

import diffq_fast.functional  # noqa: F401  (registers the operators)
from diffq_fast.backends import default
from diffq_fast.backends.triton.add_noise import add_noise_backward, noisy_weights
from diffq_fast.reference.options import NoiseOptions

DEVICE = "cuda"
GROUP_SIZE = 8
LARGE = (104, 2**20)
SMALL = (300, 2**14)
# Weights for the one launch: this many megabytes each, 256 MB in all. ``plot_gpu.py`` shows the first.
MEGABYTES, BUCKET_WEIGHTS = (16, 1, 4, 64), 2**26


def options(noise_kind: str) -> NoiseOptions:
    return NoiseOptions(GROUP_SIZE, noise_kind=noise_kind)


class Bucket:
    """Weights, logits and gradients of ``number`` tensors of ``count`` elements, and the passes over them."""

    def __init__(self, number: int, count: int) -> None:
        torch.manual_seed(0)
        make = {"device": DEVICE}
        self.weights = [torch.randn(count, **make).requires_grad_() for _ in range(number)]
        self.logits = [torch.randn(count // GROUP_SIZE, **make).requires_grad_() for _ in range(number)]
        self.grads = [torch.randn(count, **make) for _ in range(number)]
        self.half_grads = [grad.bfloat16() for grad in self.grads]
        self.key = torch.tensor(1234567, device=DEVICE)
        self.streams = list(range(number))
        self.total = number * count

    @torch.no_grad()
    def forward(self, noise_kind: str = "uniform", dtype: torch.dtype | None = None, one_launch: bool = False) -> Any:
        lists = self.weights, self.logits, self.key, self.streams
        return noisy_weights(*lists, options(noise_kind), dtype, one_launch)

    def one_launch(self, noise_kind: str = "uniform", dtype: torch.dtype | None = None) -> Any:
        """:meth:`forward` in its other form: tickets instead of a second launch."""
        return self.forward(noise_kind, dtype, one_launch=True)

    @torch.no_grad()
    def backward(self, forward: Any, grads: list[Tensor], noise_kind: str = "uniform") -> Any:
        _, ranges, extremes = forward
        lists = grads, self.weights, self.logits
        return add_noise_backward(
            *lists, ranges, extremes, self.key, self.streams, *options(noise_kind).operator_arguments()
        )

    def step(self, dtype: torch.dtype | None = None) -> None:
        """Forward and backward through autograd; ``dtype``: of noisy weights and gradients, float32 or bfloat16."""
        arguments = self.weights, self.logits, self.key, self.streams, None, *options("uniform").operator_arguments()
        noisy, _, _ = torch.ops.diffq_fast.add_noise(*arguments, dtype)
        grads = self.half_grads if dtype == torch.bfloat16 else self.grads
        torch.autograd.grad(noisy, self.weights + self.logits, grads)

    def cast_step(self) -> None:
        """What autocast makes of a float32 noisy weight: a cast, and one of the gradient in the backward."""
        arguments = self.weights, self.logits, self.key, self.streams, None, *options("uniform").operator_arguments()
        noisy, _, _ = torch.ops.diffq_fast.add_noise(*arguments)
        casts = [weight.bfloat16() for weight in noisy]
        torch.autograd.grad(casts, self.weights + self.logits, self.half_grads)

    def peer_step(self, add_noise: Any, piece: int) -> None:
        """The same through a peer, ``piece`` tensors a call."""
        for first in range(0, len(self.weights), piece):
            part = slice(first, first + piece)
            noisy = add_noise(self.weights[part], self.logits[part], GROUP_SIZE, "uniform")
            torch.autograd.grad(noisy, self.weights[part] + self.logits[part], self.grads[part])

    def check(self) -> None:
        """The first weight against the oracle: no figure without equality."""
        noisy = self.forward()[0][0].cpu()
        lists = [self.weights[0].detach().cpu()], [self.logits[0].detach().cpu()]
        expected = default.add_noise(*lists, self.key.cpu(), [0], None, *options("uniform").operator_arguments())[0][0]
        torch.testing.assert_close(noisy, expected, rtol=0, atol=1e-4)
        for half, full in zip(self.forward(dtype=torch.bfloat16)[0], self.forward()[0], strict=True):
            assert torch.equal(half, full.bfloat16()), "bfloat16 weights are not the float32 ones, rounded"


def passes(bucket: Bucket) -> list[dict[str, Any]]:
    """G1-G4: fractions of the bandwidth of a copy."""
    source, target = torch.empty(bucket.total, device=DEVICE), torch.empty(bucket.total, device=DEVICE)
    forward = bucket.forward()
    half = bucket.half_grads
    times = interleaved(
        {
            "copy": lambda: target.copy_(source),
            "uniform": bucket.forward,
            "gaussian": lambda: bucket.forward("gaussian"),
            "bf16": lambda: bucket.forward(dtype=torch.bfloat16),
            "gaussian bf16": lambda: bucket.forward("gaussian", torch.bfloat16),
            "backward": lambda: bucket.backward(forward, bucket.grads),
            "backward bf16": lambda: bucket.backward(forward, half),
            "backward gaussian": lambda: bucket.backward(forward, bucket.grads, "gaussian"),
        }
    )
    copied = 8 * bucket.total / times["copy"]
    rate = {name: bucket.total / value / copied for name, value in times.items()}
    terabytes = copied / 1e9
    table = [
        ("G1", "forward float32, 12 B/w over copy", 12 * rate["uniform"], 0.85),
        ("G2", "forward to bf16, 10 B/w over copy", 10 * rate["bf16"], 0.80),
        ("G4", "backward float32, 8 B/w over copy", 8 * rate["backward"], 0.75),
        ("G4", "backward from bf16 gradients, 6 B/w over copy", 6 * rate["backward bf16"], 0.75),
    ]
    rows = [row("", "copy of float32, TB/s", terabytes, "", None, milliseconds=times, weights=bucket.total)]
    rows += [row(name, what, value, f">= {ship}", value >= ship) for name, what, value, ship in table]
    for name, suffix in (("forward", ""), ("forward to bf16", " bf16")):
        gaussian = times[f"gaussian{suffix}"] / times[suffix.strip() or "uniform"]
        rows.append(row("G3", f"gaussian over uniform, {name}", gaussian, "<= 1.25", gaussian <= 1.25))
    return rows


def against_casts(bucket: Bucket) -> dict[str, Any]:
    """G2 as training meets it: bfloat16 from the kernel against a float32 noisy weight that autocast casts."""
    times = interleaved({"bf16 step": lambda: bucket.step(torch.bfloat16), "cast step": bucket.cast_step}, rounds=7)
    ratio = times["cast step"] / times["bf16 step"]
    return row("G2", "step with casts of autocast over step in bf16, time", ratio, "> 1", ratio > 1, milliseconds=times)


def one_launch(megabytes: int) -> list[dict[str, Any]]:
    """The two forms of the forward on weights of one size, equal in every bit; whether the one launch pays."""
    bucket = Bucket(256 // megabytes, megabytes * BUCKET_WEIGHTS // 256)
    for one, two in zip(bucket.one_launch()[0], bucket.forward()[0], strict=True):
        assert torch.equal(one, two), "the one launch gives other weights"
    source, target = torch.empty(bucket.total, device=DEVICE), torch.empty(bucket.total, device=DEVICE)
    times = interleaved(
        {
            "copy": lambda: target.copy_(source),
            "two launches": bucket.forward,
            "one launch": bucket.one_launch,
            "two launches, bf16": lambda: bucket.forward(dtype=torch.bfloat16),
            "one launch, bf16": lambda: bucket.one_launch(dtype=torch.bfloat16),
        }
    )
    ratio = times["one launch"] / times["two launches"]
    half = times["one launch, bf16"] / times["two launches, bf16"]
    of_copy = times["copy"] / times["one launch"]
    name = f"{len(bucket.weights)} x {megabytes} MB"
    return [
        row(
            "", f"one launch over two, time, {name}", ratio, "< 1", ratio < 1, milliseconds=times, weights=bucket.total
        ),
        row("", f"the same to bf16, {name}", half, "< 1", half < 1),
        row("G1", f"one launch, 8 B/w over copy, {name}", of_copy, "moon 0.85", of_copy >= 0.85),
    ]


def against_eager(name: str, bucket: Bucket, ship: float) -> dict[str, Any]:
    times = interleaved({"ours": bucket.step, "eager": lambda: bucket.peer_step(gpu_peers.add_noise, 1)}, rounds=7)
    ratio = times["eager"] / times["ours"]
    what = f"forward + backward against eager, {len(bucket.weights)} x {bucket.weights[0].numel()}"
    return row(name, what, ratio, f">= {ship}", ratio >= ship, milliseconds=times)


def against_compiled(bucket: Bucket) -> list[dict[str, Any]]:
    """G7: the best setting of torch.compile that works, 13 tensors a graph."""
    peers, failed = {}, {}
    for setting in gpu_peers.COMPILED:
        torch._dynamo.reset()
        try:
            peer = gpu_peers.compiled_peer(setting)
            times = interleaved({"peer": lambda peer=peer: bucket.peer_step(peer, 13)}, rounds=7)
        except Exception as error:  # a setting that this torch lacks is no result, and no reason to stop
            failed[setting] = f"{type(error).__name__}: {error}"[:200]
            continue
        peers[setting] = times["peer"]
    ours = interleaved({"ours": bucket.step}, rounds=7)["ours"]
    if not peers:
        return [row("G7", "no setting of torch.compile worked", 0.0, ">= 2", None, failed=failed)]
    best = min(peers, key=peers.__getitem__)
    ratio = peers[best] / ours
    what = f"forward + backward against torch.compile ({best})"
    return [row("G7", what, ratio, ">= 2", ratio >= 2, milliseconds=peers | {"ours": ours}, failed=failed)]


def launching(bucket: Bucket) -> list[dict[str, Any]]:
    """G9: launches and host time; whether a graph captures a step."""
    forward = bucket.forward()
    there = launches(bucket.forward)
    back = launches(lambda: bucket.backward(forward, bucket.grads))
    host = host_milliseconds(bucket.step)
    eager = launches(lambda: bucket.peer_step(gpu_peers.add_noise, 1)) / len(bucket.weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bucket.backward(bucket.forward(), bucket.grads)
    replay = interleaved({"graph": graph.replay, "eager": bucket.step})
    return [
        row("G9", "launches forward", there, "<= 2", there <= 2),
        row("G9", "launches forward, one-launch form", launches(bucket.one_launch), "<= 1", None),
        row("G9", "launches backward", back, "<= 2", back <= 2),
        row("G9", "launches of eager diffq's formula, per tensor", eager, "", None),
        row("G9", "host ms, forward + backward of 300 tensors", host, "<= 3", host <= 3),
        row("G9", "graph replay over eager step, time", replay["graph"] / replay["eager"], "works", True),
    ]


def memory(bucket: Bucket) -> list[dict[str, Any]]:
    """G10: bytes per weight at the peak of a forward, beyond the noisy weights themselves."""
    extra = peak_bytes(bucket.forward) / bucket.total - 4
    half = peak_bytes(lambda: bucket.forward(dtype=torch.bfloat16)) / bucket.total - 2
    steps = {"ours": bucket.step, "to bf16": lambda: bucket.step(torch.bfloat16)}
    steps |= {"eager": lambda: bucket.peer_step(gpu_peers.add_noise, len(bucket.weights))}
    peaks = {name: peak_bytes(step) / bucket.total for name, step in steps.items()}
    return [
        row("G10", "extra bytes per weight at the forward's peak", extra, "<= 2", extra <= 2),
        row("G10", "the same to bf16", half, "<= 2", half <= 2),
        row("", "bytes per weight at the peak of a step", peaks["ours"], "", None, **peaks),
    ]


def main() -> None:
    path = Path(sys.argv[1]) / "gpu_operators.json"
    large, small = Bucket(*LARGE), Bucket(*SMALL)
    large.check()
    small.check()
    rows = [*passes(large), against_casts(large), against_eager("G5", large, 6), against_eager("G6", small, 20)]
    rows += [*launching(small), *memory(large)]
    print_rows(rows)
    store(rows, path)
    del small
    for megabytes in MEGABYTES:  # stored apart from what stands already
        forms = one_launch(megabytes)
        print_rows(forms)
        rows += forms
    store(rows, path)
    compiled = against_compiled(large)  # last, and stored apart: compiling may take longer than there is time
    print_rows(compiled)
    store(rows + compiled, path)


if __name__ == "__main__":
    main()
