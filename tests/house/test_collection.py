"""No test is lost to its name: what stands in a test file is collected by pytest, or used there."""

from __future__ import annotations

import ast

import pytest

from support.cases import items_left_out
from support.paths import ROOT

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("test_*.py"))


def uncollected(text: str) -> list[str]:
    """Functions of a test file that pytest does not collect and that nothing in the file uses.

    A decorator other than a mark takes what it decorates: a fixture's, or one that enters checks into a table.
    """
    tree = ast.parse(text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [
        function.name
        for function in functions
        if not function.name.startswith(("test", "pytest_"))
        and function.name not in used
        and all(ast.unparse(decorator).startswith("pytest.mark.") for decorator in function.decorator_list)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_every_function_of_a_test_file_is_collected_or_used(path):
    assert uncollected(path.read_text(encoding="utf-8")) == []


def test_a_test_with_another_name_is_seen():
    text = """
def helps(): ...
def plain(): helps()
@pytest.mark.parametrize("count", [1])
def marked(count): ...
@pytest.fixture
def given(): ...
def test_it(given): ...
"""
    assert uncollected(text) == ["plain", "marked"]


def test_a_short_run_takes_the_first_the_last_and_what_lies_between():
    class Item(str):
        @property
        def nodeid(self):
            return str(self)

    items = [Item(f"tests/a.py::test_many[{case}]") for case in range(9)]
    items += [Item("tests/a.py::test_one"), Item("tests/b.py::test_two[x]"), Item("tests/b.py::test_two[y]")]
    for most, kept in ((1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (4, [0, 2, 5, 8]), (9, range(9)), (20, range(9))):
        left = [item for item in items if item not in items_left_out(items, most)]
        assert [item for item in left if "many" in item] == [f"tests/a.py::test_many[{case}]" for case in kept]
        assert len(left) == len(kept) + 1 + min(most, 2)
