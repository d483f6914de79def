"""The cells of the grid: every kernel with its options, on weights small enough for any engine.

Compiling takes nearly all of a cell's time. So some options take turns: each value of one occurs with each value of any
other, but not all combinations of three or more do. ``cells(every=True)`` has those too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from emulated import checks
from support.packed_row_forms import FORMS
from support.triton_weights import make, make_widths

GROUP_SIZES = (0, 1, 7, 8, 64, 1024, 4096)
SCOPES = {"range per tensor": False, "range per group": True}
KINDS, PARAMS = ("uniform", "gaussian"), ("bits", "noise")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Weights, and noisy weights with their gradients.
PAIRS = [("float32", "float32"), ("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "bfloat16"),
         ("float16", "float16")]  # fmt: skip
COUNTS = (0, 1, 9, 8200)  # 8,200: a whole tile, and one that is masked


class Cell(NamedTuple):
    """``family``: a row of the table. ``options``: what tells the cell from others of its row. ``operators``: as
    ``outcomes.fingerprint`` has them."""

    family: str
    options: str
    operators: tuple[str, ...]
    function: Callable[..., None]
    arguments: tuple

    @property
    def name(self) -> str:
        return f"{self.family}: {self.options}"

    def check(self) -> None:
        self.function(*self.arguments)


NOISY, LEVELS = ("add_noise", "weight_range"), ("quantize", "weight_range")
WORDS = *LEVELS, "words"


def _in_turn(combinations: Iterable[tuple], turns: Sequence[Any], every: bool) -> Iterator[tuple]:
    """Each combination with one of ``turns``, the next one each time; or with ``every`` one."""
    for place, combination in enumerate(combinations):
        for turn in turns if every else [turns[place % len(turns)]]:
            yield *combination, turn


def _weights(dtype, seed=0):
    """Empty, of one element, small, of two tiles, and an unaligned view."""
    return [*make(COUNTS, DTYPES[dtype], seed), checks.unaligned(521, DTYPES[dtype], seed + 5)]


def _passes(group_size, per_group, noise_kind, param, own, noisy):
    options = group_size, 2.0, 15.0, param, noise_kind, per_group
    checks.assert_passes_equal(_weights(own), _weights(noisy, seed=3), options, DTYPES[noisy])


def training(every: bool = False) -> Iterator[Cell]:
    turns = list(itertools.product(KINDS, PARAMS))
    for group_size, scope, pair, turn in _in_turn(itertools.product(GROUP_SIZES, SCOPES, PAIRS), turns, every):
        family = f"noisy weights, gradients, g = {group_size}, {scope}"
        arguments = group_size, SCOPES[scope], *turn, *pair
        yield Cell(family, f"{', '.join(turn)}, {' to '.join(pair)}", NOISY, _passes, arguments)


def _unusual(group_size, per_group):
    """Ties, constants, NaN in a weight and in gradients, an infinite gradient."""
    tied = checks.unaligned(8193).clamp(-1, 1)
    weights = [tied, torch.tensor([1.0, float("nan"), 2.0]), torch.ones(100)]
    grads = make([weight.numel() for weight in weights], seed=3)
    grads[0][17], grads[0][8000], grads[1][0] = float("nan"), float("inf"), float("-inf")
    checks.assert_passes_equal(weights, grads, (group_size, 2.0, 15.0, "bits", "uniform", per_group))


def unusual() -> Iterator[Cell]:
    for group_size, scope in itertools.product(GROUP_SIZES, SCOPES):
        arguments = group_size, SCOPES[scope]
        options = f"g = {group_size}, {scope}"
        yield Cell("ties, constants, NaN, infinities", options, NOISY, _unusual, arguments)
    for group_size, scope in itertools.product((0, 7, 8), SCOPES):
        arguments = group_size, SCOPES[scope]
        yield Cell(
            "152 weights at once", f"g = {group_size}, {scope}", NOISY, checks.assert_passes_of_many_equal, arguments
        )


def _one_launch(group_size, noise_kind, own, noisy):
    checks.assert_one_launch_equals_two(_weights(own), group_size, noise_kind, DTYPES[noisy])


def one_launch(every: bool = False) -> Iterator[Cell]:
    combinations = itertools.product((0, 1, 8, 64, 1024), PAIRS)
    for group_size, pair, noise_kind in _in_turn(combinations, KINDS, every):
        arguments = group_size, noise_kind, *pair
        options = f"g = {group_size}, {noise_kind}, {' to '.join(pair)}"
        yield Cell("noisy weights in one launch", options, NOISY, _one_launch, arguments)


def _uniform(group_size, own, noisy):
    checks.assert_uniform_noise_equals(_weights(own), _weights(noisy, seed=3), group_size, DTYPES[noisy])


def noise_and_ranges() -> Iterator[Cell]:
    for noise_kind in KINDS:
        yield Cell("noise", noise_kind, ("noise",), checks.assert_noise_equals, (noise_kind,))
    for dtype in DTYPES:
        for group_size in GROUP_SIZES:
            arguments = DTYPES[dtype], group_size, group_size > 0
            options = f"{dtype}, " + (f"g = {group_size}" if group_size else "per tensor")
            yield Cell("ranges", options, ("weight_range",), checks.assert_ranges_equal, arguments)
    for group_size, pair in itertools.product(GROUP_SIZES, PAIRS):
        options, arguments = f"g = {group_size}, {' to '.join(pair)}", (group_size, *pair)
        yield Cell("uniform noise of one step", options, ("uniform_noise",), _uniform, arguments)


def _levels(group_size, per_group, dtype):
    for weight in [*make((0, 1, 5000), DTYPES[dtype]), checks.unaligned(2049, DTYPES[dtype])]:
        checks.assert_levels_equal(weight, make_widths(weight.numel(), group_size), group_size, per_group)


def _words(group_size, per_group, dtype, choices):
    """4,107: a program's whole blocks, and one that is not."""
    for weight in [*make((0, 1, 4107), DTYPES[dtype]), checks.unaligned(1025, DTYPES[dtype])]:
        checks.assert_words_equal(weight, make_widths(weight.numel(), group_size, choices), group_size, per_group)


