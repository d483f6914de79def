"""diffq's block packer: golden planes, awkward counts, and what it refuses."""

import pytest
import torch

from diffq_fast import bitpack
from support.packers import COUNTS, PACKERS, random_levels


@pytest.mark.parametrize("count", [1, 63, 2048, 5000])
@pytest.mark.parametrize("nbits", range(1, 16))
def test_planes_equal_diffqs(nbits, count):
    levels, planes = PACKERS[f"levels.{nbits}.{count}"], PACKERS[f"bitpack.{nbits}.{count}"]
    packed = bitpack.pack(levels, nbits)
    assert packed.dtype == torch.int64
    assert torch.equal(packed, planes)
    assert torch.equal(bitpack.unpack(planes, count), levels)


def test_one_bit_lands_where_the_definition_says():
    levels = torch.zeros(4096, dtype=torch.int32)
    levels[2048 + 32 * 63 + 5] = 4  # block 1, row 63, column 5, bit 2
    expected = torch.zeros(2, 3, 32, dtype=torch.int64)
    expected[1, 2, 5] = -(2**63)
    assert torch.equal(bitpack.pack(levels, 3), expected)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("nbits", [1, 4, 8, 11, 15])
def test_unpack_gives_back_the_values(count, nbits):
    levels = random_levels(count, nbits)
    packed = bitpack.pack(levels, nbits)
    assert packed.shape == (-(-count // 2048), nbits, 32)
    unpacked = bitpack.unpack(packed, count)
    assert unpacked.dtype == torch.int16
    assert torch.equal(unpacked, levels.to(torch.int16))


@pytest.mark.parametrize("block_size", [1, 16, 32, 64])
def test_block_size_is_the_number_of_columns(block_size):
    levels = random_levels(2049, 7)
    packed = bitpack.pack(levels, 7, block_size=block_size)
    assert packed.shape == (-(-2049 // (64 * block_size)), 7, block_size)
    assert torch.equal(bitpack.unpack(packed, 2049), levels.to(torch.int16))


@pytest.mark.parametrize(
    ("highest", "planes"),
    [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (255, 8), (256, 9), (16384, 15), (32767, 15)],
)
def test_nbits_0_takes_as_many_planes_as_needed(highest, planes):
    levels = torch.tensor([0, highest, highest // 2])
    packed = bitpack.pack(levels)
    assert packed.shape == (1, planes, 32)
    assert torch.equal(bitpack.unpack(packed, 3), levels.to(torch.int16))


def test_unpack_without_length_gives_the_padding_too():
    unpacked = bitpack.unpack(bitpack.pack(torch.tensor([5, 6])))
    assert unpacked.shape == (2048,)
    assert unpacked[:3].tolist() == [5, 6, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype_is_taken(dtype):
    assert bitpack.unpack(bitpack.pack(torch.tensor([1, 0, 1]).to(dtype)), 3).tolist() == [1, 0, 1]


def test_non_contiguous_values_go_in_row_major_order():
    levels = torch.arange(80).view(8, 10).t()
    assert torch.equal(bitpack.unpack(bitpack.pack(levels), 80), levels.reshape(-1).to(torch.int16))


def test_the_argument_stays_as_it_was():
    levels = random_levels(100, 9)
    before = levels.clone()
    bitpack.pack(levels)
    assert torch.equal(levels, before)


@pytest.mark.parametrize(
    ("values", "arguments", "error", "words"),
    [
        ([1.0], {}, TypeError, "x must be an integer tensor, got torch.float32"),
        ([-1, 3], {}, ValueError, "values from 0 to 32767, found -1"),
        ([3, 32768], {}, ValueError, "values from 0 to 32767, found 32768"),
        ([2**31 + 5], {}, ValueError, "found 2147483653"),
        ([7, 8], {"nbits": 3}, ValueError, "values from 0 to 7 for nbits=3, found 8"),
        ([-1, 3], {"nbits": 3}, ValueError, "values from 0 to 32767, found -1"),
        ([3, 32768], {"nbits": 3}, ValueError, "values from 0 to 32767, found 32768"),
        ([3, 32768], {"nbits": 16}, ValueError, "values from 0 to 32767, found 32768"),
        ([2**31 + 1, 2], {"nbits": 15}, ValueError, "values from 0 to 32767, found 2147483649"),
        ([0] * 9000 + [9, 12] + [0] * 9000, {"nbits": 3}, ValueError, "from 0 to 7 for nbits=3, found 12"),
        ([1], {"nbits": 17}, ValueError, "nbits must be between 0 and 16, .*got 17"),
        ([1], {"nbits": -1}, ValueError, "nbits must be between 0 and 16, .*got -1"),
        ([1], {"block_size": 0}, ValueError, "block_size must be positive, got 0"),
    ],
)
def test_pack_refuses(values, arguments, error, words):
    with pytest.raises(error, match="bitpack.pack: .*" + words):
        bitpack.pack(torch.tensor(values), **arguments)


@pytest.mark.parametrize(
    ("packed", "length", "error", "words"),
    [
        (torch.zeros(1, 2, 32), 1, TypeError, "packed must be int64 .* got torch.float32"),
        (torch.zeros(2, 32, dtype=torch.int64), 1, TypeError, r"got torch.int64 \[2, 32\]"),
        (torch.zeros(1, 2, 32, dtype=torch.int64), 2049, ValueError, "between 0 and 2048, .*got 2049"),
        (torch.zeros(1, 2, 32, dtype=torch.int64), -1, ValueError, "between 0 and 2048, .*got -1"),
        (torch.zeros(1, 17, 32, dtype=torch.int64), 1, ValueError, "at most 16 planes, got 17"),
    ],
)
def test_unpack_refuses(packed, length, error, words):
    with pytest.raises(error, match=words):
        bitpack.unpack(packed, length)
