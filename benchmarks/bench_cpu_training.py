"""pytest-benchmark: a training forward, and forward with backward, on a CPU."""

from __future__ import annotations

import cpu_cases
import pytest

COUNT = 2**22


def time(benchmark, variants, name: str) -> None:
    (variant,) = (each for each in variants if each.name == name)
    if variant.check is not None:
        variant.check()
    benchmark.extra_info["bytes"] = variant.bytes
    benchmark(variant.run)


PACKAGES = ["diffq_fast", pytest.param("diffq", marks=pytest.mark.skipif(not cpu_cases.HAS_PEER, reason="no diffq"))]


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("group_size", [1, 8, 16, 128])
def bench_forward(benchmark, group_size, package, noise):
    benchmark.group = f"forward g={group_size} {noise}"
    time(benchmark, cpu_cases.forward(COUNT, group_size), f"{package} {noise}")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("group_size", [1, 8, 16, 128])
def bench_step(benchmark, group_size, package):
    benchmark.group = f"step g={group_size}"
    time(benchmark, cpu_cases.step(COUNT, group_size), package)
