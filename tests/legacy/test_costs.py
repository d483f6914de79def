"""What a hostile pickle can cost: each of these took seconds or gigabytes in a file of less than a megabyte."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc

import pytest
import torch

from diffq_fast.legacy.torch_file import read_torch_file

MEGABYTE = 1 << 20
SPARE = 40 * MEGABYTE
HEAD = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
FLOATS = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\x00\x00\x01\x00tQ"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def again(count: int, once: bytes) -> bytes:
    return once * count


def stream(body: bytes, storage: bytes = b"") -> bytes:
    keys = pickle.dumps(["0"] if storage else [], 2)
    return HEAD + b"\x80\x02" + body + keys + (struct.pack("<q", len(storage) // 4) + storage if storage else b"")


COLLIDING = b"".join(number((index + 1) * (2**61 - 1)) + b"N" for index in range(20_000))
PAIRS = b"](" + b"".join(text(f"{index}") + b"N\x86" for index in range(5_000)) + b"e"
PROGRAMS = {
    "keys with one hash": b"}(" + COLLIDING + b"u.",
    "many numbers as keys": b"}(" + b"".join(b"J" + struct.pack("<i", 1024 * k) + b"N" for k in range(40_000)) + b"u.",
    "a long tuple as key": b"(" + again(100_000, b"N") + b"tq\0](" + again(20_000, b"}h\0Ns") + b"e.",
    "equal long texts": text("a" * MEGABYTE) + b"q\0" + text("a" * MEGABYTE) + b"q\1]("
    + again(9_000, b"}h\0Nsh\1Ns") + b"e.",
    "many classes": b"(" + b"".join(b"ca\n%x\n" % index for index in range(100_000)) + b"t.",
    "long names of classes": text("a" * MEGABYTE) + b"q\0(" + again(10_000, b"h\0h\0\x93") + b"t.",
    "one tuple for many calls": b"ca\nb\nq\0(" + again(50_000, b"N") + b"tq\1](" + again(15_000, b"h\0h\1R") + b"e.",
    "one tuple for many objects": b"ca\nb\nq\0(" + again(50_000, b"N") + b"tq\1]("
    + again(15_000, b"h\0h\1\x81") + b"e.",
    "one list for many dicts": b"ccollections\nOrderedDict\nq\0" + PAIRS + b"\x85q\1](" + b"h\0h\1R" * 15_000 + b"e.",
    "one text for many bytes": b"c_codecs\nencode\nq\0" + text("a" * MEGABYTE) + text("latin1") + b"\x86q\1]("
    + again(15_000, b"h\0h\1R") + b"e.",
    "a long fraction": b"cfractions\nFraction\nM\x03\x00\x8b" + struct.pack("<i", 400_000) + b"\1" * 400_000
    + b"\x86R.",
    "a number of many digits": b"I" + b"1" * 4_000 + b"\n.",
    "a number in hexadecimal": b"(I0x" + b"f" * 1_000_000 + b"\nq\0" + again(20_000, b"h\0") + b"t.",
    "empty sets": b"(" + again(MEGABYTE, b"\x8f") + b"t.",
    "inert objects": b"ca\nb\nq\0(" + again(200_000, b"h\0)R") + b"t.",
}  # fmt: skip
TENSOR = b"ctorch._utils\n_rebuild_tensor\nq\0" + FLOATS + b"q\1"
TENSOR_PROGRAMS = {
    "a tensor filled by keys": TENSOR + b"h\0(h\1K\0(J\0\0\1\0t(K\1ttR" + again(50_000, b"K\0K\1s") + b".",
    "a shape of many sizes": TENSOR + b"(" + again(100_000, b"J\xff\xff\xff\x7f") + b"tq\2h\0(h\1K\0h\2h\2tR.",
    "many tensors": TENSOR + b"(h\1K\0(K\1t(K\1ttq\2](" + again(100_000, b"h\0h\2R") + b"e.",
}  # fmt: skip


def cost(data: bytes) -> int:
    """Bytes that Python allocates at most, of reading what is refused."""

    def read() -> None:
        with pytest.raises(ValueError, match=r"some\.th: not a readable torch\.save file; .* hostile \(Unpickling"):
            read_torch_file(io.BytesIO(data), "some.th")

    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_great_cost_is_refused_early(name):
    data = stream(PROGRAMS[name])
    allocated = cost(data)
    assert allocated < 20 * len(data) + SPARE


@pytest.mark.parametrize("name", TENSOR_PROGRAMS)
def test_tensors_cannot_be_made_or_written_without_end(name):
    data = stream(TENSOR_PROGRAMS[name], bytes(1 << 18))
    allocated = cost(data)
    assert allocated < 20 * len(data) + SPARE


@pytest.mark.parametrize("zipped", [True, False])
def test_many_small_tensors_are_no_great_cost(zipped):
    entries = [(torch.ones(1, dtype=torch.uint8) * (index % 9), (0.0, 1.0)) for index in range(2_000)]
    buffer = io.BytesIO()
    torch.save({"quantized": entries}, buffer, _use_new_zipfile_serialization=zipped)
    back = read_torch_file(buffer, "some.th")
    assert [int(levels) for levels, _ in back["quantized"]] == [index % 9 for index in range(2_000)]


def test_whole_numbers_as_keys_are_taken_like_those_of_an_optimizer():
    state = {index: {"step": index} for index in range(5_000)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    assert read_torch_file(buffer, "some.th") == state


def test_a_zip_file_that_states_more_stored_bytes_than_it_has(tmp_path):
    """Memory was taken for the stated ones, up to 2 GiB."""
    torch.save({"quantized": []}, tmp_path / "some.th")
    data = bytearray((tmp_path / "some.th").read_bytes())
    entry = data.index(b"PK\1\2")  # the first of the directory; its stored size is at byte 20
    data[entry + 20 : entry + 24] = struct.pack("<I", 2**30)
    (tmp_path / "some.th").write_bytes(data)
    with (tmp_path / "some.th").open("rb") as file, pytest.raises(ValueError, match="members are longer than the file"):
        read_torch_file(file, "some.th")
