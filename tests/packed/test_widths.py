"""packed_widths: three codings of the groups' widths, of exact size, and none lets hostile bytes through."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffq_fast import functional
from diffq_fast.packed.widths import (
    WidthError,
    coding_problem,
    decode_widths,
    encode_widths,
    fixed_bytes,
    stream_levels,
)
from diffq_fast.reference.sizes import group_count, word_count

COUNTS = [0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000]


def uint8(values) -> np.ndarray:
    return np.array(list(values), dtype=np.uint8)


@pytest.mark.parametrize(
    ("widths", "coding", "data"),
    [
        ([], ["one", 1], ""),
        ([5] * 7, ["one", 5], ""),
        ([16], ["one", 16], ""),
        ([2, 3], ["runs"], "01 02"),
        (
            [16] * 8 + [1] * 9,
            ["runs"],
            "7f 80 01",
        ),  # 7 * 16 + 15 = 127 fits one byte, 8 * 16 + 0 = 128 does not
        ([4] * 1025 + [4, 9], ["runs"], "93 80 01 08"),  # 1025 * 16 + 3 = 16403 = 1 << 14 | 0 << 7 | 19
        ([3, 4] * 3, ["fixed", 3, 1], "2a 00 00 00"),  # 6 values of 1 bit: one lane, rows 0 … 5
    ],
)
def test_encode_widths_writes_the_smallest_coding(widths, coding, data):
    assert encode_widths(uint8(widths)) == (coding, bytes.fromhex(data))
    assert decode_widths(coding, bytes.fromhex(data), len(widths)).tolist() == widths


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_fixed_widths_are_a_stream_like_the_levels(count, bits):
    values = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
    width = torch.full((min(count, 1),), bits, dtype=torch.uint8)
    words = functional.pack(torch.from_numpy(values.astype(np.int32)), width, group_size=0)
    data = words.numpy().tobytes()
    assert len(data) == fixed_bytes(count, bits)
    assert decode_widths(["fixed", 1, bits], data, count).tolist() == (values + 1).tolist()


@given(
    st.lists(st.tuples(st.integers(1, 16), st.sampled_from([1, 2, 7, 8, 9, 63, 128, 1025])), max_size=60),
)
def test_widths_round_trip(runs):
    widths = np.concatenate([uint8([]), *(np.full(length, width, np.uint8) for width, length in runs)])
    coding, data = encode_widths(widths)
    assert coding_problem(coding) is None
    assert decode_widths(coding, data, len(widths)).tolist() == widths.tolist()
    span = int(widths.max() - widths.min()) if len(widths) else 0
    assert len(data) <= fixed_bytes(len(widths), span.bit_length())


@given(st.integers(0, 40), st.integers(0, 9), st.data())
def test_word_count_is_the_closed_formula(count, group_size, data):
    groups = group_count(count, group_size)
    widths = uint8(data.draw(st.lists(st.integers(1, 16), min_size=groups, max_size=groups)))
    size = group_size or count
    each = [min(size, count - group * size) for group in range(groups)]
    levels = [sum(n for n, width in zip(each, widths, strict=True) if width == b) for b in range(17)]
    assert stream_levels(widths, count, group_size) == levels
    assert word_count(levels) == sum(b * -(-n // 32) for b, n in enumerate(levels))
    packed = functional.packed_word_count(torch.from_numpy(widths), count, group_size)
    assert word_count(levels) == packed


@pytest.mark.parametrize(
    "coding",
    [None, {}, [], ["one"], ["one", 0], ["one", 17], ["one", True], ["one", 2.0], ["one", 2, 3], ["two", 2],
     ["fixed", 1], ["fixed", 0, 1], ["fixed", 17, 1], ["fixed", 1, 0], ["fixed", 1, 5],
     ["runs", 1], ["runs", []]],
)  # fmt: skip
def test_coding_problem_refuses(coding):
    assert "none of" in coding_problem(coding)


@pytest.mark.parametrize(
    ("coding", "data", "groups", "words"),
    [
        (["fixed", 1, 4], b"\0" * 12, 3, "expected 16 bytes for 3 widths of 4 bits, found 12"),
        (["fixed", 1, 4], b"\0" * 20, 3, "expected 16 bytes"),
        (["fixed", 14, 2], b"\3" + b"\0" * 7, 3, "widths must be between 1 and 16, found 17"),
        (["runs"], b"", 1, "the runs cover 0 groups, expected 1"),
        (["runs"], b"\x00", 0, "the runs cover 1 groups, expected 0"),
        (["runs"], b"\x10", 3, "the runs cover 2 groups, expected 3"),
        (["runs"], b"\x10\x10", 3, "the runs cover 4 groups, expected 3"),
        (["runs"], b"\x80", 1, "the last run is cut off"),
        (["runs"], b"\x00\x81", 1, "the last run is cut off"),
        (["runs"], b"\x81\x00", 1, "more bytes than it needs"),
        (["runs"], b"\xff" * 8 + b"\x7f", 9, "the runs cover 576,460,752,303,423,488 groups, expected 9"),
        (
            ["runs"],
            (b"\xff" * 8 + b"\x7f") * 32,
            2**63 - 1,
            "the runs cover 18,446,744,073,709,551,616 groups",
        ),
        (["runs"], b"\xff" * 9 + b"\x01", 2, "a run takes 10 bytes, at most 9 are allowed"),
        (["runs"], b"\xff" * 100 + b"\x01", 2, "a run takes 101 bytes"),
        (["runs"], b"\x00" * 5, 4, "the runs cover 5 groups, expected 4"),
    ],
)
def test_decode_widths_refuses(coding, data, groups, words):
    with pytest.raises(WidthError, match=words):
        decode_widths(coding, data, groups)


@given(st.binary(max_size=40), st.integers(0, 200))
def test_decode_runs_gives_valid_widths_or_refuses(data, groups):
    try:
        widths = decode_widths(["runs"], data, groups)
    except WidthError:
        return
    assert len(widths) == groups
    assert all(1 <= width <= 16 for width in widths.tolist())


@pytest.mark.parametrize("coding", [["runs"], ["fixed", 1, 1]])
def test_decoding_takes_a_small_multiple_of_the_table(coding):
    data = bytes(1 << 20) if coding == ["runs"] else bytes(1 << 17)
    tracemalloc.start()
    try:
        widths = decode_widths(coding, data, 1 << 20)
        levels = stream_levels(widths, 1 << 20, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert levels[1] == 1 << 20
    assert peak < (10 << 20) + 3 * (1 << 20)  # pieces, and two arrays of widths
