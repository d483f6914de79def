"""The noise: docs/philox.md against a second implementation in Python integers, and its statistics.

The statistical checks have fixed inputs, so they pass or fail for good. Each compares a score that is N(0, 1)
for ideal noise with 5.5: a false alarm has probability 4e-8, and one in the about 3,000 of them 2e-4. The
Kolmogorov-Smirnov checks use the quantile of probability 1e-7.
"""

import math
import random
import re
from itertools import pairwise

import pytest
import torch

from diffq_fast import functional
from diffq_fast.reference import philox
from support.paths import ROOT

PAGE = (ROOT / "docs" / "philox.md").read_text(encoding="utf-8")
MASK = 0xFFFFFFFF
BACKEND_TOLERANCE = 5e-5  # of docs/philox.md, section 3
CPU_TOLERANCE = 2e-6
KINDS = ("uniform", "gaussian")
MAX_SCORE = 5.5
MANY = 10_000_000
VARIANCE = {"uniform": 1 / 12, "gaussian": 1 / 4}
SQUARE_VARIANCE = {"uniform": 1 / 180, "gaussian": 1 / 8}  # variance of z * z


# -- a second implementation -------------------------------------------------------------------------------


def philox_integers(counter, key, rounds=10):
    """Philox4x32 in Python integers, as docs/philox.md words it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & MASK
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def counter_of(stream, element):
    block = element // 8
    return [block % 2**32, block // 2**32, stream, 0]


def key_words(key):
    return [key % 2**32, key // 2**32 % 2**32]


def draw(key, stream, element):
    word = philox_integers(counter_of(stream, element), key_words(key))[element % 8 // 2]
    return word >> 16 if element % 2 else word & 0xFFFF


def exact_noise(key, stream, element, kind):
    """z of one element in Python's double precision."""
    if kind == "uniform":
        return (draw(key, stream, element) + 0.5) / 65536 - 0.5
    even = element - element % 2
    first, second = ((draw(key, stream, e) + 0.5) / 65536 for e in (even, even + 1))
    turn = math.sin if element % 2 else math.cos
    return math.sqrt(-2 * math.log(first)) * turn(2 * math.pi * second) / 2


def noise_by_operator(key, stream, first, count, kind):
    return functional.noise(key, stream, count, begin=first, noise_kind=kind)


def random_places(number):
    """(key, stream, first element) with keys of all signs, streams and elements beyond 32 bits."""
    source = random.Random(20240607)
    places = [
        (-1, 2**32 - 1, 2**35 - 3),
        (-(2**63), 2**31, 2**35),
        (2**63 - 1, 0, 2**40 + 5),
        (0, 1, 2**32 - 9),
    ]
    for _ in range(number):
        element_bits = source.choice([8, 20, 33, 36, 45])
        places.append((source.getrandbits(64) - 2**63, source.getrandbits(32), source.getrandbits(element_bits)))
    return places


PLACES = random_places(20)


# -- known answers -----------------------------------------------------------------------------------------

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def from_hex(text):
    return [int(word, 16) for word in text.split()]


def as_words(values):
    return tuple(torch.tensor(value) for value in values)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, words):
    assert philox.philox4x32(as_words(from_hex(counter)), as_words(from_hex(key))).tolist() == from_hex(words)
    assert philox_integers(from_hex(counter), from_hex(key)) == from_hex(words)


def test_philox_uses_ten_rounds():
    counter, key = from_hex(KNOWN_ANSWERS[2][0]), from_hex(KNOWN_ANSWERS[2][1])
    words = philox.philox4x32(as_words(counter), as_words(key)).tolist()
    assert [rounds for rounds in range(20) if philox_integers(counter, key, rounds) == words] == [10]


@pytest.mark.parametrize(("key", "stream", "first"), PLACES)
def test_draws_equal_the_second_implementation(key, stream, first):
    expected = [draw(key, stream, element) for element in range(first, first + 19)]
    assert philox.draws(torch.tensor(key), stream, first, 19).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("key", "stream", "first"), PLACES)
