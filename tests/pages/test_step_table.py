"""The table of a whole training step in docs/cpu.md has the figures that are stored."""

import json

import pytest

from support.paths import ROOT

HEAD = "| id | figure | AMD EPYC, AVX2, earlier | Xeon, AVX-512 | ship / moonshot |"
PACKAGES = ("uniform g=64", "uniform g=8", "gaussian g=8", "diffq gaussian g=8")


def figures(machine):
    """The cells of one column, from the top."""
    path = ROOT / "benchmarks" / "results" / f"training_step_2core_{machine}.json"
    found = json.loads(path.read_text(encoding="utf-8"))["results"]
    size, small = found["size"], found["small"]
    steps = [f"{found['step'][name]['median over plain']:.2f}" for name in PACKAGES]
    sizes = [f"{1e3 * size[name]['median']:.1f} ms" for name in ("forward and backward", "plain torch")]
    more = [f"{small[name]['milliseconds more than plain']:.0f} ms" for name in ("diffq_fast", "diffq")]
    return steps + sizes + more


@pytest.mark.parametrize(("column", "machine"), [(2, "avx2"), (3, "avx512")])
def test_the_table_of_a_step_is_the_stored_one(column, machine):
    lines = (ROOT / "docs" / "cpu.md").read_text(encoding="utf-8").split(f"{HEAD}\n")[1].splitlines()[1:9]
    assert [line.split("|")[1 + column].strip() for line in lines] == figures(machine)
