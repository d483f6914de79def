"""packed_report: what a file holds, without torch, in numbers that add up."""

from __future__ import annotations

import json

import pytest
import torch

from diffq_fast.packed.coding import code_levels
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.report import inspect
from support.packed_examples import DATA, Example, example_weight, kinds

KINDS = DATA / "packed_v1_kinds.safetensors"


def small() -> Example:
    packed = {"a": example_weight((4, 10), [2, 4], 8), "b.c": example_weight((7,), 3, 0, dtype=torch.float16)}
    plain = {"bias": torch.zeros(3), "a_diffq": torch.zeros(5), "mean": torch.zeros(2)}
    info = {"class": "DiffQuantizer", "arguments": {}}
    return Example(packed, plain, {"tied": "a"}, {"bias"}, info, {"mean"})


def test_inspect_counts_bits_and_bytes(tmp_path):
    report = inspect(small().write(tmp_path / "a"))
    first, second = report.weights
    assert (first.name, first.shape, first.dtype, first.group_size, first.groups) == (
        "a",
        (4, 10),
        "F32",
        8,
        5,
    )
    assert first.histogram == {2: 24, 4: 16}
    assert first.bytes == 4 * (2 * 1 + 4 * 1) + 8 + 5  # words, range, five runs
    assert first.bits_per_weight == 8 * first.bytes / 40
    assert second.histogram == {3: 7}
    assert second.bytes == 4 * 3 + 8
    assert report.histogram == {2: 24, 3: 7, 4: 16}
    assert report.bits_per_weight == 8 * (first.bytes + second.bytes) / 47
    assert report.float_bytes == 4 * 40 + 2 * 7 + 4 * (3 + 5 + 2)
    sizes = dict(report.bytes_by_purpose)
    assert sizes.pop("header") == report.file_bytes - sum(sizes.values())
    assert sizes == {
        "levels": 36, "widths": 5, "ranges": 16, "plain parameters": 6, "buffers": 8, "learned values": 20,
    }  # fmt: skip


def test_table_and_json_say_the_same(tmp_path):
    report = inspect(small().write(tmp_path / "a"))
    table = report.table().splitlines()
    assert table[0].split() == ["weight", "shape", "group", "bits/weight", "widths", "bytes"]
    assert table[1].split() == ["a", "4x10", "8", "7.40", "2-4", "37"]
    assert table[2].split() == ["b.c", "7", "all", "22.86", "3", "20"]
    assert table[-1] == "tied: tied = a"
    parsed = json.loads(report.to_json())
    assert parsed["bits_per_weight"] == report.bits_per_weight
    assert parsed["weights"][0]["histogram"] == {"2": 24, "4": 16}
    assert parsed["bytes_by_purpose"] == report.bytes_by_purpose
    assert parsed["ties"] == {"tied": "a"}


def stepped() -> dict:
    """Two weights with steps; all their groups are of class 1, which is no width."""
    levels, codes = torch.arange(-8, 8, dtype=torch.int32).repeat(4, 2), torch.zeros(4, dtype=torch.int16)
    classes = torch.ones(4, dtype=torch.uint8)
    return {name: code_levels(levels, codes, group_size=32, classes=classes) for name in ("c", "d")}


def test_weights_with_steps_are_not_among_the_widths(tmp_path):
    alone = inspect(Example(stepped()).write(tmp_path / "a"))
    assert alone.histogram == json.loads(alone.to_json())["histogram"] == {}
    text = f"{alone.bits_per_weight:.2f} bits per weight; 2 weights with steps in place of widths"
    assert alone.table().splitlines()[-1] == text
    both = inspect(Example({"a": example_weight((4, 10), [2, 4], 8), "c": stepped()["c"]}).write(tmp_path / "b"))
    assert both.histogram == {2: 24, 4: 16}
    assert json.loads(both.to_json())["histogram"] == {"2": 24, "4": 16}
    ending = "; by width: 2: 60.0%, 4: 40.0%; 1 weight with steps in place of widths left out"
    assert both.table().splitlines()[-1].endswith(ending)


def test_a_plot_has_no_bars_of_weights_with_steps(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("diffq_fast.packed.report.draw_bits", lambda *arguments: drawn.append(arguments))
    weights = {"a": example_weight((4, 10), [2, 4], 8), "c": stepped()["c"]}
    inspect(Example(weights).write(tmp_path / "a")).plot(tmp_path / "widths.png")
    ((rows, _, title, _),) = drawn
    assert [(row.name, row.histogram) for row in rows] == [("a", {2: 24, 4: 16})]
    assert title.endswith("\n1 weight with steps in place of widths left out")


def test_histograms_are_those_of_the_widths():
    report = inspect(KINDS)
    contents = read_packed(KINDS)
    assert [weight.name for weight in report.weights] == list(contents.packed)
    for weight in report.weights:
        assert sum(weight.histogram.values()) == weight.count == contents.packed[weight.name].count
        assert set(weight.histogram) == set(contents.packed[weight.name].widths.tolist())
    assert report.file_bytes == KINDS.stat().st_size


def test_empty_files_have_a_report(tmp_path):
    report = inspect(Example({}).write(tmp_path / "a"))
    assert report.bits_per_weight == 0
    assert "by width: none" in report.table()
    empty = inspect(Example({"e": example_weight((0, 2), 3, 8)}).write(tmp_path / "b"))
    assert empty.weights[0].bits_per_weight == 0
    assert " - " in empty.table()


@pytest.mark.parametrize("example", [kinds, small, lambda: Example({}), lambda: Example(stepped())])
def test_plot_writes_an_image(example, tmp_path):
    inspect(example().write(tmp_path / "a")).plot(tmp_path / "widths.png")
    assert (tmp_path / "widths.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_verifies_header_and_widths_but_reads_no_levels(tmp_path):
    blob = KINDS.read_bytes()
    levels = read_packed(KINDS).packed["fixed"].words.numpy().tobytes()
    assert blob.count(levels) == 1
    (tmp_path / "levels").write_bytes(blob.replace(levels, bytes(len(levels))))
    assert inspect(tmp_path / "levels").weights == inspect(KINDS).weights
    widths = bytearray(blob)
    widths[-1] ^= 1
    (tmp_path / "widths").write_bytes(widths)
    with pytest.raises(PackedFileError, match=r"widths: .*checksum"):
        inspect(tmp_path / "widths")


def test_names_from_a_file_cannot_control_the_terminal(tmp_path):
    name = "\x1b[2Jgone\n"
    path = Example({name: example_weight((8,), 3, 8), "größe": example_weight((8,), 3, 8)}).write(tmp_path / "a")
    table = inspect(path).table()
    assert "\x1b" not in table
    assert "'\\x1b[2Jgone\\n'" in table
    assert "größe" in table
    blob = bytearray(path.read_bytes())
    blob[blob.index(read_packed(path).packed[name].words.numpy().tobytes())] ^= 1
    path.write_bytes(blob)
    with pytest.raises(PackedFileError) as caught:
        read_packed(path)
    assert "\x1b" not in str(caught.value)
