"""pytest-benchmark: states, files, words and bit planes on a CPU."""

from __future__ import annotations

import cpu_cases
import pytest
from bench_cpu_training import COUNT, PACKAGES, time


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("group_size", [1, 8, 16])
def bench_state(benchmark, group_size, package):
    benchmark.group = f"state g={group_size}"
    time(benchmark, cpu_cases.state(COUNT, group_size), package)


@pytest.mark.parametrize("package", PACKAGES)
def bench_save(benchmark, package):
    benchmark.group = "save"
    time(benchmark, cpu_cases.save(COUNT, 8), package)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["quantize_pack", "unpack_dequantize"])
def bench_words(benchmark, name, mixed):
    benchmark.group = f"{name} {'mixed' if mixed else '8 bits'}"
    time(benchmark, cpu_cases.words(COUNT, 8, mixed), name)


@pytest.mark.parametrize("unpack", [False, True])
@pytest.mark.parametrize("nbits", [2, 4, 8, 12])
@pytest.mark.parametrize("package", PACKAGES)
def bench_planes(benchmark, package, nbits, unpack):
    benchmark.group = f"planes {nbits} bits {'unpack' if unpack else 'pack'}"
    time(benchmark, cpu_cases.planes(COUNT, nbits, unpack), package)


@pytest.mark.parametrize("name", ["plain", "diffq_fast"])
def bench_eval(benchmark, name):
    benchmark.group = "eval"
    time(benchmark, cpu_cases.evaluate(2048), name)
