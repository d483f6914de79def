"""What the tests of the compiled kernels share: an emulator that fails a test in which it found a problem.

``PTX_EMULATOR=sm_90 python -m pytest tests/backends/triton`` runs there, under it, what Triton's interpreter runs
otherwise; ``PTX_APPROXIMATIONS`` and ``PTX_CONTRACT=1`` change the arithmetic within what the PTX manual allows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from support.triton_weights import EMULATED


@contextlib.contextmanager
def checked_emulation(arch: int, **settings) -> Iterator:
    """``ptx.triton_driver.emulated``, whose problems are raised at the end; ``settings`` as ``ptx.launch.Settings``."""
    from ptx.approximations import Approximations
    from ptx.launch import Settings
    from ptx.triton_driver import emulated

    settings.setdefault("approximate", Approximations(os.environ.get("PTX_APPROXIMATIONS", "exact")))
    settings.setdefault("contract", os.environ.get("PTX_CONTRACT") == "1")
    with emulated(arch, Settings(**settings)) as emulator:
        yield emulator
    problems = emulator.problems.serious()
    assert not problems, "\n".join(map(str, problems))


def asked_arch() -> int:
    """The compute capability of ``PTX_EMULATOR``."""
    return int(EMULATED.removeprefix("sm_"))
