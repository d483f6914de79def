"""``PTX_EMULATOR=sm_90``: the tests of this folder run the kernels as compiled, under the emulator (``tests/ptx``)."""

from __future__ import annotations

import pytest

from support.emulation import asked_arch, checked_emulation
from support.triton_weights import EMULATED


@pytest.fixture(autouse=bool(EMULATED))
def _emulator():
    with checked_emulation(asked_arch()) as emulator:
        yield emulator
