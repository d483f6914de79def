"""speed: every work of a file is measured as often as asked for, on the packed file and on float32."""

from __future__ import annotations

import os

import pytest
import torch

from diffq_fast.packed.speed import measure
from support.packed_examples import DATA, Example, example_weight

CODED = DATA / "packed_v2_coded.safetensors"


def test_every_work_is_measured_as_often_as_asked_for():
    told = []
    report = measure(CODED, 3, progress=lambda *each: told.append(each))
    names = [each.name for each in report.speeds]
    products = [f"products, {vectors}" for vectors in ("1 vector", "8 vectors", "32 vectors")]
    assert names == ["read and verify", "decode levels", "unpack", "load, in all", *products]
    assert [(name, done) for name, done, _ in told] == [
        (name, 3 * place + 1 + turn) for place, name in enumerate(names) for turn in range(3)
    ]
    assert {total for _, _, total in told} == {3 * len(names)}
    for each in report.speeds:
        assert each.repetitions == 3
        assert 0 < each.packed_range[0] <= each.packed <= each.packed_range[1]
        assert (each.float32 is None) == (each.name == "decode levels")
    assert report.file_bytes == CODED.stat().st_size
    assert report.float32_bytes > 4 * 149_634


def test_no_figure_stands_without_its_repetitions():
    report = measure(CODED, 2)
    head, *rows = report.table().splitlines()[: 1 + len(report.speeds)]
    assert head.split()[-1] == "repetitions"
    assert all(row.split()[-1] == "2" for row in rows)
    assert len(report.to_dict()["speeds"]) == len(rows)


def test_the_first_time_does_not_count_and_float32_takes_turns(monkeypatch):
    from diffq_fast.packed import speed

    clock = iter(range(100))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(clock)) ** 2)
    order = []
    work = speed.Work("w", lambda: order.append("packed"), lambda: order.append("float32"), 1.0, "MB")
    monkeypatch.setattr(speed, "_works", lambda *_: [work])
    (measured,) = measure(CODED, 2).speeds
    assert order == ["packed", "float32"] * 3
    # The squares of 0, 1, 2 …: a turn from n to n + 1 takes 2n + 1; those of the packed file begin at 0, 4 and 8.
    assert (measured.packed, measured.packed_range) == (13.0, (9.0, 17.0))
    assert (measured.float32, measured.float32_range) == (17.0, (13.0, 21.0))
    assert measured.ratio == 17 / 13


@pytest.mark.parametrize("plain", [{}, {"b": torch.ones(3)}])
def test_files_without_matrices_are_measured_too(plain, tmp_path):
    assert [each.name for each in measure(Example({}, plain).write(tmp_path / "a"), 1).speeds] == [
        "read and verify",
        "load, in all",
    ]
    only_vector = Example({"v": example_weight((40,), 3, 8)}, plain).write(tmp_path / "b")
    assert [each.name for each in measure(only_vector, 1).speeds][1:] == ["unpack", "load, in all"]


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    measure(CODED, 1)
    assert os.listdir(tmp_path) == []


def test_repetitions_below_one_are_refused():
    with pytest.raises(ValueError, match="repetitions must be 1 or more, got 0"):
        measure(CODED, 0)
