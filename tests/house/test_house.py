"""The house keeps its measures; ``measure.py`` says what they count, and what they were."""

import json
import textwrap
from functools import cache

import pytest

from house.measure import LIMITS, ROOT, figures_of_moves, figures_of_sources, table
from house.moves import Call, counts
from house.parameters import cpp_functions
from house.private_names import private_names_taken
from house.sources import PACKAGE, Sources

MOVES = [name for name in LIMITS if name.startswith("moves")]


@cache
def of_sources():
    return figures_of_sources(ROOT)


@cache
def of_moves():
    return figures_of_moves(ROOT)


def value(figures, name):
    return next(figure for figure in figures if figure.name == name)


@pytest.mark.parametrize("name", [name for name in LIMITS if name not in MOVES])
def test_the_sources_keep_the_limit(name):
    figure = value(of_sources(), name)
    assert figure.value <= LIMITS[name], "\n".join(map(str, figure.places))


@pytest.mark.parametrize("name", MOVES)
def test_a_weight_takes_a_short_way(name):
    core, figures = of_moves()
    if not core:
        pytest.skip("the limits are those of the compiled core")
    way = name.split()[-1]
    said = f"python tests/house/moves.py --path {way} prints the way"
    assert value(figures, name).value <= LIMITS[name], said


def test_the_table_shows_every_figure_with_its_limit():
    lines = table(of_sources()).splitlines()
    assert len(lines) == 1 + len(of_sources())
    assert "8" in next(line for line in lines if line.startswith("modules at the root")).split()


def package(folder, **modules):
    for name, text in modules.items():
        path = folder / PACKAGE / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return Sources(folder)


def test_circles_are_found_through_type_checking_and_inside_of_functions(tmp_path):
    sources = package(
        tmp_path,
        above="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .below import Below\n",
        below="def late():\n    from . import above\n",
        alone="from .below import late\n",
    )
    assert sources.circles() == [["diffq_fast.above", "diffq_fast.below"]]


def test_private_names_of_others_are_taken_and_own_ones_are_not(tmp_path):
    sources = package(
        tmp_path,
        owner="""
            import torch

            class Owner:
                _shared: int = 0

                def __init__(self):
                    self._learned = torch._dynamo

                def compare(self, second):
                    return self._learned == second._learned

            def _inside(): ...
        """,
        taker="""
            from torch import _C

            from . import owner
            from .owner import Owner, _inside

            class Heir(Owner):
                def show(self):
                    return self._learned, super()._shared, vars(self)

            def take(thing):
                thing._learned = 1
                return getattr(thing, "_shared"), owner._inside(), thing._foreign, thing.__dict__
        """,
    )
    assert [place.text for place in private_names_taken(sources)] == [
        "import _inside",
        "thing._learned",
        "getattr(thing, '_shared')",
        "owner._inside",
    ]


def test_parameters_of_cpp_functions_are_counted():
    text = """
        // comment(int a, int b) {
        template <class Word, int lanes> void pack(const Pair<int, float>& pair, Word (*load)(int, int),
                                                   int count) const noexcept {
            if (count > 1) { call(1, 2, 3); }
            auto each = [&](int begin, int end) { return begin; };
        }
        int zero() { return 0; }
        int declared(int, int, int);
    """
    assert [(name, count) for _, name, count in cpp_functions(text)] == [("pack", 3), ("]", 2), ("zero", 0)]


def test_a_move_is_a_call_in_another_file_than_the_call_before():
    files = ["a.py", "a.py", "b.py", "a.py", "c.py"]
    calls = [Call(file, "run", 0) for file in files]
    assert counts(calls) == {"calls": 5, "files": 3, "moves": 3}
    assert json.loads(json.dumps(counts(calls[:1])))["moves"] == 0
