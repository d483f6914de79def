"""Coded levels: the operators against the oracle, their inverse, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from diffq_fast import functional
from diffq_fast.reference import coding as oracle
from diffq_fast.reference.level_code import CodeError, LevelCode, block_counts, lane_count
from support.operators import check, ops

COUNTS = (1, 2, 31, 32, 33, 1023, 1025, 2048, 2049, 5000, 63489, 66000)
CODES = {
    "constant": LevelCode(3, 0),
    "plain": LevelCode(-40, 7),
    "table": LevelCode(-3, 0, (100, 500, 900, 1096, 900, 500, 100)),
    "low bits": LevelCode(-12, 2, (100, 500, 900, 1096, 900, 500, 100)),
    "escape": LevelCode(-1, 0, (1200, 1600, 1200, 96), escape=True),
    "escape and low bits": LevelCode(-4, 2, (2048, 2000, 48), escape=True),
    "long blocks": LevelCode(-1, 0, (40, 4000, 46, 10), escape=True, block_bits=19),
    "holes": LevelCode(-2, 0, (1000, 0, 2000, 0, 1000, 96), escape=True),
}


def levels_for(code, count, seed=0):
    """Levels that the code has symbols for, in about its frequencies; escapes anywhere."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 1 << code.low_bits, (count,), generator=generator)
    if not code.frequencies:
        return (code.origin + low).to(torch.int32)
    symbols = torch.multinomial(torch.tensor(code.frequencies).double(), count, True, generator=generator)
    levels = code.origin + (symbols << code.low_bits) + low
    if code.escape:
        anywhere = torch.randint(-32768, 32768, (count,), generator=generator)
        levels = torch.where(symbols == len(code.frequencies) - 1, anywhere, levels)
    return levels.to(torch.int32)


def call(code):
    return code.origin, code.low_bits, list(code.frequencies), code.escape, code.block_bits


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("count", COUNTS)
def test_streams_equal_the_oracle_and_come_back(name, count):
    code = CODES[name]
    levels = levels_for(code, count)
    words = functional.encode_levels(levels, code)
    if count > 5000 and name not in ("table", "escape and low bits"):  # the oracle takes seconds
        assert torch.equal(functional.decode_levels(words, count), levels)
        return
    assert torch.equal(words, oracle.encode_levels(levels, code))
    assert functional.stream_size(words, count) == len(words)
    longer = torch.cat([words, torch.tensor([-1, 7], dtype=torch.int16)])
    assert torch.equal(functional.decode_levels(longer, count), levels)
    assert torch.equal(oracle.decode_levels(longer, count), levels)


@pytest.mark.parametrize("name", ["table", "escape and low bits"])
def test_streams_of_several_blocks_come_back(name):
    levels = levels_for(CODES[name], 300_000)
    words = functional.encode_levels(levels, CODES[name])
    assert torch.equal(functional.decode_levels(words, 300_000), levels)


def test_blocks_and_lanes():
    assert block_counts(131072, 17) == [131072]
    assert block_counts(131073, 17) == [65568, 65505]
    assert block_counts(131073, 19) == [131073]
    assert block_counts(0, 17) == []
    assert [lane_count(values, 17) for values in (1, 2048, 2049, 63488, 63489, 131072)] == [1, 1, 2, 31, 32, 32]
    assert [lane_count(values, 23) for values in (1, 131072, 131073, 1 << 23)] == [1, 1, 2, 32]


@pytest.mark.parametrize("name", CODES)
def test_opcheck(name):
    levels = levels_for(CODES[name], 100)
    check(ops.encode_levels.default, levels, *call(CODES[name]))
    check(ops.decode_levels.default, functional.encode_levels(levels, CODES[name]), 100)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64])
def test_levels_of_every_integer_dtype_and_layout(dtype):
    levels = torch.arange(-60, 60).reshape(10, 12).to(dtype)
    assert torch.equal(functional.decode_levels(functional.encode_levels(levels), 120).view(10, 12), levels.int())
    assert torch.equal(functional.encode_levels(levels.t()), functional.encode_levels(levels.t().contiguous()))


@pytest.mark.parametrize("name", [None, *CODES])
def test_no_levels_have_no_stream(name):
    nothing, code = torch.empty(0, dtype=torch.int32), CODES.get(name)
    words = functional.encode_levels(nothing, code)
    assert words.dtype == torch.int16
    assert len(words) == functional.stream_size(words, 0) == 0
    assert functional.decode_levels(words, 0).shape == (0,)
    assert functional.stream_size(functional.encode_levels(nothing + 5), 0) == 0
    if code is not None:
        assert len(oracle.encode_levels(nothing, code)) == len(ops.encode_levels.default(nothing, *call(code))) == 0


def test_no_levels_with_a_code_that_is_none_are_refused():
    with pytest.raises(ValueError, match="17 low bits"):
        functional.encode_levels(torch.empty(0, dtype=torch.int32), LevelCode(0, 17))


