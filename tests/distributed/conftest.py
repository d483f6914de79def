"""What the processes of a test module's ``run`` give: they are started once for all of its tests."""

import pytest

from support.sharded_runs import run_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(request, folder):
    return run_processes(request.module.run, folder, getattr(request.module, "PROCESSES", 4))
