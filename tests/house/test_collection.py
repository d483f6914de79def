"""No test is lost to its name: what stands in a test file is collected by pytest, or used there."""

from __future__ import annotations

import ast

import pytest

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