@pytest.mark.parametrize("deviation", [0.15, 0.2, 0.3, 0.5, 2.0, 20.0, 100.0])
@pytest.mark.parametrize("count", [200_000, 1_000_000])
def test_a_chosen_code_is_close_to_the_entropy(deviation, count):
    levels = (torch.randn(count, generator=torch.Generator().manual_seed(1)) * deviation).round().int()
    counts = torch.bincount(levels - levels.min()).double()
    chance = counts[counts > 0] / count
    entropy = float(-(chance * chance.log2()).sum()) * count / 8
    code = functional.level_code(levels)
    words = functional.encode_levels(levels, code)
    table = len(code.frequencies) + 8
    assert 2 * len(words) <= 1.02 * entropy + 2 * table + 24
    assert torch.equal(functional.decode_levels(words, count), levels)


def test_levels_of_which_few_are_far_get_an_escape():
    levels = torch.zeros(100_000, dtype=torch.int32)
    levels[::7], levels[5], levels[50_000] = 1, 30_000, -32768
    code = functional.level_code(levels)
    assert code.escape
    assert len(code.frequencies) == 3
    words = functional.encode_levels(levels, code)
    assert 2 * len(words) < 1.01 * 100_000 * 0.5917 / 8 + 100
    assert torch.equal(functional.decode_levels(words, 100_000), levels)


BAD_CODES = [
    (LevelCode(0, 17), "17 low bits"),
    (LevelCode(0, 3, block_bits=19), "blocks"),
    (LevelCode(0, 0, (2048, 2048), block_bits=18), "blocks"),
    (LevelCode(0, 0, (4096,)), "table of 1 symbols|frequency"),
    (LevelCode(0, 0, (2000, 2000)), "sum 4000"),
    (LevelCode(0, 0, (-1, 4097)), "frequency"),
    (LevelCode(32767, 0, (2048, 2048)), "beyond 16 bits"),
    (LevelCode(-32769, 0), "beyond 16 bits"),
    (LevelCode(0, 0, (4095, 1, 0), escape=True), "never occurs"),
    (LevelCode(0, 0, tuple([16] * 255 + [8, 8])), "257 symbols"),
]


@pytest.mark.parametrize(("code", "problem"), BAD_CODES)
def test_codes_that_are_none_are_refused(code, problem):
    with pytest.raises(ValueError, match=rf"encode_levels: .*({problem})"):
        functional.encode_levels(torch.zeros(5, dtype=torch.int32), code)
    with pytest.raises(ValueError, match="encode_levels: "):
        ops.encode_levels(torch.zeros(5, dtype=torch.int32), *call(code))


@pytest.mark.parametrize("name", ["constant", "plain", "table", "low bits"])
def test_a_level_without_a_symbol_is_refused(name):
    levels = levels_for(CODES[name], 50)
    levels[20] = 1000
    with pytest.raises(ValueError, match=r"encode_levels: .*no symbol"):
        functional.encode_levels(levels, CODES[name])


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("count", [3, 700, 66000])
def test_no_truncated_stream_is_read(name, count):
    words = functional.encode_levels(levels_for(CODES[name], count), CODES[name])
    for length in {0, 1, len(words) // 3, len(words) // 2, len(words) - 1}:
        with pytest.raises(CodeError):
            functional.decode_levels(words[:length], count)
        with pytest.raises(CodeError):
            ops.decode_levels(words[:length], count)


@pytest.mark.parametrize("name", ["table", "escape", "low bits"])
def test_another_number_of_levels_is_refused(name):
    words = functional.encode_levels(levels_for(CODES[name], 5000), CODES[name])
    for count in (4000, 4999, 5001, 5050, 70_000):
        with pytest.raises(CodeError):
            functional.decode_levels(words, count)


def test_damaged_streams_are_refused_or_decode_the_same_everywhere():
    """A flipped bit may hit low bits or an escape, whose levels then differ; all else shows in the states."""
    code = CODES["escape and low bits"]
    levels = levels_for(code, 66_000)
    words = functional.encode_levels(levels, code)
    refused = 0
    for bit in range(0, 16 * len(words), 9973):
        damaged = words.clone()
        damaged[bit // 16] ^= torch.tensor(1 << bit % 16).to(torch.int16)
        try:
            made = ops.decode_levels(damaged, 66_000)
        except CodeError:
            refused += 1
            continue
        assert not torch.equal(made, levels)
    assert refused > 5


def test_words_that_are_no_stream_are_refused():
    generator = torch.Generator().manual_seed(3)
    for _ in range(300):
        words = torch.randint(-32768, 32768, (40,), generator=generator).to(torch.int16)
        for decode in (ops.decode_levels, oracle.decode_levels):
            try:
                assert decode(words, 100).shape == (100,)
            except CodeError:
                continue


@pytest.mark.parametrize("count", [1, 2, 100])
def test_words_that_are_strided(count):
    levels = levels_for(CODES["table"], count)
    words = functional.encode_levels(levels, CODES["table"])
    strided = torch.stack([words, words], 1)[:, 0]
    assert torch.equal(functional.decode_levels(strided, count), levels)
    assert functional.stream_size(strided, count) == len(words)
    with pytest.raises(CodeError):
        functional.decode_levels(strided[:1], count)
