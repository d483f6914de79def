"""What is timed on a CPU: for each row of the table the variants, their peers, and the bytes that they move.

diffq is run as it is installed, through its quantizer on a module whose forward only returns its weight.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Variant
from torch import Tensor, nn

import diffq_fast
from diffq_fast import bitpack, functional
from diffq_fast.backends import cpu
from diffq_fast.reference import add_noise as add_noise_oracle
from diffq_fast.reference import philox

HAS_PEER = importlib.util.find_spec("diffq") is not None
HAS_BITSHUFFLE = importlib.util.find_spec("bitshuffle") is not None


class Holder(nn.Module):
    """A module that is only its weight."""

    def __init__(self, count: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(count)
        self.weight = nn.Parameter(torch.randn(count, generator=generator))

    def forward(self) -> Tensor:
        return self.weight


def quantized(package, count: int, group_size: int, noise: str = "uniform", spread: float = 0.5):
    """A holder and its quantizer, whose groups have learned different bits."""
    holder = Holder(count)
    quantizer = package.DiffQuantizer(holder, group_size=group_size, min_size=0, noise=noise)
    quantizer.setup_optimizer(torch.optim.SGD([holder.weight], lr=0.1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in holder.named_parameters():
            if name != "weight":
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return holder, quantizer


def _packages() -> dict[str, object]:
    packages: dict[str, object] = {"diffq_fast": diffq_fast}
    if HAS_PEER:
        import diffq

        packages["diffq"] = diffq
    return packages


def copy(count: int) -> Variant:
    source, target = torch.randn(count), torch.empty(count)
    return Variant("copy_", lambda: target.copy_(source), bytes=8 * count)


def check_noise(group_size: int, noise: str = "uniform", count: int = 4096) -> None:
    """A noisy weight and its gradients are the oracle's."""
    key, grad = torch.tensor(7), torch.randn(count)
    holder, _ = quantized(diffq_fast, count, group_size, noise)
    results = []
    options = functional.NoiseOptions(group_size, noise_kind=noise)
    for of_oracle in (False, True):
        weight, logits = (parameter.detach().clone().requires_grad_() for parameter in holder.parameters())
        if of_oracle:
            z = philox.noise(key, 0, 0, count, noise)
            noisy = add_noise_oracle.noisy_weight(weight, logits, z, options)
        else:
            noisy = functional.add_noise([weight], [logits], key, options).noisy[0]
        noisy.backward(grad)
        results.append((noisy.detach(), weight.grad, logits.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=2e-4)


def _formula(count: int, group_size: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """A training forward in plain torch, and its inputs."""
    weight = torch.randn(count, requires_grad=True)
    logits = torch.randn(-(-count // (group_size or count)), 1, requires_grad=True)

    def formula(weight: Tensor, logits: Tensor) -> Tensor:
        bits = 15 * torch.sigmoid(logits) + 2 * (1 - torch.sigmoid(logits))
        span = weight.max() - weight.min()
        rows = weight.view(len(logits), -1)
        return rows + (torch.rand_like(rows) - 0.5) * (span / (2**bits - 1))

    return formula, weight, logits


def _compiled_forward(mode: str, count: int, group_size: int) -> Callable[[], Tensor]:
    formula, weight, logits = _formula(count, group_size)
    compiled = torch.compile(formula, mode=mode)
    return lambda: compiled(weight.detach(), logits.detach())


def _compiled_step(mode: str, count: int, group_size: int, grad: Tensor) -> Callable[[], None]:
    formula, weight, logits = _formula(count, group_size)
    compiled = torch.compile(formula, mode=mode)

    def run() -> None:
        weight.grad = logits.grad = None
        noisy = compiled(weight, logits)
        noisy.backward(grad.view_as(noisy))

    return run


def forward(count: int, group_size: int, compiled: tuple[str, ...] = ()) -> list[Variant]:
    """C1, C3, C4: a training forward, range and all."""
    variants = [copy(count)]
    for name, package in _packages().items():
        for noise in ("uniform", "gaussian"):
            holder, _ = quantized(package, count, group_size, noise)
            holder.train()
            check = partial(check_noise, group_size, noise) if name == "diffq_fast" else None
            variants.append(Variant(f"{name} {noise}", lambda holder=holder: holder(), check, bytes=12 * count))
    for mode in compiled:
        run = _compiled_forward(mode, count, group_size)
        variants.append(Variant(f"torch.compile {mode}", run, bytes=12 * count))
    return variants


def step(count: int, group_size: int, compiled: tuple[str, ...] = ()) -> list[Variant]:
    """C2: forward and backward."""
    variants = [copy(count)]
    grad = torch.randn(count)
    for name, package in _packages().items():
        holder, _ = quantized(package, count, group_size)
        holder.train()

        def run(holder=holder) -> None:
            for parameter in holder.parameters():
                parameter.grad = None
            holder().backward(grad)

        check = partial(check_noise, group_size) if name == "diffq_fast" else None
        variants.append(Variant(name, run, check, bytes=20 * count))
    for mode in compiled:
        run = _compiled_step(mode, count, group_size, grad)
        variants.append(Variant(f"torch.compile {mode}", run, bytes=20 * count))
    return variants


def check_same_state(count: int = 4096) -> None:
    """Both packages store the same bytes for the same logits."""
    if not HAS_PEER:
        return
    states = [quantized(package, count, 8)[1].get_quantized_state(packed=True) for package in _packages().values()]
    ours, theirs = (state["quantized"][0] for state in states)
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.equal(mine, other)
    assert torch.equal(ours[2], theirs[2])


def state(count: int, group_size: int) -> list[Variant]:
    """C5: diffq's packed state."""
    variants = [copy(count)]
    for name, package in _packages().items():
        _, quantizer = quantized(package, count, group_size)
        check = check_same_state if name == "diffq_fast" else None
        variants.append(Variant(name, lambda q=quantizer: q.get_quantized_state(packed=True), check, bytes=5 * count))
    return variants


def save(count: int, group_size: int) -> list[Variant]:
    """C6: a new file; ours without its fsync, which is reported apart. Taking away the last one is not timed.

    Once more with all widths by torch's operators, where the core otherwise compares logits with thresholds.
    """
    path = Path(tempfile.mkdtemp()) / "model"
    _, ours = quantized(diffq_fast, count, group_size)

    def remove() -> None:
        path.unlink(missing_ok=True)

    def variant(name: str, run: Callable[[], None]) -> Variant:
        return Variant(name, run, bytes=5 * count, before=remove)

    variants = [variant("diffq_fast with fsync", lambda: diffq_fast.save(ours, path))]

    def without_fsync() -> None:
        fsync, os.fsync = os.fsync, lambda descriptor: None
        try:
            diffq_fast.save(ours, path)
        finally:
            os.fsync = fsync

    def without_thresholds() -> None:
        from diffq_fast.backends.cpu import widths as width_kernels

        fewest, width_kernels.FEWEST_LOGITS = width_kernels.FEWEST_LOGITS, sys.maxsize
        try:
            without_fsync()
        finally:
            width_kernels.FEWEST_LOGITS = fewest

    variants.append(variant("diffq_fast", without_fsync))
    if cpu.status()[0]:
        variants.append(variant("diffq_fast, widths by torch", without_thresholds))
    if HAS_PEER:
        import diffq

        _, theirs = quantized(diffq, count, group_size)

        def peer() -> None:
            torch.save(theirs.get_quantized_state(packed=True), path)

        variants.append(variant("diffq", peer))
    return variants


def _planes_peers(levels: Tensor, nbits: int, unpack: bool) -> list[Variant]:
    variants = []
    bytes_ = levels.numel() * 2 + levels.numel() * nbits // 8
    if HAS_PEER:
        import diffq.bitpack

        packed = diffq.bitpack.pack(levels, nbits)
        length = levels.numel()
        run = (lambda: diffq.bitpack.unpack(packed, length)) if unpack else (lambda: diffq.bitpack.pack(levels, nbits))
        variants.append(Variant("diffq", run, bytes=bytes_))
    shifts, array = np.arange(nbits, dtype=np.int16), levels.numpy()
    planes_of = np.packbits((array >> shifts[:, None]) & 1, axis=1)

    def numpy_pack() -> None:
        np.packbits((array >> shifts[:, None]) & 1, axis=1)

    def numpy_unpack() -> None:
        (np.unpackbits(planes_of, axis=1).astype(np.int16) << shifts[:, None]).sum(0, dtype=np.int16)

    variants.append(Variant("numpy", numpy_unpack if unpack else numpy_pack, bytes=bytes_))
    if HAS_BITSHUFFLE:
        import bitshuffle

        shuffled = bitshuffle.bitshuffle(array)
        run = (lambda: bitshuffle.bitunshuffle(shuffled)) if unpack else (lambda: bitshuffle.bitshuffle(array))
        variants.append(Variant("bitshuffle (all 16 planes)", run, bytes=4 * levels.numel()))
    return variants


def planes(count: int, nbits: int, unpack: bool) -> list[Variant]:
    """C7: diffq's bit planes; to be timed on one thread."""
    levels = torch.randint(0, 2**nbits, (count,), dtype=torch.int16)
    packed = bitpack.pack(levels, nbits)

    def check() -> None:
        assert torch.equal(bitpack.unpack(packed, count), levels)

    run = (lambda: bitpack.unpack(packed, count)) if unpack else (lambda: bitpack.pack(levels, nbits))
    ours = Variant("diffq_fast", run, check, bytes=2 * count + count * nbits // 8)
    return [ours, *_planes_peers(levels, nbits, unpack)]


def words(count: int, group_size: int, mixed: bool) -> list[Variant]:
    """C8: the native layout, fused with quantising and dequantising."""
    weight = torch.randn(count)
    groups = -(-count // (group_size or count))
    spread = torch.randn(groups) * 1.5 + 6 if mixed else torch.full((groups,), 8.0)
    widths = spread.round().clamp(2, 12).to(torch.uint8)
    found = functional.weight_range([weight], group_size=group_size)
    packed = functional.quantize_pack(weight, widths, found, group_size=group_size)

    def unpack() -> Tensor:
        return functional.unpack_dequantize(packed, widths, found, weight.shape, group_size=group_size)

    def check() -> None:
        levels = functional.quantize([weight], [widths], found, group_size=group_size)
        expected = functional.dequantize(levels, [widths], found, group_size=group_size)[0]
        assert torch.equal(unpack(), expected)

    moved = 4 * count + 4 * packed.numel()

    def pack() -> Tensor:
        return functional.quantize_pack(weight, widths, found, group_size=group_size)

    def fake() -> Tensor:
        return functional.fake_quantize([weight], [widths], found, group_size=group_size)[0]

    def check_fake() -> None:
        assert torch.equal(fake(), unpack())

    return [
        copy(count),
        Variant("quantize_pack", pack, bytes=moved),
        Variant("unpack_dequantize", unpack, check, bytes=moved),
        Variant("fake_quantize", fake, check_fake, bytes=8 * count),
    ]


def evaluate(size: int = 4096, batch: int = 1) -> list[Variant]:
    """C9: a layer's eval forward, quantised and plain."""
    plain = nn.Linear(size, size, bias=False).eval()
    layer = nn.Linear(size, size, bias=False)
    layer.load_state_dict(plain.state_dict())
    diffq_fast.DiffQuantizer(layer, group_size=8, min_size=0)
    layer.eval()
    x = torch.randn(batch, size)

    def of(module: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                return module(x)

        return run

    return [Variant("plain", of(plain)), Variant("diffq_fast", of(layer))]
