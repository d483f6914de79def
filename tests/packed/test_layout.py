"""packed_layout: a file with right checksums whose contents contradict each other is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from diffq_fast.files.safetensors_reader import open_file
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.layout import name_conflict, read_layout
from diffq_fast.packed.report import inspect
from support.packed_examples import DATA, documented
from support.packed_forgery import Forgery

GOLDEN = DATA / "packed_v1_documented.safetensors"


def read(path: Path):
    with open_file(path) as file:
        return read_layout(file, str(path))


def weight(**fields):
    """Change fields of the layout of the weight w."""
    return lambda forgery: forgery.layout["weights"]["w"].update(fields)


def without(field):
    return lambda forgery: forgery.layout["weights"]["w"].pop(field)


def layout(**fields):
    return lambda forgery: forgery.layout.update(fields)


def text(text):
    return lambda forgery: setattr(forgery, "layout", text)


def quantizer(text):
    return lambda forgery: forgery.metadata.update(quantizer=text)


def data(name, *arguments):
    return lambda forgery: forgery.set_data(name, *arguments)


def drop(name):
    return lambda forgery: forgery.drop(name)


def ghost(forgery):
    forgery.layout["weights"]["ghost"] = forgery.layout["weights"]["w"]


def test_forgery_reproduces_the_golden_file(tmp_path):
    assert Forgery(GOLDEN).write(tmp_path / "same").read_bytes() == GOLDEN.read_bytes()


def test_read_layout_reads_the_documented_file():
    found = read(GOLDEN)
    assert found.weights["w"].shape == (2, 3)
    assert found.weights["w"].groups == 2
    assert found.widths["w"].tolist() == [2, 3]
    assert found.plain == ("b",)
    assert found.ties == {"v": "w"}
    assert found.half == {"b": "F32"}
    assert found.quantizer == {"class": "DiffQuantizer", "arguments": {"group_size": 4}}


HOSTILE = {
    "layout is a list": (text("[]"), "layout: expected a JSON dict"),
    "layout is no json": (text("{"), "layout: not the JSON"),
    "layout nested": (text('{"weights":' * 50_000), "layout: the JSON is nested too deeply"),
    "duplicate weight": (text('{"weights":{"a":1,"a":1}}'), "'a' occurs twice"),
    "no weights": (text("{}"), "layout: expected weights"),
    "weights is a list": (text('{"weights":[]}'), "layout: expected weights"),
    "unknown key": (layout(more={}), "layout: expected weights"),
    "weight is a number": (text('{"weights":{"w":1}}'), "w: the layout must state"),
    "no shape": (without("shape"), "w: the layout must state dtype, group_size, range, shape, widths"),
    "additional field": (weight(offset=0), "w: the layout must state"),
    "shape overflows": (weight(shape=[2**31, 2**32]), "w: the layout's shape"),
    "shape negative": (weight(shape=[-2, -3]), "w: the layout's shape"),
    "shape is text": (weight(shape="23"), "w: the layout's shape"),
    "more elements": (weight(shape=[2, 81]), "w: 20 packed bytes cannot hold 162 levels"),
    "many more elements": (weight(shape=[2**40]), "w: 20 packed bytes cannot hold 1,099,511,627,776 levels"),
    "other shape": (weight(shape=[2, 4]), None),  # same groups and words: nothing in the file contradicts it
    "third group": (weight(shape=[3, 3]), "w.widths: the runs cover 2 groups, expected 3"),
    "dtype": (weight(dtype="I64"), "w: dtype must be one of"),
    "dtype is a list": (weight(dtype=[]), "w: dtype must be one of"),
    "group_size negative": (weight(group_size=-1), "w: group_size must be 0 or positive"),
    "group_size true": (weight(group_size=True), "w: group_size must be 0 or positive"),
    "group_size beyond int64": (weight(group_size=2**63), "w: group_size must be 0 or positive"),
    "group_size largest": (weight(group_size=2**63 - 1), "w.widths: the runs cover 2 groups, expected 1"),
    "group_size 0": (weight(group_size=0), "w.widths: the runs cover 2 groups, expected 1"),
    "group_size 1": (weight(group_size=1), "w.widths: the runs cover 2 groups, expected 6"),
    "range": (weight(range="row"), "w: range must be one of"),
    "range per group": (weight(range="group"), "w: expected a range of (2, 2), found (2,)"),
    "coding": (weight(widths=["one", 17]), "w: the width coding ['one', 17] is none of"),
    "coding one with a table": (weight(widths=["one", 2]), "w.widths: all groups have one width"),
    "coding fixed": (weight(widths=["fixed", 1, 4]), "w.widths: expected 16 bytes for 2 widths, found 2"),
    "no words": (drop("w.words"), "w: the file has no tensor 'w.words'"),
    "no range": (drop("w.range"), "w: the file has no tensor 'w.range'"),
    "no widths": (drop("w.widths"), "w: the file has no U8 tensor 'w.widths'"),
    "ghost": (ghost, "ghost: the file has no tensor 'ghost.words'"),
    "words as F32": (data("w.words", bytes(20), "F32"), "w: 'w.words' must be U32, found F32"),
    "words in two dimensions": (data("w.words", bytes(20), "U32", [5, 1]), "w: the words must have one dim"),
    "one word less": (data("w.words", bytes(16), "U32"), "w.words: expected 20 packed bytes for 6 levels"),
    "one word more": (data("w.words", bytes(24), "U32"), "w.words: expected 20 packed bytes for 6 levels"),
    "range as U32": (data("w.range", bytes(8), "U32"), "w: 'w.range' must be F32"),
    "range of one": (data("w.range", bytes(4), "F32"), "w: expected a range of (2,), found (1,)"),
    "widths as I64": (data("w.widths", bytes(8), "I64"), "w: the file has no U8 tensor 'w.widths'"),
    "widths 2-d": (data("w.widths", b"\1\2", "U8", [2, 1]), "w: the file has no U8 tensor 'w.widths'"),
    "other widths": (data("w.widths", b"\1\3"), "w.words: expected 24 packed bytes for 6 levels, found 20"),
    "long run": (data("w.widths", b"\xff" * 8 + b"\x7f"), "w.widths: the runs cover 576,460,752,303,423,488"),
    "tie to nowhere": (layout(ties={"v": "x"}), "v: is tied to 'x', which the file does not have"),
    "tie to itself": (layout(ties={"v": "v"}), "v: is tied to 'v', which the file does not have"),
    "tie to a part": (layout(ties={"v": "w.words"}), "v: is tied to 'w.words', which the file does not have"),
    "tie of a plain tensor": (
        layout(ties={"b": "w"}),
        "layout: the name 'b' is both a plain tensor and a tied",
    ),
    "tie of a weight": (
        layout(ties={"w": "b"}),
        "layout: the name 'w' is both a quantised weight and a tied",
    ),
    "tie of a part": (layout(ties={"w.words": "b"}), "the name 'w.words' is both a part of"),
    "ties is a list": (layout(ties=[]), "ties: expected an object"),
    "tie to a number": (layout(ties={"v": 1}), "ties: expected an object"),
    "weight is plain too": (data("w", b"\0"), "the name 'w' is both a quantised weight and a plain tensor"),
    "half of a weight": (layout(half={"w": "F32"}), "half: names 'w', which is no plain tensor"),
    "half of nothing": (layout(half={"x": "F32"}), "half: names 'x', which is no plain tensor"),
    "half to integers": (layout(half={"b": "I64"}), "b: expected F16 restored to one of"),
    "half of F32": (data("b", bytes(4), "F32"), "b: expected F16 restored to one of"),
    "buffer unknown": (layout(buffers=["x"]), "buffers: names 'x'"),
    "buffers is an object": (layout(buffers={}), "buffers: expected a list"),
    "buffer is a number": (layout(buffers=[1]), "buffers: expected a list"),
    "quantizer is a list": (quantizer("[]"), "quantizer: expected a JSON dict"),
    "quantizer without class": (quantizer('{"arguments":{}}'), "quantizer: expected a class name"),
    "quantizer arguments": (quantizer('{"class":"a","arguments":1}'), "quantizer: expected a class name"),
    "quantizer NaN": (quantizer('{"class":"a","arguments":{"a":NaN}}'), "quantizer: not the JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_contradictions_are_refused_by_name(name, tmp_path):
    change, words = HOSTILE[name]
    forgery = Forgery(GOLDEN)
    change(forgery)
    path = forgery.write(tmp_path / "hostile.safetensors")
    if words is None:
        read_packed(path)
        return
    for reader in (inspect, read_packed):
        with pytest.raises(PackedFileError) as caught:
            reader(path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("pair", [(1, 0), (float("nan"), 0), (0, float("inf")), (-3e38, 3e38)])
def test_impossible_ranges_are_refused_before_decoding(pair, tmp_path):
    forgery = Forgery(GOLDEN)
    forgery.set_data("w.range", struct.pack("<2f", *pair), "F32")
    path = forgery.write(tmp_path / "range.safetensors")
    with pytest.raises(PackedFileError, match=r"w.range: expected ranges lo <= hi, finite"):
        read_packed(path)


def test_bool_bytes_other_than_0_and_1_are_refused(tmp_path):
    forgery = Forgery(GOLDEN)
    forgery.set_data("mask", b"\1\2", "BOOL")
    with pytest.raises(PackedFileError, match="mask: expected bytes 0 or 1 for bool, found 2"):
        read_packed(forgery.write(tmp_path / "bool.safetensors"))


def test_metadata_of_others_are_ignored(tmp_path):
    forgery = Forgery(GOLDEN)
    forgery.metadata["note"] = "trained on a Tuesday"
    assert read(forgery.write(tmp_path / "a")).weights == read(GOLDEN).weights


def test_a_weight_may_be_empty_and_coded_in_any_way(tmp_path):
    for coding in (["one", 3], ["fixed", 2, 2], ["runs"]):
        forgery = Forgery(documented().write(tmp_path / "a"))
        forgery.layout["weights"]["w"].update(shape=[0, 3], widths=coding)
        forgery.set_data("w.words", b"", "U32")
        forgery.set_data("w.widths", b"")
        if coding[0] == "one":
            forgery.drop("w.widths")
        assert read_packed(forgery.write(tmp_path / "b")).state_dict()["v"].shape == (0, 3)


def test_name_conflict_names_both_meanings():
    assert name_conflict(["a"], ["b"], ["c"]) is None
    assert name_conflict(["a"], ["b.words"], []) is None
    both = name_conflict(["a"], ["a.words"], [])
    assert both == "the name 'a.words' is both a part of the quantised weight 'a' and a plain tensor"
    assert "'__metadata__'" in name_conflict([], ["__metadata__"], [])
    assert "'a.range'" in name_conflict(["a", "a.range"], [], [])
