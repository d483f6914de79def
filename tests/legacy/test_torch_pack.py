"""diffq's rectangle packer: golden planes, awkward counts, storage types, and what it refuses."""

import pytest
import torch

from diffq_fast import torch_pack
from support.packers import COUNTS, PACKERS, random_levels

STORAGES = {torch.uint8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}


@pytest.mark.parametrize("count", [1, 63, 2048, 5000])
@pytest.mark.parametrize("nbits", range(1, 16))
def test_planes_equal_diffqs(nbits, count):
    levels, planes = PACKERS[f"levels.{nbits}.{count}"], PACKERS[f"torch_pack.{nbits}.{count}"]
    packed = torch_pack.pack(levels, nbits)
    assert packed.dtype == torch.int16
    assert torch.equal(packed, planes)
    assert torch.equal(torch_pack.unpack(planes, count), levels)


def test_one_bit_lands_where_the_definition_says():
    levels = torch.zeros(33, dtype=torch.int32)  # padded to 48, seen as [16, 3]
    levels[3 * 10 + 2] = 2
    expected = torch.zeros(2, 3, dtype=torch.int16)
    expected[1, 2] = 2**10
    assert torch.equal(torch_pack.pack(levels, 2), expected)


@pytest.mark.parametrize("storage_dtype", STORAGES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("nbits", [1, 8, 15])
def test_unpack_gives_back_the_values(count, nbits, storage_dtype):
    levels = random_levels(count, nbits)
    packed = torch_pack.pack(levels, nbits, storage_dtype)
    assert packed.dtype == storage_dtype
    assert packed.shape == (nbits, -(-count // STORAGES[storage_dtype]))
    unpacked = torch_pack.unpack(packed, count)
    assert unpacked.dtype == torch.int16
    assert torch.equal(unpacked, levels.to(torch.int16))


@pytest.mark.parametrize(("highest", "planes"), [(0, 0), (1, 1), (2, 2), (255, 8), (256, 9), (32767, 15)])
def test_nbits_0_takes_as_many_planes_as_needed(highest, planes):
    levels = torch.tensor([0, highest, highest // 2])
    packed = torch_pack.pack(levels)
    assert packed.shape == (planes, 1)
    assert torch.equal(torch_pack.unpack(packed, 3), levels.to(torch.int16))


def test_unpack_without_length_gives_the_padding_too():
    unpacked = torch_pack.unpack(torch_pack.pack(torch.tensor([5, 6])))
    assert unpacked.tolist() == [5, 6] + 14 * [0]


def test_non_contiguous_values_go_in_row_major_order():
    levels = torch.arange(80).view(8, 10).t()
    assert torch.equal(torch_pack.unpack(torch_pack.pack(levels), 80), levels.reshape(-1).to(torch.int16))


@pytest.mark.parametrize(
    ("values", "arguments", "error", "words"),
    [
        ([1.0], {}, TypeError, "x must be an integer tensor, got torch.float32"),
        ([-1, 3], {}, ValueError, "values from 0 to 32767, found -1"),
        ([3, 32768], {}, ValueError, "values from 0 to 32767, found 32768"),
        ([7, 8], {"nbits": 3}, ValueError, "values from 0 to 7 for nbits=3, found 8"),
        ([-1, 3], {"nbits": 3}, ValueError, "values from 0 to 32767, found -1"),
        ([3, 32768], {"nbits": 3}, ValueError, "values from 0 to 32767, found 32768"),
        ([3, 32768], {"nbits": 16}, ValueError, "values from 0 to 32767, found 32768"),
        ([2**31 + 1, 2], {"nbits": 15}, ValueError, "values from 0 to 32767, found 2147483649"),
        ([0] * 9000 + [9, 12] + [0] * 9000, {"nbits": 3}, ValueError, "from 0 to 7 for nbits=3, found 12"),
        ([1], {"nbits": 17}, ValueError, "nbits must be between 0 and 16, .*got 17"),
        ([1], {"storage_dtype": torch.int8}, TypeError, "storage_dtype must be one of .*got torch.int8"),
    ],
)
def test_pack_refuses(values, arguments, error, words):
    with pytest.raises(error, match="torch_pack.pack: .*" + words):
        torch_pack.pack(torch.tensor(values), **arguments)


@pytest.mark.parametrize(
    ("packed", "length", "error", "words"),
    [
        (torch.zeros(2, 3), 1, TypeError, "packed must be .* got torch.float32"),
        (torch.zeros(1, 2, 3, dtype=torch.int16), 1, TypeError, r"got torch.int16 \[1, 2, 3\]"),
        (torch.zeros(2, 3, dtype=torch.int16), 49, ValueError, "between 0 and 48, .*got 49"),
        (torch.zeros(2, 3, dtype=torch.int16), -1, ValueError, "between 0 and 48, .*got -1"),
        (torch.zeros(17, 3, dtype=torch.int16), 1, ValueError, "at most 16 planes, got 17"),
    ],
)
def test_unpack_refuses(packed, length, error, words):
    with pytest.raises(error, match=words):
        torch_pack.unpack(packed, length)
