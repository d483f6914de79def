"""What a process grows by when it loads a model packed, of a coded file with a step for each row, as ``pack`` makes."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from diffq_fast.packed.coding import code_levels
from diffq_fast.packed.contents import PackedContents, write_packed
from diffq_fast.packed.report import inspect
from support.paths import ROOT

HAS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")
LAYERS, FEATURES = 16, 768

# A first load brings in what every load needs; the second is what counts.
PROGRAM = """
    import gc, json, os, sys
    import torch
    from torch import nn
    import diffq_fast

    def resident():
        gc.collect()
        lines = open("/proc/self/smaps_rollup").read().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Private_Dirty")))

    def load(layers):
        made = nn.Sequential(*(nn.Linear({features}, {features}, bias=False) for _ in range(layers)))
        return diffq_fast.load(sys.argv[1], made, strict=False, packed=True)

    torch.set_num_threads(1)
    load(1)
    before = resident()
    model = load({layers})
    print(json.dumps(resident() - before))
"""


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    """Gaussian weights at about four bits."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("packed") / "file"
    codes = torch.full((FEATURES,), -100, dtype=torch.int16)
    packed = {
        f"{layer}.weight": code_levels(
            (3.9 * torch.randn(FEATURES, FEATURES)).round().to(torch.int32), codes, group_size=FEATURES
        )
        for layer in range(LAYERS)
    }
    write_packed(path, PackedContents(packed, {}))
    assert 3.9 < inspect(path).bits_per_weight < 4.1
    return path


@pytest.mark.skipif(not HAS_GLIBC, reason="reads /proc, and other C libraries are not asked to trim their heap")
def test_a_process_grows_by_at_most_1_3_of_a_coded_file(packed_file):
    program = textwrap.dedent(PROGRAM.format(layers=LAYERS, features=FEATURES))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(packed_file)]
    grown = json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    size = packed_file.stat().st_size
    assert 0.9 * size < grown <= 1.3 * size, f"a file of {size:,} bytes takes {grown:,}"
