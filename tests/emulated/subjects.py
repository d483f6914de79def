"""Small checks, each of some kernels, that mutants of those kernels are put through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from diffq_fast.backends import default
from diffq_fast.backends.triton import add_noise as launchers
from diffq_fast.backends.triton import add_noise_ticketed as ticketed
from diffq_fast.backends.triton import (
    noise,
    packed_rows,
    planes,
    quantize,
    tables,
    uniform_noise,
    weight_range,
    weight_sizes,
    words,
)
from diffq_fast.reference.sizes import group_count, stream_words
from ptx.schedules import random_order
from support.packed_row_forms import Rows
from support.triton_weights import KEY, assert_near, assert_same, make, make_logits, make_widths, options_of


def passes(group_size, per_group=False, counts=(8200, 9)):
    """Noisy weights and gradients, with ties and an infinite gradient."""
    weights, grads = make(counts), make(counts, seed=3)
    weights[0].clamp_(-2, 2)
    grads[0][17] = float("inf")
    logits, streams, options = make_logits(weights, group_size), [3, 4], (group_size, 2.0, 15.0, "bits", "uniform")
    lists, options = (weights, logits, KEY, streams, None), (*options, per_group)
    expected = default.add_noise(*lists, *options)
    backward = weights, logits, *expected[1:], KEY, streams
    gradients = default.add_noise_backward(grads, *backward, *options)

    def check():
        tables._cached_counters.cache_clear()  # a mutant may have left them other than zero
        noisy, *measured = launchers.add_noise(*lists, *options)
        assert_near(noisy, expected[0], 0, 2e-4)
        assert_same(measured, expected[1:])
        got = launchers.add_noise_backward(grads, *backward, *options)
        assert_near([*got[0], *got[1]], [*gradients[0], *gradients[1]], 2e-4, 1e-3)
        assert_same([got[2]], [gradients[2]])

    return check


def one_launch(emulator):
    """Under one random schedule, always the same."""
    weights = [make((521,))[0][1:], *make((8200, 9))]
    arguments = weights, make_logits(weights, 8), KEY, [5, 6, 7], options_of(8)
    expected, *ranges = launchers.noisy_weights(*arguments)

    def check():
        tables._cached_counters.cache_clear()
        emulator.settings.schedule = random_order(1)
        got, *measured = launchers.noisy_weights(*arguments, one_launch=True)
        assert_same([*got, *measured], [*expected, *ranges])
        left = tables.counters(torch.device("cpu"), ticketed.COUNTERS.value + len(weights))
        assert not left.any()

    return check


def drawn():
    """Where the number of a block has its first upper bit."""
    arguments = KEY, 5, 2**35 - 2413, 5000, "gaussian"
    expected = default.noise(*arguments)
    return lambda: assert_near([noise.noise(*arguments)], [expected], 0, 5e-5)


def packed():
    (weight,), widths = make((4107,)), make_widths(4107, 8, (4,))
    ranges, _ = default.weight_range([weight], 8, False)
    options = widths, ranges, 8, False
    expected = default.quantize_pack(weight, *options, stream_words(4107, 4))
    restored = default.unpack_dequantize(expected, *options, [4107], torch.float32)
    (rounded,) = default.fake_quantize([weight], [widths], ranges, 8, False)

    def check():
        assert_same([words.quantize_pack(weight, *options, expected.numel())], [expected])
        assert_same([words.unpack_dequantize(expected, *options, [4107], torch.float32)], [restored])
        assert_same(quantize.fake_quantize([weight], [widths], ranges, 8, False), [rounded])

    return check


def in_planes():
    """Blocks of fewer values than a program handles: the last program sees beyond them."""
    values = torch.randint(0, 1 << 11, (2051,), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    expected = default.pack_planes(values, 11, 8, 10)

    def check():
        assert_same([planes.pack_planes(values, 11, 8, 10)], [expected])
        assert_same([planes.unpack_planes(expected, 2051)], [values])

    return check


def planes_of_weight():
    """Of each width more levels than one program has."""
    count = 18_000
    (weight,), widths = make((count,)), make_widths(count, 8, (1, 11))
    ranges, _ = default.weight_range([weight], 8, False)
    width_of = widths.repeat_interleave(8)[:count]
    arguments = weight, widths, ranges, 8, [int((width_of == width).sum()) for width in range(1, 17)]
    expected = default.quantize_planes(*arguments)
    return lambda: assert_same(planes.quantize_planes(*arguments), expected)


def ranges_of_groups():
    weights = make((1100, 9))
    expected = default.weight_range(weights, 7, True)
    return lambda: assert_same(weight_range.weight_range(weights, 7, True), expected)


def of_one_step():
    """Two weights of groups of 8, and two of 300: sums of groups, and of pieces. The last tile takes two rounds."""
    weights, sizes = make((8792, 8792, 9, 700)), [8, 300, 8, 300]
    counts = [group_count(weight.numel(), size) for weight, size in zip(weights, sizes, strict=True)]
    steps = [step.abs() + 0.1 for step in make(counts, seed=1)]
    arguments = steps, KEY, [3, 4, 5, 6], sizes
    noisy = default.add_uniform_noise(weights, *arguments)
    gradients = default.add_uniform_noise_backward(weights, *arguments)

    def check():
        assert_near(uniform_noise.add_uniform_noise(weights, *arguments), noisy, 0, 2e-6)
        assert_near(uniform_noise.add_uniform_noise_backward(weights, *arguments), gradients, 1e-5, 1e-4)

    return check


def rows():
    """The rows begin within an eight, and the last one ends within a word."""
    given, vectors = Rows("rows that begin within an eight"), make((27,))[0].view(1, 27)
    indices = torch.tensor([given.rows - 1, 0, -1, given.rows, 2])
    expected = default.packed_linear(vectors, *given.arguments())

    def check():
        found = packed_rows.unpack_rows(indices, *given.arguments())
        assert_same([found[[0, 1, 4]]], [given.weight[indices[[0, 1, 4]]]])
        assert found[2:4].isnan().all()
        assert_near([packed_rows.packed_linear(vectors, *given.arguments())], [expected], 1e-5, 1e-5)

    return check


def sizes():
    counts, rule = [0, 9, 8 * 8200 + 3], (8, 2.0, 15.0, "bits")
    logits, grads = make_logits([torch.empty(count) for count in counts], 8), torch.linspace(0.5, 2, 3)
    expected = default.weight_sizes(logits, counts, *rule, 0.0)
    gradients = default.weight_sizes_backward(grads, logits, counts, *rule)

    def check():
        assert_near([weight_sizes.weight_sizes(logits, counts, *rule, 0.0)], [expected], 1e-6, 1e-4)
        assert_near(weight_sizes.weight_sizes_backward(grads, logits, counts, *rule), gradients, 1e-5, 1e-4)

    return check


class Subject(NamedTuple):
    """``make``: the check; ``kernels``: those whose mutants it is to notice; ``operators``: as ``outcomes.fingerprint``
    has them."""

    make: Callable[[], Callable[[], None]]
    kernels: list[str]
    operators: list[str]


def subjects(emulator) -> dict[str, Subject]:
    """By name."""
    noisy, words_and_levels = ["add_noise", "weight_range"], ["words", "quantize", "weight_range"]
    per_tensor = ["weight_range_kernel", "add_noise_kernel", "backward_kernel", "finish_backward_kernel"]
    per_group = partial(passes, 7, True, (1100, 9))
    one_step = ["uniform_noise_kernel", "group_sums_kernel", "piece_sums_kernel"]
    return {
        "range per tensor": Subject(partial(passes, 8), per_tensor, noisy),
        "range per group": Subject(per_group, ["ragged_noise_kernel", "ragged_backward_kernel"], noisy),
        "one launch": Subject(partial(one_launch, emulator), ["ticketed_noise_kernel"], noisy),
        "noise": Subject(drawn, ["noise_kernel"], ["noise"]),
        "words": Subject(packed, ["pack_kernel", "unpack_kernel", "requantize_kernel"], words_and_levels),
        "planes": Subject(in_planes, ["pack_planes_kernel", "unpack_planes_kernel"], ["planes"]),
        "planes of a weight": Subject(planes_of_weight, ["quantize_planes_kernel"], ["planes", "weight_range"]),
        "ranges of groups": Subject(ranges_of_groups, ["group_range_kernel"], ["weight_range"]),
        "packed rows": Subject(rows, ["unpack_rows_kernel", "multiply_rows_kernel"], ["packed_rows"]),
        "sizes": Subject(
            sizes, ["bits_parts_kernel", "finish_sizes_kernel", "sizes_backward_kernel"], ["weight_sizes"]
        ),
        "uniform noise": Subject(of_one_step, one_step, ["uniform_noise"]),
    }
