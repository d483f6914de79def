"""header: the format, the version and the checksums of a packed file, written and verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffq_fast.files.safetensors_reader import open_file
from diffq_fast.packed.header import NO_CHECKSUM, PackedFileError, header_checksum, read_packed_header, seal
from support.packed_examples import DATA
from support.packed_forgery import Forgery, compact

GOLDEN = DATA / "packed_v1_documented.safetensors"


def read(path: Path):
    with open_file(path) as file:
        return read_packed_header(file, str(path))


def test_packed_header_gives_the_documented_checksums():
    header = read(GOLDEN)
    assert header.checksums["w.range"] == 0xE387D1FC
    assert header_checksum(header.tensors.raw) == "01b8b20b"
    assert header.quantizer == {"class": "DiffQuantizer", "arguments": {"group_size": 4}}


def test_seal_puts_the_checksums_in_place_of_zeros():
    header = read(GOLDEN)
    fields = json.loads(header.tensors.raw)
    fields["__metadata__"] |= {"crc32": compact([NO_CHECKSUM] * 4), "header_crc32": NO_CHECKSUM}
    draft = compact(fields).encode().ljust(len(header.tensors.raw))
    assert seal(draft, list(header.checksums.values())) == header.tensors.raw


def test_packed_header_refuses_an_ordinary_file(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(PackedFileError, match="not a diffq_fast packed file: its format is 'not stated'"):
        read(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "pt", "not a diffq_fast packed file: its format is 'pt'"),
        ("version", "3", "version '3', this reader knows versions '1' and '2'"),
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
        read(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_packed_header_tells_the_version_before_anything_else(tmp_path):
    path = tmp_path / "new.safetensors"
    changed = GOLDEN.read_bytes().replace(b'"version":"1"', b'"version":"7"')  # the checksum is wrong now
    path.write_bytes(changed.replace(b'"dtype":"U32"', b'"dtype":"U37"'))
    with pytest.raises(PackedFileError, match="version '7'"):
        read(path)


def test_packed_header_refuses_another_spelling_of_the_checksum(tmp_path):
    path = tmp_path / "spaced.safetensors"
    Forgery(GOLDEN).write(path, lambda text: text.replace('"header_crc32":"', '"header_crc32": "'))
    with pytest.raises(PackedFileError, match="one form that can be checked"):
        read(path)


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
def test_packed_header_refuses_checksums(sums, words, tmp_path):
    def change(text):
        fields = json.loads(text)
        fields["__metadata__"]["crc32"] = sums
        return compact(fields)

    with pytest.raises(PackedFileError, match=words):
        read(Forgery(GOLDEN).write(tmp_path / "sums.safetensors", change))