def _planes(group_size, dtype):
    for weight in [*make((1, 2500), DTYPES[dtype]), checks.unaligned(65, DTYPES[dtype])]:
        checks.assert_planes_of_weight_equal(weight, group_size)


def export(every: bool = False) -> Iterator[Cell]:
    scopes, combinations = list(SCOPES), list(itertools.product(GROUP_SIZES, DTYPES))
    for group_size, dtype, scope in _in_turn(combinations, scopes, every):
        options, arguments = f"g = {group_size}, {scope}, {dtype}", (group_size, SCOPES[scope], dtype)
        yield Cell("levels, weights of levels, rounded weights", options, LEVELS, _levels, arguments)
        yield Cell("words, of 3 and 8 bits", options, WORDS, _words, (*arguments, (3, 8)))
    for width, scope in _in_turn(((width,) for width in range(1, 17)), scopes, every):
        arguments = 8, SCOPES[scope], "float32", (width,)
        yield Cell("words, of one width", f"{width} bits, {scope}", WORDS, _words, arguments)
    for group_size, dtype in itertools.product((0, 7, 8, 64), DTYPES):
        arguments = group_size, dtype
        yield Cell(
            "bit planes of a weight", f"g = {group_size}, {dtype}", ("planes", "weight_range"), _planes, arguments
        )
    for (rows, columns), width in itertools.product(((8, 10), (16, 5), (32, 3), (64, 32)), (1, 5, 11, 16)):
        arguments = rows, columns, width
        options = f"{rows} rows, {width} bits"
        yield Cell("bit planes", options, ("planes",), checks.assert_planes_equal, arguments)


def rows_and_sizes() -> Iterator[Cell]:
    """1 vector, more of them at once, and so many that rows are unpacked first."""
    for name in FORMS:
        yield Cell(
            "packed rows and their products", name, ("packed_rows",), checks.assert_rows_equal, (name, (1, 3, 8, 9))
        )
    for group_size, param, extra_bits in itertools.product((0, 1, 3, 8, 10**6), PARAMS, (0.0, 1.5, -1.25)):
        counts = [0, 1, 9, 9001 if group_size in (1, 3) else 8 * 8200 + 3]
        options, arguments = f"g = {group_size}, {param}, {extra_bits:+} bits", (counts, group_size, param, extra_bits)
        yield Cell("sizes, gradients of sizes", options, ("weight_sizes",), checks.assert_sizes_equal, arguments)


def cells(every: bool = False) -> list[Cell]:
    """All cells; those whose kernels take longest to compile stand last, but for what ``every`` adds."""
    return [
        *noise_and_ranges(),
        *rows_and_sizes(),
        *one_launch(every),
        *unusual(),
        *training(every),
        *export(every),
    ]
