"""The tests of this folder run compiled kernels under the emulator (``tests/ptx``), on the CPU."""

from __future__ import annotations

import pytest

from support.emulation import checked_emulation


@pytest.fixture
def emulator(request):
    """Of sm_90, or of the ``arch`` that the test has among its parameters."""
    arch = request.getfixturevalue("arch") if "arch" in request.fixturenames else 90
    with checked_emulation(arch) as found:
        yield found
