"""What the function that a test module is marked with gives in each process: all are started once for all tests."""

import pytest

from support.sharded_runs import run_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(request, folder):
    marked = request.node.get_closest_marker("processes")
    return run_processes(path=folder, **marked.kwargs)
