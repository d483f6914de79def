"""packed_header: what it reads, and that it refuses every header that a safetensors file must not have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffq_fast.files.safetensors_reader import (
    PackedFileError,
    TensorEntry,
    header_checksum,
    open_file,
    read_checksums,
    read_header,
)
from support.packed_examples import DATA
from support.packed_forgery import Forgery, compact, header_bytes

GOLDEN = DATA / "packed_v1_documented.safetensors"


def read(path: Path, packed: bool = False):
    with open_file(path) as file:
        return read_header(file, path, packed)


def test_import_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import diffq_fast.files.safetensors_reader, diffq_fast.packed.layout\n"
        "import diffq_fast.packed.report, diffq_fast.cli.main"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DATA.parent.parent)


def test_read_header_gives_tensors_in_file_order():
    header = read(GOLDEN, packed=True)
    assert list(header.tensors) == ["w.range", "w.words", "b", "w.widths"]
    assert header.tensors["w.words"] == TensorEntry("w.words", "U32", (5,), 8, 28)
    assert header.data_start == 8 + 0x280
    assert header.file_bytes == 680
    assert read_checksums(header)["w.range"] == 0xE387D1FC
    assert header_checksum(header.raw) == "01b8b20b"


def test_read_header_reads_ordinary_files_which_are_not_packed(tmp_path):
    import torch

    save_file({"a": torch.zeros(3), "b": torch.zeros(0, 2)}, tmp_path / "plain.safetensors")
    header = read(tmp_path / "plain.safetensors")
    assert header.tensors["a"].shape == (3,)
    with pytest.raises(PackedFileError, match="not a diffq_fast packed file: its format is 'not stated'"):
        read(tmp_path / "plain.safetensors", packed=True)


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
    with pytest.raises(PackedFileError) as caught:
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
    with pytest.raises(PackedFileError, match=r"short.safetensors: header: (expected at least 8|its length says)"):
        read(path)


def test_read_header_refuses_a_header_beyond_the_limit(tmp_path):
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(PackedFileError, match="100,000,001 bytes"):
        read(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "pt", "not a diffq_fast packed file: its format is 'pt'"),
        ("version", "2", "version '2', this reader knows version '1'"),
        ("version", "", "version ''"),
        ("quantizer", None, "the metadata lack 'quantizer'"),
        ("layout", None, "the metadata lack 'layout'"),
        ("crc32", None, "the metadata lack 'crc32'"),
        ("header_crc32", None, "the metadata lack 'header_crc32'"),
    ],
)
def test_packed_header_names_what_is_wrong(key, value, words, tmp_path):
    def change(text):
        fields = json.loads(text)
        fields["__metadata__"][key] = value
        if value is None:
            del fields["__metadata__"][key]
        return compact(fields)

    path = Forgery(GOLDEN).write(tmp_path / "changed.safetensors", change)
    with pytest.raises(PackedFileError) as caught:
        read(path, packed=True)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_packed_header_tells_the_version_before_anything_else(tmp_path):
    path = tmp_path / "new.safetensors"
    changed = GOLDEN.read_bytes().replace(b'"version":"1"', b'"version":"7"')  # the checksum is wrong now
    path.write_bytes(changed.replace(b'"dtype":"U32"', b'"dtype":"U37"'))
    with pytest.raises(PackedFileError, match="version '7'"):
        read(path, packed=True)


def test_packed_header_refuses_another_spelling_of_the_checksum(tmp_path):
    path = tmp_path / "spaced.safetensors"
    Forgery(GOLDEN).write(path, lambda text: text.replace('"header_crc32":"', '"header_crc32": "'))
    with pytest.raises(PackedFileError, match="one form that can be checked"):
        read(path, packed=True)


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        ("{}", "expected a JSON list"),
        ("[", "not the JSON"),
        ('["00000000"]', "expected 4 checksums, found 1"),
        ('["0000000g","00000000","00000000","00000000"]', "8 lower-case hexadecimal digits"),
        ('["ABCDEF00","00000000","00000000","00000000"]', "8 lower-case hexadecimal digits"),
        ("[0,0,0,0]", "8 lower-case hexadecimal digits"),
        ('["00000000\\n","00000000","00000000","00000000"]', "8 lower-case hexadecimal digits"),
    ],
)
def test_read_checksums_refuses(sums, words, tmp_path):
    def change(text):
        fields = json.loads(text)
        fields["__metadata__"]["crc32"] = sums
        return compact(fields)

    header = read(Forgery(GOLDEN).write(tmp_path / "sums.safetensors", change))
    with pytest.raises(PackedFileError, match=words):
        read_checksums(header)
