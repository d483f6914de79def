"""Each promise of docs/promises.md names tests, and they are there."""

from __future__ import annotations

import re

import pytest

from support.paths import ROOT

ROWS = [
    line.split("|")[1:3]
    for line in (ROOT / "docs" / "promises.md").read_text().splitlines()
    if line.startswith("| ") and "`" in line
]
NAMES = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize(("promise", "tests"), ROWS, ids=[promise.strip()[:40] for promise, _ in ROWS])
def test_a_promise_is_held_by_tests_that_exist(promise, tests):
    for named in re.findall(r"`([^`]+)`", tests):
        assert named in NAMES or (ROOT / named).is_file(), named


def test_there_are_promises():
    assert len(ROWS) > 20
