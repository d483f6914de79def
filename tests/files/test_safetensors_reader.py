"""safetensors_reader: what it reads, and that it refuses every header that a safetensors file must not have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffq_fast.files.safetensors_reader import (
    FileError,
    TensorEntry,
    open_file,
    read_header,
    read_json,
)
from support.packed_examples import DATA
from support.packed_forgery import compact, header_bytes

GOLDEN = DATA / "packed_v1_documented.safetensors"


def read(path: Path):
    with open_file(path) as file:
        return read_header(file, path)


def test_import_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import diffq_fast.files.safetensors_reader, diffq_fast.packed.layout\n"
        "import diffq_fast.packed.report, diffq_fast.cli.main"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DATA.parent.parent)


def test_read_header_gives_tensors_in_file_order():
    header = read(GOLDEN)
    assert list(header.tensors) == ["w.range", "w.words", "b", "w.widths"]
    assert header.tensors["w.words"] == TensorEntry("w.words", "U32", (5,), 8, 28)
    assert header.data_start == 8 + 0x280
    assert header.file_bytes == 680


def test_read_header_reads_what_the_safetensors_library_writes(tmp_path):
    import torch

    save_file({"a": torch.zeros(3), "b": torch.zeros(0, 2)}, tmp_path / "plain.safetensors")
    header = read(tmp_path / "plain.safetensors")
    assert header.tensors["a"].shape == (3,)


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    # name: (header text, data bytes, words of the error, does the safetensors library refuse it too)
    "no object": ("[]", 0, "does not begin with '{'", True),
    "space before": (' {"a":1}', 0, "does not begin with '{'", True),
    "no json": ('{"a":', 0, "header: not the JSON", True),
    "no utf-8": (b'{"\xff":1}', 0, "header: not the JSON", True),
    "deep nesting": ('{"a":' * 100_000, 0, "nested too deeply", True),
    "deep list": ('{"a":' + "[" * 1_000_000, 0, "nested too deeply", True),
    "lone surrogate": ('{"\\ud800":' + compact(entry()) + "}", 4, "header: not the JSON", True),
    "half a pair": ('{"\\ud83d\\\\\\ude00":' + compact(entry()) + "}", 4, "half of a surrogate pair", True),
    "half a pair in a list": ('{"a":{"shape":["\\ude00"]}}', 0, "half of a surrogate pair", True),
    "duplicate key": (f'{{"a":{compact(entry())},"a":{compact(entry())}}}', 4, "'a' occurs twice", False),
    "duplicate dtype": ('{"a":{"dtype":"U8","dtype":"U8"}}', 0, "'dtype' occurs twice", True),
    "NaN": ('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', 1, "NaN is not allowed", True),
    "fraction": ('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', 1, "1.0 is not allowed", True),
    "endless digits": (
        '{"a":{"dtype":"U8","shape":[' + "9" * 5000 + '],"data_offsets":[0,1]}}',
        1,
        "header: not the JSON",
        True,
    ),
    "true": ('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', 1, "a: the shape", True),
    "entry is a list": ('{"a":[]}', 0, "a: expected dtype, shape and data_offsets", True),
    "additional field": (compact({"a": entry() | {"strides": [1]}}), 4, "a: expected dtype", False),
    "no offsets": ('{"a":{"dtype":"U8","shape":[1]}}', 1, "a: expected dtype", True),
    "unknown dtype": (compact({"a": entry("F31")}), 4, "a: unknown dtype 'F31'", True),
    "dtype is a list": (compact({"a": entry([])}), 4, "a: unknown dtype", True),
    "shape is a number": ('{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}', 1, "a: the shape 1", True),
    "negative size": (compact({"a": entry(shape=(-1, -1))}), 4, "a: the shape", True),
    "sizes overflow": (compact({"a": entry("U8", (2**32, 2**32), (0, 0))}), 0, "a: the shape", True),
    "overflow beside 0": (compact({"a": entry("U8", (0, 2**62, 4), (0, 0))}), 0, "a: the shape", False),
    "33 dimensions": (compact({"a": entry("U8", (1,) * 33, (0, 1))}), 1, "a: the shape", False),
    "three offsets": (compact({"a": entry(offsets=(0, 4, 8))}), 4, "a: data_offsets", True),
    "negative offset": (compact({"a": entry(offsets=(-4, 0))}), 0, "a: data_offsets", True),
    "offset beyond int64": (compact({"a": entry(offsets=(2**63, 2**63 + 4))}), 4, "a: data_offsets", True),
    "reversed offsets": (compact({"a": entry(offsets=(4, 0))}), 4, "a: expected 4 bytes", True),
    "wrong size": (compact({"a": entry(offsets=(0, 8))}), 8, "a: expected 4 bytes for F32", True),
    "overlap": (
        compact({"a": entry(), "b": entry(offsets=(2, 6))}),
        6,
        "b: overlaps the tensor before",
        True,
    ),
    "same place": (compact({"a": entry(), "b": entry()}), 4, "b: overlaps the tensor before", True),
    "gap": (compact({"a": entry(), "b": entry(offsets=(5, 9))}), 9, "b: leaves a gap before it", True),
    "gap at first": (compact({"a": entry(offsets=(1, 5))}), 5, "a: leaves a gap before it", True),
    "data missing": (compact({"a": entry()}), 3, "a: the tensors need 4 bytes of data, the file has 3", True),
    "data left over": (
        compact({"a": entry()}),
        5,
        "header: the tensors need 4 bytes of data, the file",
        True,
    ),
    "metadata list": ('{"__metadata__":[]}', 0, "__metadata__: expected an object", True),
    "metadata number": ('{"__metadata__":{"a":1}}', 0, "__metadata__: expected an object", True),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_read_header_refuses(name, tmp_path):
    text, data, words, library_refuses = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(header_bytes(text) + bytes(data))
    with pytest.raises(FileError) as caught:
        read(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    if library_refuses:
        with pytest.raises(SafetensorError), safe_open(path, "np"):
            pass


@pytest.mark.parametrize("blob", [b"", b"\0" * 7, b"\xff" * 8, (2**63).to_bytes(8, "little") + b"{}"])
def test_read_header_refuses_impossible_lengths(blob, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(blob)
    with pytest.raises(FileError, match=r"short.safetensors: header: (expected at least 8|its length says)"):
        read(path)


def test_read_header_refuses_a_header_beyond_the_limit(tmp_path):
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(FileError, match="100,000,001 bytes"):
        read(path)


def test_whole_pairs_and_escaped_backslashes_are_no_halves():
    assert read_json(r'{"\ud83d\ude00":"\\ud800"}', "a", "header") == {"\U0001f600": r"\ud800"}
