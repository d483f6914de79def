"""The GPU operators' benchmarks under pytest-benchmark: ``make bench``. Skipped without CUDA and Triton.

The benchmark's own figure is wall time with the device waited for; ``extra_info`` has the device's time by events.
``gpu_check.sh`` measures against peers and targets.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]

Passes = dict[str, Callable[[], Any]]


@pytest.fixture(scope="module")
def passes() -> Passes:
    """What is timed, by name, over 104 weights of 2**20 elements; checked against the oracle first."""
    from measure_gpu_operators import LARGE, Bucket

    bucket = Bucket(*LARGE)
    bucket.check()
    forward = bucket.forward()
    source, target = torch.empty(bucket.total, device="cuda"), torch.empty(bucket.total, device="cuda")
    half = [grad.bfloat16() for grad in bucket.grads]
    return {
        "copy": lambda: target.copy_(source),
        "forward uniform": bucket.forward,
        "forward gaussian": lambda: bucket.forward("gaussian"),
        "forward to bf16": lambda: bucket.forward(dtype=torch.bfloat16),
        "forward in one launch": bucket.one_launch,
        "backward": lambda: bucket.backward(forward, bucket.grads),
        "backward from bf16": lambda: bucket.backward(forward, half),
        "step through autograd": bucket.step,
        "step through autograd in bf16": lambda: bucket.step(torch.bfloat16),
    }


@pytest.mark.parametrize(
    "name",
    [
        "copy",
        "forward uniform",
        "forward gaussian",
        "forward to bf16",
        "forward in one launch",
        "backward",
        "backward from bf16",
        "step through autograd",
        "step through autograd in bf16",
    ],
)
def bench_training_pass(benchmark: Any, passes: Passes, name: str) -> None:
    from gpu_timing import interleaved

    def work() -> None:
        passes[name]()
        torch.cuda.synchronize()

    benchmark.pedantic(work, rounds=15, warmup_rounds=3)
    benchmark.extra_info["device_milliseconds"] = interleaved({name: passes[name]})[name]
