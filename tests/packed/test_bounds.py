"""What a hostile packed file can cost: memory is bounded by the file's length, whatever its header says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from diffq_fast.backends import cpu
from diffq_fast.cli import main
from diffq_fast.files.safetensors_reader import read_json
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.save_load import inspect, load, read_packed
from support.fuzz_limits import bounded
from support.packed_examples import DATA
from support.packed_forgery import Forgery

GOLDEN = DATA / "packed_v1_documented.safetensors"
SPARE = 2 << 20  # bytes


def peak_of(call: Callable[[], Any]) -> int:
    """Bytes that Python and numpy allocate at most during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def inspected(path: Path) -> int:
    return peak_of(lambda: inspect(path).to_json())


def test_one_bit_groups_of_one_element_cost_a_multiple_of_the_file(tmp_path):
    forgery = Forgery.empty(GOLDEN)
    forgery.add_weight("w", 1 << 23, group_size=1)
    path = forgery.write(tmp_path / "a")
    assert inspect(path).histogram == {1: 1 << 23}
    assert inspected(path) < 20 * path.stat().st_size + SPARE


def one_width(folder: Path) -> Path:
    forgery = Forgery.empty(GOLDEN)
    forgery.add_weight("w", 1 << 25, group_size=1)
    return forgery.write(folder / "a")


def test_one_width_for_all_groups_takes_no_memory_by_group(tmp_path):
    path = one_width(tmp_path)
    assert peak_of(lambda: read_packed(path)) < 4 * path.stat().st_size + SPARE


@pytest.mark.skipif(not cpu.status()[0], reason=f"{cpu.status()[1]}; torch's operators need more beside the result")
def test_one_width_for_all_groups_is_decoded_within_bounds(tmp_path):
    path = one_width(tmp_path)
    with bounded(path.stat().st_size, extra_seconds=60):
        weight = read_packed(path).state_dict()["w"]
    assert weight.shape == (1 << 25,)
    assert (weight.min().item(), weight.max().item()) == (0, 1)


@pytest.mark.parametrize("run", [b"\x01\x02", b"\x83\x01\x82\x01"], ids=["one byte", "two bytes"])
def test_a_table_of_runs_costs_a_multiple_of_the_file(run, tmp_path):
    forgery, runs, length = Forgery.empty(GOLDEN), (1 << 20) // len(run), 1 + (len(run) == 4) * 8
    forgery.add_weight("w", 2 * runs * length, group_size=1, width=1)
    forgery.layout["weights"]["w"]["widths"] = ["runs"]
    words = sum(4 * width * -(-runs * length // 32) for width in ((2, 3) if length == 1 else (4, 3)))
    forgery.set_data("w.words", b"\x55" * words, "U32")
    forgery.set_data("w.widths", run * runs)
    path = forgery.write(tmp_path / "a")
    assert sum(inspect(path).histogram.values()) == 2 * runs * length
    assert inspected(path) < 20 * path.stat().st_size + SPARE


def members(count: int) -> str:
    return "{" + ",".join(f'"{index:x}":0' for index in range(count)) + "}"


@pytest.mark.parametrize(
    "values",
    ["[" + "{}," * (2 << 20) + "{}]", "[" + '{"a":0},' * (1 << 20) + "0]", '["\U0001f600",' + members(1_100_000) + "]"],
    ids=["objects", "members", "one object"],
)
def test_values_far_beyond_a_header_are_refused_before_they_are_made(values, tmp_path):
    text = '{"a":' + values + "}"

    def read() -> None:
        with pytest.raises(PackedFileError, match="far more values than a header of"):
            read_json(text, str(tmp_path), "header")

    assert peak_of(read) < 16 * len(text.encode()) + SPARE


def test_a_header_of_many_short_entries_is_read():
    entry = '{"dtype":"U8","shape":[],"data_offsets":[0,0]}'
    text = "{" + ",".join(f'"{index:05x}":{entry}' for index in range(30_000)) + "}"
    assert len(read_json(text, "a", "header")) == 30_000
    assert peak_of(lambda: read_json(text, "a", "header")) < 20 * len(text)


@pytest.mark.parametrize("depth", [60, 65, 600, 985, 5000])
def test_arguments_nested_deeply_are_read_by_all_or_refused_by_all(depth, tmp_path, capsys):
    forgery = Forgery.empty(GOLDEN)
    nested = "[" * (depth - 2) + "]" * (depth - 2)
    forgery.metadata["quantizer"] = '{"class":"none","arguments":{"a":' + nested + "}}"
    path = str(forgery.write(tmp_path / "a"))
    sound = depth <= 64
    for verb in (["inspect"], ["inspect", "--json"], ["verify"], ["verify", "--json"]):
        assert main([*verb, path]) == (not sound)
        out, err = capsys.readouterr()
        assert err.count("\n") == (not sound)
        assert ('{"error": ' in out) == ("--json" in verb and not sound)
    if sound:
        assert isinstance(load(path), dict)
    else:
        with pytest.raises(PackedFileError, match="nested too deeply"):
            load(path)


CONTROL = "\x1b[31m\x1b]0;owned\x07\u202ered\n"


def test_control_characters_of_names_stay_in_the_file(tmp_path, capsys):
    forgery = Forgery.empty(GOLDEN)
    forgery.add_weight(CONTROL, 8)
    forgery.set_data(CONTROL + "plain", b"1")
    path = forgery.write(tmp_path / "a")
    with pytest.raises(ValueError, match="does not fit") as caught:
        load(path, nn.Linear(1, 1))
    assert r"\x1b[31m\x1b]0;owned\x07\u202ered\n" in str(caught.value)
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(nn.Linear(2, 4).weight))
    model._parameters[CONTROL] = model._parameters.pop("w")
    with pytest.raises(ValueError, match="does not fit") as shape:
        load(path, model, strict=False)
    forgery.set_data(CONTROL + ".range", bytes(8)[:-1] + b"\xff", "F32")
    with pytest.raises(ValueError, match="expected ranges") as ranges:
        load(forgery.write(tmp_path / "b"))
    assert main(["inspect", str(path)]) == main(["verify", str(path)]) == 0
    assert main(["verify", str(tmp_path / "b"), "--progress"]) == 1
    texts = [str(each.value) for each in (caught, shape, ranges)] + "".join(capsys.readouterr()).replace(
        "\r", "\n"
    ).split("\n")
    assert all(text.isprintable() for text in texts)
