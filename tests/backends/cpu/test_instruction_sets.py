"""Every instruction set that this machine runs gives the bytes that the scalar code gives, on any number of threads.

The C++ tests call each one's kernels directly; here whole operators run in processes that ``DIFFQ_FAST_ISA`` forces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from diffq_fast.backends import cpu
from diffq_fast.backends.cpu.loading import core

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])

# Digests of everything that has to be the same bits, and some gaussian noise, which has to be near.
SCRIPT = """
import hashlib, json, torch
import diffq_fast.functional
from diffq_fast.functional import pack_rows
ops = torch.ops.diffq_fast
KEY = torch.tensor(-0x123456789ABCDEF)
digests = {}

def put(name, tensors):
    data = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors if t.numel())
    digests[name] = hashlib.sha256(data).hexdigest()

def train(name, weights, group_size, per_group, kind):
    generator = torch.Generator().manual_seed(3)
    groups = [-(-w.numel() // group_size) if group_size else int(w.numel() > 0) for w in weights]
    logits = [torch.randn(count, generator=generator) * 2 for count in groups]
    grads = [torch.randn(w.shape, generator=generator).to(w.dtype) for w in weights]
    options = group_size, 2.0, 15.0, "bits", kind, per_group
    streams = list(range(len(weights)))
    noisy, found, extremes = ops.add_noise(weights, logits, KEY, streams, None, *options)
    back = ops.add_noise_backward(grads, weights, logits, found, extremes, KEY, streams, *options)
    put(name, [*noisy, found, extremes, *back[0], *back[1], back[2]])

def export(name, weight, group_size, per_group):
    generator = torch.Generator().manual_seed(4)
    count = weight.numel()
    groups = -(-count // group_size) if group_size else int(count > 0)
    found, _ = ops.weight_range([weight], group_size, per_group)
    for kind in ("one", "mixed"):
        widths = torch.randint(1, 17, (groups,), generator=generator, dtype=torch.uint8)
        if kind == "one":
            widths[:] = widths[:1]
        levels = ops.quantize([weight], [widths], found, group_size, per_group)
        each = widths.repeat_interleave(group_size or count)[:count] if groups else widths
        members = [int((each == width).sum()) for width in range(17)]
        words = ops.quantize_pack(weight, widths, found, group_size, per_group,
                                  sum(width * -(-n // 32) for width, n in enumerate(members)))
        back = ops.unpack_dequantize(words, widths, found, group_size, per_group, list(weight.shape), weight.dtype)
        fake = ops.fake_quantize([weight], [widths], found, group_size, per_group)
        put(f"{name} {kind}", [*levels, *fake, words, ops.unpack(words, widths, group_size, count), back])

# Whole numbers of at most 127 and scales that are powers of two: floats hold every sum.
def packed(name, columns, segment, group_size, widths):
    generator = torch.Generator().manual_seed(5)
    width = torch.randint(widths[0], widths[1] + 1, (70, columns // segment), generator=generator)
    levels = (torch.rand(70, columns, generator=generator) * 2.0 ** width.repeat_interleave(segment, 1)).int()
    groups = 70 * columns // group_size if group_size else 1
    scales = 2.0 ** torch.randint(-2, 1, (groups,), generator=generator)
    given = (*pack_rows(levels, width.to(torch.uint8), segment), scales, torch.empty(0),
             [columns, segment, group_size, True, 0])
    made = [ops.unpack_rows(torch.arange(70), *given)]
    for count in (1, 3, 8, 20, 130):
        vectors = torch.randint(-127, 128, (count, columns), generator=generator).float()
        vectors[:, ::64] = 127
        made += [ops.packed_linear(vectors, *given), ops.packed_linear(vectors, *given, True)]
    put(name, made)

for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for counts in ((0, 1, 7, 9, 65, 1023, 2049), (70001,), (200000, 33)):
            weights = [torch.randn(count, generator=generator).to(dtype) for count in counts]
            for group_size in (0, 1, 2, 4, 7, 8, 16, 100, 128, 3000, 30000):
                for per_group in (False, True):
                    name = f"{threads} {dtype} {counts} {group_size} {per_group}"
                    train(name, weights, group_size, per_group, "uniform")
                    export(name + " export", weights[-1], group_size, per_group)
    for count in (1, 5, 2047, 2049, 100000):
        values = torch.randint(0, 2**12, (count,), generator=generator, dtype=torch.int16)
        planes = ops.pack_planes(values, 12, 64, 32)
        seen = ops.pack_planes_seen(values, 12, 64, 32)[1]
        assert 0 <= seen < 2**12
        put(f"{threads} planes {count}", [planes, ops.unpack_planes(planes, count)])
        logits = torch.randn(count, generator=generator) * 3
        put(f"{threads} widths {count}", [ops.widths_from_logits(logits, 2.0, 15.0, "bits", 0.0)])
    forms = (192, 64, 0), (192, 64, 64), (96, 32, 96), (72, 8, 0), (48, 16, 16), (77, 77, 77)
    for columns, segment, group_size in forms:
        for widths in ((1, 7), (1, 8), (4, 4), (8, 8)):
            packed(f"{threads} packed {columns} {segment} {group_size} {widths}", columns, segment, group_size, widths)
print(json.dumps([digests, ops.noise(KEY, 5, 3, 3000, "gaussian").tolist()]))
"""


def run(instruction_set: str) -> tuple[dict[str, str], list[float]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env={**os.environ, "DIFFQ_FAST_ISA": instruction_set},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    digests, gaussian = json.loads(done.stdout)
    return digests, gaussian


@pytest.fixture(scope="module")
def scalar():
    return run("scalar")


def test_results_do_not_depend_on_threads(scalar):
    digests, _ = scalar
    first = {name[2:]: digest for name, digest in digests.items() if name.startswith("1 ")}
    assert len(first) > 100
    for threads in ("2 ", "3 "):
        assert {name[2:]: digest for name, digest in digests.items() if name.startswith(threads)} == first


@pytest.mark.parametrize("instruction_set", core.instruction_sets()[1:] if core else [])
def test_instruction_set_gives_the_scalar_bits(scalar, instruction_set):
    expected, expected_gaussian = scalar
    digests, gaussian = run(instruction_set)
    assert {name for name in expected if digests[name] != expected[name]} == set()
    assert len(gaussian) == 3000
    assert max(abs(a - b) for a, b in zip(gaussian, expected_gaussian, strict=True)) <= 2e-6


def test_best_instruction_set_is_the_default():
    environment = {name: value for name, value in os.environ.items() if name != "DIFFQ_FAST_ISA"}
    code = "from diffq_fast.backends.cpu.loading import core; print(core.instruction_set())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == core.instruction_sets()[-1]
