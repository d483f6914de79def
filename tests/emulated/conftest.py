"""The tests of this folder run compiled kernels under the emulator (``tests/ptx``), on the CPU."""

from __future__ import annotations

import pytest

from support.emulation import asked_arch, checked_emulation
from support.triton_weights import EMULATED


@pytest.fixture
def emulator(request):
    """Of the ``arch`` that the test has among its parameters, or sm_90; of what ``PTX_EMULATOR`` names."""
    arch = request.getfixturevalue("arch") if "arch" in request.fixturenames else 90
    with checked_emulation(asked_arch() if EMULATED else arch) as found:
        yield found
