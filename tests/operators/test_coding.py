"""Coded levels: the operators against the oracle, their inverse, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from diffq_fast import functional
from diffq_fast.functional import LevelCode
from diffq_fast.reference import coding
from diffq_fast.reference.level_code import CodeError
from support.operators import ops

COUNTS = [0, 1, 2, 7, 31, 32, 33, 1000, 4096, 70_001]
KINDS = {
    "bell": lambda count: (torch.randn(count) * 3).round(),
    "narrow": lambda count: (torch.randn(count) * 0.2).round(),
    "one": lambda count: torch.full((count,), -5.0),
    "wide": lambda count: (torch.randn(count) * 4000).round().clamp(-32768, 32767),
    "outliers": lambda count: torch.where(torch.rand(count) < 0.001, 30_000.0, (torch.randn(count) * 2).round()),
}


def levels_of(kind, count, dtype=torch.int32):
    torch.manual_seed(count)
    return KINDS[kind](count).to(dtype)


def table(code):
    return code.origin, code.low_bits, list(code.frequencies), code.escape


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_words_are_those_of_the_oracle_and_give_the_levels_back(kind, count):
    levels = levels_of(kind, count)
    code = functional.level_code(levels)
    words = functional.encode_levels(levels, code)
    assert words.dtype == torch.int16
    assert torch.equal(words, coding.encode_levels(levels, code))
    assert torch.equal(functional.decode_levels(words, count), levels)
    assert functional.stream_size(words, count) == (len(words) if count else 0)
    assert torch.equal(coding.decode_levels(words, count), levels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_levels_of_every_integer_dtype(dtype):
    levels = levels_of("bell", 999).abs().to(dtype)
    assert torch.equal(functional.decode_levels(functional.encode_levels(levels), 999), levels.int())


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0, 20.0])
def test_a_stream_takes_the_entropy_of_its_levels_and_two_per_cent(deviation):
    torch.manual_seed(0)
    levels = (torch.randn(1 << 18) * deviation).round().int()
    chances = levels.unique(return_counts=True)[1].double() / len(levels)
    entropy = -(chances * chances.log2()).sum().item()
    assert 16 * len(functional.encode_levels(levels)) / len(levels) <= 1.02 * entropy + 0.002


def test_words_behind_the_stream_are_not_read():
    levels = levels_of("bell", 5000)
    words = functional.encode_levels(levels)
    longer = torch.cat([words, torch.randint(-100, 100, (50,), dtype=torch.int16)])
    assert torch.equal(functional.decode_levels(longer, 5000), levels)
    assert functional.stream_size(longer, 5000) == len(words)


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_a_part_of_a_stream_is_refused(cut):
    words = functional.encode_levels(levels_of("bell", 5000))
    for read in (functional.decode_levels, functional.stream_size):
        with pytest.raises(CodeError):
            read(words[:cut], 5000)


def test_damage_is_refused_or_gives_levels_but_never_more():
    torch.manual_seed(1)
    words = functional.encode_levels(levels_of("outliers", 3000))
    refused = 0
    for _ in range(300):
        damaged = words.clone()
        damaged[torch.randint(len(words), ())] ^= 1 << torch.randint(15, ()).item()
        try:
            assert functional.decode_levels(damaged, 3000).shape == (3000,)
        except CodeError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    "code",
    [LevelCode(0, 0, (2048, 2047)), LevelCode(0, 17), LevelCode(0, 0, (4096, 0), escape=True)],
)
def test_a_code_that_is_none_is_refused(code):
    with pytest.raises(ValueError, match="encode_levels: "):
        functional.encode_levels(torch.zeros(8, dtype=torch.int32), code)


def test_a_level_without_a_symbol_is_refused():
    code = functional.level_code(torch.arange(4, dtype=torch.int32))
    with pytest.raises(ValueError, match="encode_levels"):
        functional.encode_levels(torch.tensor([9], dtype=torch.int32), code)


def test_operators_are_deterministic():
    levels = levels_of("bell", 10_000)
    code = table(functional.level_code(levels))
    assert torch.equal(ops.encode_levels(levels, *code), ops.encode_levels(levels, *code))


@pytest.mark.parametrize("count", [1, 2, 100])
def test_words_that_are_strided(count):
    levels = levels_of("bell", count)
    words = functional.encode_levels(levels)
    strided = torch.stack([words, words], 1)[:, 0]
    assert torch.equal(functional.decode_levels(strided, count), levels)
    assert functional.stream_size(strided, count) == len(words)
    with pytest.raises(CodeError):
        functional.decode_levels(strided[:1], count)
