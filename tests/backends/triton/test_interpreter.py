"""Starts the tests of this folder again with ``TRITON_INTERPRET=1``: Triton's interpreter runs the kernels on the CPU,
where every one is compared with the oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.triton_weights import EMULATED, INTERPRETED, needs_triton

pytestmark = needs_triton


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(bool(INTERPRETED or EMULATED), reason="would start itself for ever")
def test_kernels_under_the_interpreter():
    files = [file for file in sorted(Path(__file__).parent.glob("test_*.py")) if file.name != "test_static.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
