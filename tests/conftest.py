"""Markers, and the golden files that diffq 0.2.4 wrote (``tests/data/golden``)."""

import importlib.util
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from support.cases import items_left_out
from support.paths import GOLDEN

HAS_PEER = importlib.util.find_spec("diffq") is not None  # asked before any test can install the alias

MARKERS = {
    "peer": "compares with diffq 0.2.4, run as a black box; skipped where it is not installed",
    "programs": "runs real programs that import diffq (Demucs 4.1.0); skipped where they are not installed",
    "gpu": "needs a CUDA device; skipped without one",
    "processes(run, world=4)": "what the processes of a module of tests run, once for all of them",
    "slow": "takes more than a few seconds; leave out with -m 'not slow'",
}


def pytest_addoption(parser):
    parser.addoption("--of-each", type=int, metavar="N", help="run at most N of the cases of a parametrised test")


def pytest_configure(config):
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # threads beyond the cores spin while they wait for each other
        threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of processes that tests start
        torch.set_num_threads(threads)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--of-each"):
        left_out = items_left_out(items, config.getoption("--of-each"))
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    missing = {}
    if not HAS_PEER:
        missing["peer"] = "diffq is not installed (pip install diffq==0.2.4)"
    if importlib.util.find_spec("demucs") is None or importlib.util.find_spec("omegaconf") is None:
        missing["programs"] = "Demucs is not installed (pip install demucs==4.1.0 omegaconf)"
    if not torch.cuda.is_available():
        missing["gpu"] = "no CUDA device"
    for item in items:
        for name, reason in missing.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def golden():
    """``golden("noise")``: the tensors of ``tests/data/golden/noise.safetensors`` by name."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden_cases():
    """``cases.json``: for each golden case its arguments and what diffq's size methods gave."""
    return json.loads((GOLDEN / "cases.json").read_text())
