"""No pickle makes its reader, or who looks at what was read, work without end.

Every one here is a few bytes or MB long, and is refused before it has cost more.
"""

from __future__ import annotations

import io
import pickle
import struct

import pytest

from diffq_fast.legacy.state import load_legacy
from diffq_fast.legacy.unpickler import RestrictedUnpickler
from diffq_fast.legacy.written_out import MAX_DEPTH, check_written_out

HEADS = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


def stream_of(body: bytes) -> io.BytesIO:
    """A file of torch's older container with a pickle of our choice."""
    return io.BytesIO(b"".join(pickle.dumps(head, 2) for head in HEADS) + body + pickle.dumps([], 2))


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8b" + struct.pack("<i", len(data)) + data


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def refused(body: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_legacy(stream_of(b"\x80\x02" + body))


def doubled(times: int) -> bytes:
    """t = (t, t), so many times: a few bytes each, and twice as long each when it is written out."""
    return b"(tq\1" + b"0h\1h\1\x86q\1" * times


@pytest.mark.parametrize("times", [25, 60])
def test_shared_parts_that_are_endless_when_written_out(times):
    refused(doubled(times) + b".", "parts when they are written out")


def test_a_long_text_that_is_held_many_times():
    refused(b"(" + text("x" * 100_000) + b"q\1" + b"h\1" * 1000 + b"t.", "parts when they are written out")


def test_a_long_name_of_a_class_that_is_held_many_times():
    refused(b"(c" + b"n" * 4_000 + b"\nn\nq\1" + b"h\1" * 1000 + b"t.", "parts when they are written out")


def test_values_that_hold_themselves():
    refused(b"]q\1h\1a.", "hold themselves")
    refused(b"}q\1K\1h\1s.", "hold themselves")


def test_values_nested_without_end():
    refused(b"]" * 1000 + b"a" * 999 + b".", f"more than {MAX_DEPTH} deep")


def test_objects_of_unknown_classes_are_measured_too():
    nested = b"ca\nB\nq\2(tq\1" + b"0h\2h\1h\1\x86Rq\1" * 25
    refused(nested + b".", "parts when they are written out")


def test_what_is_as_deep_and_as_long_as_allowed_passes():
    value: list = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    check_written_out([value][0], 100)
    check_written_out(["x" * 50] * 2, 103)
    with pytest.raises(pickle.UnpicklingError, match="more than 102 parts"):
        check_written_out(["x" * 50] * 2, 102)


@pytest.mark.parametrize("put", [b"u", b"d"])
def test_keys_whose_hashes_collide(put):
    keys = b"".join(integer((index + 1) * (2**61 - 1)) + b"N" for index in range(40_000))
    refused((b"}(" if put == b"u" else b"(") + keys + put + b".", "more than 31 bits")


def test_many_keys_that_are_tuples():
    keys = b"".join(b"J" + struct.pack("<i", index) + b"\x85N" for index in range(2000))
    refused(b"}(" + keys + b"u.", "keys that are tuples")


def test_fractions_of_huge_numbers():
    refused(b"cfractions\nFraction\n" + integer(3**50_000) + integer(2**80_000) + b"\x86R.", "short numbers")


@pytest.mark.parametrize(
    "many",
    [b"]" * 600_000, b"}" * 600_000, b"N" + b"\x85" * 600_000, b"N" + b"\x94" * 600_000],
    ids=["lists", "dicts", "tuples", "memo"],
)
def test_more_objects_than_the_length_warrants(many):
    refused(b"\x80\x04" + many + b".", "far more objects")


def test_marks_that_are_never_closed():
    refused(b"(" * 2000 + b"N.", "not closed")


def test_as_many_tensors_as_anybody_has():
    import torch

    state = {"quantized": [], "others": [torch.ones(1) for _ in range(20_000)]}
    torch.save(state, buffer := io.BytesIO())
    assert len(load_legacy(buffer).others) == 20_000


def test_many_unknown_classes_and_many_of_their_objects():
    refused(b"(" + b"".join(b"ca\n%x\n" % index for index in range(60_000)) + b"t.", "far more objects")
    refused(b"ca\nb\nq\0(" + b"h\0)R" * 200_000 + b"t.", "far more objects")


def test_a_length_that_the_file_does_not_have_is_not_asked_for():
    class Recorder(io.BytesIO):
        asked = 0

        def read(self, size=-1):
            self.asked = max(self.asked, size)
            return super().read(size)

    file = Recorder(b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.")
    assert RestrictedUnpickler(file).load() is None
    assert file.asked <= len(file.getvalue())


def test_a_flag_that_is_a_tensor(tmp_path):
    import torch

    meta = {"klass": "diffq.diffq.DiffQuantizer", "init_kwargs": {}, "packed": torch.zeros(3)}
    torch.save({"quantized": [], "meta": meta}, tmp_path / "s.th")
    with pytest.raises(ValueError, match=r"expected packed to be true or false, found torch.float32 \[3\]"):
        load_legacy(tmp_path / "s.th")