def test_noise_equals_the_second_implementation(key, stream, first, kind):
    exact = [exact_noise(key, stream, element, kind) for element in range(first, first + 19)]
    expected = torch.tensor(exact, dtype=torch.float64)
    tolerance = 0 if kind == "uniform" else CPU_TOLERANCE
    for make in (philox.noise, noise_by_operator):
        z = make(torch.tensor(key), stream, first, 19, kind)
        assert z.dtype == torch.float32
        torch.testing.assert_close(z.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_operator_agrees_with_the_oracle_on_a_million_elements(kind):
    key = torch.tensor(-81985529216486895)
    z, expected = functional.noise(key, 7, 1_000_003, noise_kind=kind), philox.noise(key, 7, 0, 1_000_003, kind)
    torch.testing.assert_close(z, expected, rtol=0, atol=0 if kind == "uniform" else CPU_TOLERANCE)


def test_gaussian_is_the_stated_formula_for_every_first_draw():
    """Every u, also the largest, whose logarithm is the least exact; the angle runs along."""
    fractions = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    assert torch.sqrt(-2 * torch.log(fractions)).max() / 2 == pytest.approx(2.427293, abs=1e-6)
    key, count = torch.tensor(11), 2_000_000
    draws = philox.draws(key, 0, 0, count)
    assert len(draws[0::2].unique()) == 65536
    u = (draws.double() + 0.5) / 65536
    radius, angle = torch.sqrt(-2 * torch.log(u[0::2])) / 2, 2 * math.pi * u[1::2]
    expected = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1).view(-1)
    for z in (philox.gaussian(key, 0, 0, count), functional.noise(key, 0, count)):
        torch.testing.assert_close(z.double(), expected, rtol=0, atol=CPU_TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def oracle(kind):
    key = torch.tensor(-81985529216486895)
    z = functional.noise(key.cuda(), 2**32 - 1, 1_000_003, begin=2**35 - 5, noise_kind=kind).cpu()
    expected = philox.noise(key, 2**32 - 1, 2**35 - 5, 1_000_003, kind)
    torch.testing.assert_close(z, expected, rtol=0, atol=0 if kind == "uniform" else BACKEND_TOLERANCE)


@pytest.mark.parametrize("make", [philox.noise, noise_by_operator])
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_noise_equals_the_whole(kind, make):
    key = torch.tensor(3)
    whole = make(key, 5, 0, 5100, kind)
    for count in (0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000):
        for first in (0, 1, 2, 7, 8, 9, 63, 100):
            assert torch.equal(make(key, 5, first, count, kind), whole[first : first + count]), (first, count)


# -- the page ----------------------------------------------------------------------------------------------


def table_rows(columns):
    """The rows of the page's tables of hexadecimal and decimal numbers that have so many columns."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == columns and re.fullmatch(r"[0-9a-f]{8}.*|\d+", row[0])]


def test_page_states_philox_words_that_are_right():
    rows = table_rows(3)
    assert len(rows) == 5
    assert [tuple(row) for row in rows[:3]] == KNOWN_ANSWERS
    for counter, key, words in rows:
        assert philox_integers(from_hex(counter), from_hex(key)) == from_hex(words)


@pytest.mark.parametrize(
    ("place", "key", "stream", "first"), [(0, 0x0123456789ABCDEF, 3, 40), (1, -2, 2**32 - 1, 2**35)]
)
def test_page_works_its_examples_out_right(place, key, stream, first):
    rows = table_rows(6)[8 * place : 8 * place + 8]
    counter, key_text, words = table_rows(3)[3 + place]
    assert from_hex(counter) == counter_of(stream, first)
    assert from_hex(key_text) == key_words(key)
    assert [int(row[0]) for row in rows] == list(range(first, first + 8))
    assert [row[1] for row in rows] == [word for word in words.split() for _ in range(2)]
    assert [row[2] for row in rows] == ["low", "high"] * 4
    assert [int(row[3]) for row in rows] == philox.draws(torch.tensor(key), stream, first, 8).tolist()
    assert [float(row[4]) for row in rows] == philox.uniform(torch.tensor(key), stream, first, 8).tolist()
    normals = [exact_noise(key, stream, element, "gaussian") for element in range(first, first + 8)]
    assert [row[5] for row in rows] == [f"{z:.7f}" for z in normals]


def test_page_states_the_constants_of_the_code():
    for number in philox.MULTIPLIERS + philox.KEY_INCREMENTS:
        assert f"0x{number:08X}" in PAGE
    assert "**ten rounds**" in PAGE
    assert f"**{BACKEND_TOLERANCE:.0e}**".replace("e-0", "e-") in PAGE
    assert f"decimal {0x0123456789ABCDEF}" in PAGE
    fractions = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    assert f"{1 - (-torch.log(fractions)).mean().item():.1e}".replace("e-0", "e-") + ", relatively" in PAGE
    assert f"= {math.sqrt(-2 * math.log(2**-17)) / 2:.4f}," in PAGE


# -- the grid ----------------------------------------------------------------------------------------------


def test_uniform_grid_is_exact_and_its_mean_is_zero(monkeypatch):
    every = torch.arange(65536)
    monkeypatch.setattr(philox, "draws", lambda key, stream, first, count: every[first : first + count])
    grid = philox.uniform(torch.tensor(0), 0, 0, 65536)
    assert grid.dtype == torch.float32
    assert torch.equal(grid.double() * 2**17, 2.0 * every - 65535)
    assert grid.double().sum().item() == 0.0
    assert grid.min().item() == -0.5 + 2**-17
    assert grid.max().item() == 0.5 - 2**-17


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_no_and_of_one_element(kind, count):
    assert functional.noise(torch.tensor(1), 0, count, noise_kind=kind).shape == (count,)
    assert philox.noise(torch.tensor(1), 0, 3, count, kind).shape == (count,)


# -- statistics --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def sample(request):
    """The kind, and 10^7 draws of it in float64."""
    return request.param, functional.noise(torch.tensor(20210420), 0, MANY, noise_kind=request.param).double()


def correlation_scores(a, b, kind):
    """Scores of the correlation of the values and of their squares."""
    scale = math.sqrt(a.numel())
    squares = torch.dot(a * a - VARIANCE[kind], b * b - VARIANCE[kind]) / (SQUARE_VARIANCE[kind] * scale)
    return [(torch.dot(a, b) / (VARIANCE[kind] * scale)).item(), squares.item()]


def test_mean_and_variance(sample):
    kind, z = sample
    assert abs(z.mean().item()) * math.sqrt(MANY / VARIANCE[kind]) < MAX_SCORE
    error = (z * z).mean().item() - VARIANCE[kind]
    assert abs(error) * math.sqrt(MANY / SQUARE_VARIANCE[kind]) < MAX_SCORE


def test_kolmogorov_smirnov(sample):
    kind, z = sample
    z = torch.sort(z).values
    below = z + 0.5 if kind == "uniform" else torch.special.ndtr(2 * z)
    ranks = torch.arange(MANY, dtype=torch.float64) / MANY
    distance = max((below - ranks).max().item(), (ranks + 1 / MANY - below).max().item())
    grid = 2**-17  # the distribution function of z has steps of 2**-16 around the ideal one
    assert distance - grid < math.sqrt(-math.log(1e-7 / 2) / 2 / MANY)


def test_chi_square_of_the_draws():
    z = functional.noise(torch.tensor(-7), 1, MANY, noise_kind="uniform")
    draws = ((z + 0.5) * 65536 - 0.5).to(torch.int64)
    for part in (draws, draws[0::8], draws[5::8]):
        counts = torch.bincount(part, minlength=65536).double()
        expected = part.numel() / 65536
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert abs(chi_square - 65535) / math.sqrt(2 * 65535) < MAX_SCORE


def test_neighbours_are_not_correlated(sample):
    kind, z = sample
    for lag in (*range(1, 10), 15, 16, 17, 32, 64, 1024):
        assert max(map(abs, correlation_scores(z[:-lag], z[lag:], kind))) < MAX_SCORE, lag
    pairs = z.view(-1, 2)
    assert max(map(abs, correlation_scores(pairs[:, 0], pairs[:, 1], kind))) < MAX_SCORE


@pytest.mark.parametrize("group_size", [8, 16])
def test_groups_are_not_correlated(sample, group_size):
    """The sum over a group has group_size times the variance, and tells nothing of the next group's."""
    kind, z = sample
    sums = z.view(-1, group_size).sum(1)
    variance = group_size * VARIANCE[kind]
    excess = (SQUARE_VARIANCE[kind] / VARIANCE[kind] ** 2 - 2) / group_size
    error = (sums * sums).mean().item() - variance
    assert abs(error) * math.sqrt(len(sums) / (2 + excess)) / variance < MAX_SCORE
    neighbours = torch.dot(sums[:-1], sums[1:]).item() / variance
    assert abs(neighbours) / math.sqrt(len(sums)) < MAX_SCORE


def test_streams_are_not_correlated(sample):
    kind, z = sample
    count = MANY // 10
    key = torch.tensor(20210420)
    streams = (1, 2, 3, 2**16, 2**31, 2**32 - 1)
    others = [functional.noise(key, stream, count, noise_kind=kind).double() for stream in streams]
    series = [z[:count], *others]
    for a, b in [*pairwise(series), *((series[0], other) for other in others[1:])]:
        assert max(map(abs, correlation_scores(a, b, kind))) < MAX_SCORE


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_not_correlated(kind):
    """Consecutive keys, and keys that differ in one bit."""
    count = MANY // 40
    base = 0x1234_5678_9ABC_DEF0

    def series(key):
        return functional.noise(torch.tensor(key), 0, count, noise_kind=kind).double()

    for a, b in pairwise(series(key) for key in (-2, -1, 0, 1, 2, base - 1, base, base + 1)):
        assert max(map(abs, correlation_scores(a, b, kind))) < MAX_SCORE
    z = series(base)
    for bit in range(64):
        flipped = base ^ (1 << bit)
        other = series(flipped - 2**64 if flipped >= 2**63 else flipped)
        assert max(map(abs, correlation_scores(z, other, kind))) < MAX_SCORE, bit


def test_one_bit_of_key_stream_or_block_flips_half_of_the_draws_bits():
    count = 20_000
    base = philox.draws(torch.tensor(0), 0, 0, count)
    keys = [1 << bit for bit in range(63)] + [-(2**63)]
    changed = [philox.draws(torch.tensor(key), 0, 0, count) for key in keys]
    changed += [philox.draws(torch.tensor(0), 1 << bit, 0, count) for bit in range(32)]
    changed += [philox.draws(torch.tensor(0), 0, 8 << bit, count) for bit in range(14, 60)]
    for draws in changed:
        flips = base ^ draws
        for bit in range(16):
            share = ((flips >> bit) & 1).double().mean().item()
            assert abs(share - 0.5) * 2 * math.sqrt(count) < MAX_SCORE
