"""inspect --html, diff and bench: what they print, and what they answer with."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from safetensors.torch import save_file

from support.command_line import run
from support.packed_examples import DATA

KINDS, CODED = DATA / "packed_v1_kinds.safetensors", DATA / "packed_v2_coded.safetensors"


def test_inspect_writes_a_page(tmp_path, capsys):
    code, out, error = run(capsys, "inspect", KINDS, "--html", tmp_path / "page.html", "--json")
    assert (code, error) == (0, "")
    assert json.loads(out)["file_bytes"] == KINDS.stat().st_size
    ElementTree.fromstring((tmp_path / "page.html").read_text().removeprefix("<!DOCTYPE html>\n"))
    code, out, error = run(capsys, "inspect", KINDS, "--html", tmp_path)
    assert code == 1
    assert "is a folder" in error
    assert not out


def test_diff_answers_0_for_equal_1_for_different_and_2_for_failures(tmp_path, capsys):
    code, out, _ = run(capsys, "diff", KINDS, KINDS)
    assert code == 0
    assert out.startswith("all 22 tensors are equal; files of 10,895 and 10,895 bytes")
    code, out, _ = run(capsys, "diff", KINDS, CODED, "--json")
    assert code == 1
    comparison = json.loads(out)
    assert not comparison["equal"]
    assert {each["name"]: each["what"] for each in comparison["differences"]}["steps"] == "only in the second"
    code, out, error = run(capsys, "diff", KINDS, tmp_path / "none")
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    (tmp_path / "short").write_bytes(KINDS.read_bytes()[:-1])
    code, out, _ = run(capsys, "diff", tmp_path / "short", KINDS, "--json")
    assert code == 2
    assert "truncated" in json.loads(out)["error"]
    code, _, error = run(capsys, "diff", KINDS, CODED, "--progress")
    assert "comparing 100 %" in error
    assert code == 1


@pytest.mark.parametrize("second", [False, True])
def test_diff_refuses_a_pipe_at_once(second, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    files = [KINDS, tmp_path / "pipe"] if second else [tmp_path / "pipe", KINDS]
    code, out, error = run(capsys, "diff", *files)
    assert (code, out) == (2, "")
    assert "is not a regular file" in error


def test_diff_takes_ordinary_checkpoints(tmp_path, capsys):
    save_file({"w": torch.ones(4)}, tmp_path / "one")
    save_file({"w": torch.tensor([1.0, 1.0, 1.0, 1.5])}, tmp_path / "two")
    code, out, _ = run(capsys, "diff", tmp_path / "one", tmp_path / "two")
    assert code == 1
    row = out.splitlines()[1].split()
    assert row == ["w", "values", "1", "of", "4", "0.5", "0.25", "32.00", "->", "32.00", "16", "->", "16"]


def test_names_in_a_comparison_do_not_rule_the_terminal(tmp_path, capsys):
    save_file({"\x1b[2J": torch.ones(4)}, tmp_path / "one")
    save_file({"b": torch.ones(4)}, tmp_path / "two")
    for more in ([], ["--json"]):
        code, out, _ = run(capsys, "diff", tmp_path / "one", tmp_path / "two", *more)
        assert code == 1
        assert "\x1b" not in out


def test_bench_tells_speeds_with_their_repetitions(capsys):
    code, out, error = run(capsys, "bench", CODED, "--repetitions", 2, "--progress")
    assert code == 0
    assert "products, 32 vectors" in out
    assert "measuring 100 %" in error
    code, out, error = run(capsys, "bench", CODED, "--repetitions", 1, "--json")
    assert (code, error) == (0, "")
    assert {each["repetitions"] for each in json.loads(out)["speeds"]} == {1}


def test_bench_measures_products_in_int8_where_that_is_asked_for(capsys):
    code, out, _ = run(capsys, "bench", CODED, "--repetitions", 1, "--activations", "int8")
    assert code == 0
    assert "products, 32 vectors, int8" in out
    code, _, error = run(capsys, "bench", CODED, "--activations", "int4")
    assert code == 2
    assert "--activations" in error


@pytest.mark.parametrize("number", ["0", "-3", "x"])
def test_wrong_repetitions_are_wrong_usage(number, capsys):
    code, _, error = run(capsys, "bench", CODED, "--repetitions", number)
    assert code == 2
    assert "--repetitions" in error
