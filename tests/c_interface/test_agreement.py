"""C and Python give the same bits of every tensor, and refuse the same files.

The library comes from `make test` (build/tests) or from where DIFFQ_FAST_C_LIBRARY says.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import diffq_fast
from diffq_fast.files.tensor_bytes import tensor_bytes
from diffq_fast.packed.contents import PackedContents, read_packed
from diffq_fast.packed.header import PackedFileError
from fuzz_file_reader import Mutation, seeds
from support.c_library import (
    BAD_FILE,
    CANNOT_OPEN,
    NOT_FOUND,
    UNSUPPORTED,
    VARIABLE,
    CError,
    CFile,
    CLibrary,
    CountedMemory,
    Tensor,
    library_path,
)
from support.packed_examples import DATA
from support.packed_forgery import Forgery
from support.paths import ROOT

GOLDEN = sorted([*DATA.glob("packed_v*.safetensors"), *(DATA / "house").glob("*.safetensors")])
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
MUTATIONS = 1000
MOST_ELEMENTS = 1 << 20


@pytest.fixture(scope="module")
def library() -> CLibrary:
    path = library_path()
    if path is None:
        pytest.skip(f"the C library is not built: `make test` builds it, or {VARIABLE} says where it is")
    return CLibrary(path)


def same_bits(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    """Which NaN it is does not matter."""
    expected = theirs.to(torch.float32).numpy()
    numbers = ~np.isnan(expected)
    return (
        ours.shape == expected.shape
        and bool((np.isnan(ours) == ~numbers).all())
        and bool((ours[numbers].view(np.uint32) == expected[numbers].view(np.uint32)).all())
    )


def given(read: Callable[[], Any]) -> Any:
    """What is read, or None where the file is refused: by either reader, with the error that is meant for that."""
    try:
        return read()
    except PackedFileError:
        return None
    except CError as error:
        if error.status != BAD_FILE:
            raise
        return None


def compare(file: CFile, contents: PackedContents, most_elements: int = sys.maxsize) -> None:
    """Every entry: its name, its shape, and its bits, or that neither reader can decode it."""
    names = file.names()
    assert names == [*contents.packed, *contents.plain, *contents.ties]
    for index, name in enumerate(names):
        entry, described = contents.entries()[name], file.describe(index)
        assert described.sizes() == entry.shape
        if described.count > most_elements:
            continue
        tensor = given(partial(contents.tensor, name))
        if entry.dtype in FLOATS:
            values = given(partial(file.read, index))
            assert (values is None) == (tensor is None), name
            assert values is None or same_bits(values, tensor), name
            continue
        with pytest.raises(CError) as refused:
            file.read(index)
        assert refused.value.status == UNSUPPORTED
        assert file.data(index) == tensor_bytes(tensor).tobytes()


def test_the_library_has_the_packages_version(library):
    assert library.version == diffq_fast.__version__


def test_there_are_golden_files_of_all_kinds():
    assert len(GOLDEN) >= 12
    assert {path.name.split("_")[1] for path in GOLDEN if path.name.startswith("packed_")} == {"v1", "v2"}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_value_of_a_golden_file_is_pythons(library, path):
    contents = read_packed(path)
    assert contents.entries()
    for lazy in (False, True):
        with library.open(path, lazy=lazy) as file:
            compare(file, contents)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_file_in_memory_is_read_like_one_on_disk(library, path):
    with library.open(path.read_bytes()) as file:
        compare(file, read_packed(path))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_what_is_said_of_a_weight_is_what_python_knows(library, path):
    contents = read_packed(path)
    with library.open(path) as file:
        for name, weight in contents.packed.items():
            said, has_widths = file.describe(file.find(name)), weight.range_scope != "steps" and weight.count > 0
            widths = weight.widths.tolist() if has_widths else [0]
            assert (said.packed, said.least_bits, said.most_bits) == (1, min(widths), max(widths))
            assert (
                torch.empty(0, dtype=weight.dtype).dtype
                == {
                    b"F32": torch.float32,
                    b"F16": torch.float16,
                    b"BF16": torch.bfloat16,
                }[said.dtype]
            )
        for alias, name in contents.ties.items():
            assert file.describe(file.find(alias)).tied_to == name.encode()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_products_are_those_of_the_weight(library, path):
    contents = read_packed(path)
    generator = torch.Generator().manual_seed(1)
    with library.open(path) as file:
        for name, weight in contents.packed.items():
            if len(weight.shape) < 2 or not weight.count:
                continue
            matrix = weight.unpack(torch.float32).flatten(1).double()
            vectors = torch.randn(3, matrix.shape[1], generator=generator)
            expected = vectors.double() @ matrix.T
            size = vectors.double().abs() @ matrix.abs().T + 1
            found = torch.from_numpy(file.product(file.find(name), vectors.numpy())).double()
            assert bool(((found - expected).abs() <= 1e-5 * size).all()), name


def test_corrupted_files_are_refused_or_read_as_python_does(library, tmp_path):
    """A thousand forgeries, most of them with right checksums; memory in proportion to the file and what is read."""
    small, golden = seeds(tmp_path)
    path = tmp_path / "corrupted.safetensors"
    outcomes = {"read": 0, "refused": 0}
    for seed in range(MUTATIONS):
        mutation = Mutation(seed)
        data = mutation.changed(mutation.random.choice([*small, *golden]))
        path.write_bytes(data)
        memory = CountedMemory()
        contents = given(lambda: read_packed(path))
        file = given(lambda memory=memory: library.open_file(path, memory))
        assert (file is None) == (contents is None), seed
        most = 20 * len(data) + (64 << 10)
        if file is not None:
            compare(file, contents, MOST_ELEMENTS)
            elements = [file.describe(index).count for index in range(len(file))]
            most += 16 * max([count for count in elements if count <= MOST_ELEMENTS], default=0)
            file.close()
        outcomes["refused" if file is None else "read"] += 1
        assert memory.used == 0, seed
        assert memory.most <= most, seed
    assert min(outcomes.values()) > MUTATIONS // 20, outcomes


DEEP = "[" * 62 + "]" * 62  # in an object of an object
QUANTIZERS = {  # texts of the metadata's "quantizer", and whether they are read
    '{"class":"none","arguments":{}}': True,
    ' { "arguments" : { } ,\t"class" : "none" }\n': True,
    '{"class":"none","arguments":{"a":1.5e999,"b":-0.0,"c":[null,true]},"more":[{}]}': True,
    '{"class":"none","arguments":{"a":NaN}}': False,
    '{"class":"none","arguments":{"a":-Infinity}}': False,
    '{"class":"none","arguments":{"a":01}}': False,
    '{"class":"none","arguments":{"a":' + "9" * 4300 + "}}": True,
    '{"class":"none","arguments":{"a":' + "9" * 4301 + "}}": False,
    '{"class":"none","arguments":{"a":' + DEEP + "}}": True,
    '{"class":"none","arguments":{"a":[' + DEEP + "]}}": False,
    '{"class":"none","arguments":{"a":1,"a":2}}': False,
    '{"class":"none","arguments":{"a":1,"\\u0061":2}}': False,
    '{"class":"none","arguments":{"a":"\\ud83d\\ude00"}}': True,
    '{"class":"none","arguments":{"a":"\\ud83d"}}': False,
    '{"class":"none","arguments":{"a":"\\\\ud83d"}}': True,
    '{"class":"none","arguments":{"a":"\x01"}}': False,
    '{"class":"none","arguments":{"a":"\\x"}}': False,
    '{"class":"none","arguments":{"a":1,}}': False,
    '{"class":"none","arguments":{}}x': False,
    '\ufeff{"class":"none","arguments":{}}': False,
    '{"class":"none","arguments":[]}': False,
    '{"class":null,"arguments":{}}': False,
    '{"arguments":{}}': False,
    "[]": False,
    "": False,
}
HEADERS = {  # a part of the header's text, what stands in its place, and whether it is read
    ('"data_offsets":[0,8]', '"data_offsets" : [ -0 , 8 ]'): True,
    ('"data_offsets":[0,8]', '"data_offsets":[0.0,8]'): False,
    ('"data_offsets":[0,8]', '"data_offsets":[00,8]'): False,
    ('"data_offsets":[0,8]', '"data_offsets":[0,8,8]'): False,
    ('"data_offsets":[0,8]', '"data_offsets":[0,18446744073709551624]'): False,
    ('"data_offsets":[0,8]', '"data_offsets":[0,8],"more":1'): False,
    ('"dtype":"F32"', '"dtype":"\\u0046\\u00332"'): True,
    ('"dtype":"F32"', '"dtype":"F32","dtype":"F32"'): False,
    ('"w.range":', '"\\u0077.r\\u0061nge":'): True,
    ('"w.range":', '"w.range\\u0000":'): False,
    ('"format":"diffq_fast"', '"format":"diffq\\u005ffast"'): True,
    ('"format":"diffq_fast"', '"format":1'): False,
    ('"version":"1"', '"version":"2"'): False,
    ('"version":"1"', '"version":"1","unknown":"\\u00e9"'): True,
}


@pytest.mark.parametrize(("text", "sound"), QUANTIZERS.items(), ids=range(len(QUANTIZERS)))
def test_odd_texts_are_read_by_both_or_by_none(library, text, sound, tmp_path):
    forgery = Forgery(DATA / "packed_v1_documented.safetensors")
    forgery.metadata["quantizer"] = text
    path = forgery.write(tmp_path / "forged")
    assert (given(lambda: read_packed(path)) is not None) == sound
    assert given(lambda: library.open_file(path).close() or "read") == ("read" if sound else None)


@pytest.mark.parametrize(("change", "sound"), HEADERS.items(), ids=range(len(HEADERS)))
def test_odd_headers_are_read_by_both_or_by_none(library, change, sound, tmp_path):
    def changed(text: str) -> str:
        assert change[0] in text
        return text.replace(*change, 1)

    path = Forgery(DATA / "packed_v1_documented.safetensors").write(tmp_path / "forged", changed)
    assert (given(lambda: read_packed(path)) is not None) == sound
    assert given(lambda: library.open_file(path).close() or "read") == ("read" if sound else None)


def test_errors_name_the_file_and_the_tensor(library, tmp_path):
    path = tmp_path / "damaged.safetensors"
    data = bytearray((DATA / "packed_v1_documented.safetensors").read_bytes())
    data[0x290] ^= 1
    path.write_bytes(data)
    with pytest.raises(CError, match=rf"{re.escape(str(path))}: w\.words: checksum \w{{8}} stored, \w{{8}} found"):
        library.open_file(path)
    with pytest.raises(CError, match="no-such-file") as refused:
        library.open_file(tmp_path / "no-such-file")
    assert refused.value.status == CANNOT_OPEN
    with library.open(DATA / "packed_v1_documented.safetensors") as file:
        with pytest.raises(CError, match="no entry 'none'") as refused:
            file.find("none")
        assert refused.value.status == NOT_FOUND


def test_a_name_with_control_characters_does_not_reach_the_terminal(library, tmp_path):
    forgery = Forgery(DATA / "packed_v1_documented.safetensors")
    fields = forgery.layout["weights"]["w"]
    forgery.layout["weights"]["\x1b[31m\u202e"] = fields
    with pytest.raises(CError) as refused:
        library.open_file(forgery.write(tmp_path / "forged"))
    assert refused.value.args[0].isascii()
    assert refused.value.args[0].isprintable()


def test_an_unknown_version_is_told_before_anything_else(library, tmp_path):
    forgery = Forgery(DATA / "packed_v1_documented.safetensors")
    forgery.metadata["version"] = "3"
    forgery.tensors["b"]["dtype"] = "F4"
    with pytest.raises(CError, match="version '3', this reader knows versions '1' and '2'"):
        library.open_file(forgery.write(tmp_path / "newer"))


def test_a_pipe_is_refused_at_once(library, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CError, match="not a regular file"):
        library.open_file(tmp_path / "pipe")


def test_the_header_says_what_the_wrapper_assumes():
    """The order of the fields, as ctypes has it."""
    text = (ROOT / "csrc" / "include" / "diffq_fast.h").read_text()
    body = re.search(r"typedef struct diffq_fast_tensor \{(.*?)\n\} diffq_fast_tensor;", text, re.DOTALL).group(1)
    declared = re.findall(r"(\w+);", re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL))
    assert declared == [name for name, _ in Tensor._fields_]
