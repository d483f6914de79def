"""Small checks, each of some kernels, that mutants of those kernels are put through."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
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
from diffq_fast.backends.triton.add_noise_finish_kernels import finish_backward_kernel
from diffq_fast.backends.triton.arguments import PARTIAL_COLUMNS, Gradients, SizeBounds, rule_of
from diffq_fast.backends.triton.launching import CHUNK, TILE, TYPES, config_of, launch, launch_plan
from diffq_fast.backends.triton.tables import MAX_PARTS
from diffq_fast.backends.triton.weight_sizes_kernels import finish_sizes_kernel
from diffq_fast.reference.sizes import group_count, stream_words
from ptx.schedules import random_order
from support import triton_weights
from support.packed_row_forms import Rows
from support.triton_weights import KEY, assert_near, assert_same, make_logits, make_widths, options_of

FENCE = 8192  # bytes on either side of a weight that are no tensor's


def make(counts, seed=0):
    """As ``triton_weights.make``, each far from other tensors: an access beside it is seen whatever else lives."""
    return [_fenced(weight) if weight.numel() else weight for weight in triton_weights.make(counts, seed=seed)]


def _fenced(tensor):
    memory = np.empty(tensor.nbytes + 2 * FENCE, np.uint8)
    return torch.from_numpy(memory[FENCE : FENCE + tensor.nbytes].view(np.float32)).copy_(tensor)


def passes(group_size, per_group=False, counts=(8712, 9)):
    """Noisy weights and gradients, with ties and an infinite gradient; the last tile takes two rounds. Functions are
    exact here, so that the lowest bit of a fraction of noise shows."""
    weights, grads = make(counts), make(counts, seed=3)
    weights[0].clamp_(-2, 2)
    weights[1].clamp_(-0.5, 0.5)
    grads[0][17] = float("inf")
    logits, streams, options = make_logits(weights, group_size), [3, 4], (group_size, 2.0, 15.0, "bits", "uniform")
    lists, options = (weights, logits, KEY, streams, None), (*options, per_group)
    expected = default.add_noise(*lists, *options)
    backward = weights, logits, *expected[1:], KEY, streams
    gradients = default.add_noise_backward(grads, *backward, *options)

    def check():
        tables._cached_counters.cache_clear()  # a mutant may have left them other than zero
        noisy, *measured = launchers.add_noise(*lists, *options)
        assert_near(noisy, expected[0], 0, 2e-6)
        assert_same(measured, expected[1:])
        got = launchers.add_noise_backward(grads, *backward, *options)
        assert_near(got[0], gradients[0], 2e-4, 1e-3)
        assert_near(got[1], gradients[1], 1e-6, 1e-6)
        assert_same([got[2]], [gradients[2]])

    return check


def finished_backward():
    """The backward's second launch alone, where the sum over a weight's tiles takes two rounds of the kernel. Behind
    their parts stands NaN."""
    tiles = CHUNK + 76
    count, options = tiles * TILE, options_of(8)
    weight, grad = torch.zeros(count), torch.zeros(count)
    parts = torch.full((2 * CHUNK, PARTIAL_COLUMNS.value), torch.nan)
    parts[:tiles] = make((tiles * PARTIAL_COLUMNS.value,))[0].view(tiles, -1)
    ranges, extremes = torch.tensor([[-1.0, 1.0]]), torch.tensor([[17, count - 5, 1, 1]])
    of_range, nonfinite = parts[:tiles].double().sum(0).float()
    plan = launch_plan([weight], [0], 8, TILE, [3])
    config = launchers.finish_config(config_of(options, weight=TYPES[weight.dtype], grad=TYPES[grad.dtype]))

    def check():
        made, number = torch.zeros(count), torch.zeros(1)
        of_plan = plan.tables([weight], [weight], [grad])._replace(owners_ptr=plan.part_owners)
        given = of_plan, ranges, extremes, parts, Gradients(made, made, number)
        rule = rule_of(options.min_bits, options.max_bits, options.param)
        launch(finish_backward_kernel, MAX_PARTS, *given, rule, CONFIG=config)
        assert_same([made[17], made[-5], number[0]], [-of_range, of_range, nonfinite])

    return check


def range_per_tensor():
    """Both launches of the backward together, and the second one of a larger weight."""
    checks = passes(8), finished_backward()
    return lambda: [each() for each in checks]


def one_launch(emulator):
    """Under one random schedule, always the same. A weight whose tiles are all masked has ties; so many others are
    empty that their counters are cleared in two rounds."""
    weights = [make((1101,))[0][1:].clamp_(-2, 2), *make((8200, 9)), *make([0] * 1600)]
    streams = list(range(5, 5 + len(weights)))
    arguments = weights, make_logits(weights, 8), KEY, streams, options_of(8)
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
    """Where the number of a block has its first upper bit; and of one element, all others of whose tile are masked."""
    arguments = [(KEY, 5, 2**35 - 2413, 5000, "gaussian"), (KEY, 5, 2**35 - 17, 1, "gaussian")]
    expected = [default.noise(*each) for each in arguments]
    return lambda: assert_near([noise.noise(*each) for each in arguments], expected, 0, 5e-5)


def packed(count):
    (weight,), widths = make((count,)), make_widths(count, 8, (4,))
    ranges, _ = default.weight_range([weight], 8, False)
    options = widths, ranges, 8, False
    expected = default.quantize_pack(weight, *options, stream_words(count, 4))
    restored = default.unpack_dequantize(expected, *options, [count], torch.float32)
    (rounded,) = default.fake_quantize([weight], [widths], ranges, 8, False)

    def check():
        assert_same([words.quantize_pack(weight, *options, expected.numel())], [expected])
        assert_same([words.unpack_dequantize(expected, *options, [count], torch.float32)], [restored])
        assert_same(quantize.fake_quantize([weight], [widths], ranges, 8, False), [rounded])

    return check


def packed_to_the_end():
    """A last block of few rows; and one that has them all, and nearly all of a tile."""
    checks = packed(4107), packed(2000)
    return lambda: [each() for each in checks]


def in_planes():
    """Blocks of fewer values than a program handles: the last program sees beyond them."""
    values = torch.randint(0, 1 << 11, (2051,), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    expected = default.pack_planes(values, 11, 8, 10)

    def check():
        assert_same([planes.pack_planes(values, 11, 8, 10)], [expected])
        assert_same([planes.unpack_planes(expected, 2051)], [values])

    return check


def planes_of_weight():
    """Of each width more levels than one program has; of one so many that the last of 33 programs has one block, where
    the others have four."""
    count = 16 * 32 * 512 + 2000 + 9000
    (weight,), widths = make((count,)), torch.full((group_count(count, 8),), 11, dtype=torch.uint8)
    widths[torch.randperm(len(widths), generator=torch.Generator().manual_seed(1))[: 9000 // 8]] = 1
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
    """The rows begin within an eight, and the last one ends within a word; another one lies behind the data, as in a
    damaged file."""
    given, vectors = Rows("rows that begin within an eight"), make((27,))[0].view(1, 27)
    data, starts, *others = given.arguments()
    starts = starts.clone()
    starts[3] = data.numel()
    indices = torch.tensor([given.rows - 1, 0, -1, given.rows, 3, 2])
    weight = given.weight.index_fill(0, torch.tensor([3]), torch.nan)
    expected = default.packed_linear(vectors, *given.arguments()).index_fill(1, torch.tensor([3]), torch.nan)

    def check():
        found = packed_rows.unpack_rows(indices, data, starts, *others)
        assert_same([found[[0, 1, 4, 5]]], [weight[indices[[0, 1, 4, 5]]]])
        assert found[2:4].isnan().all()
        assert_near([packed_rows.packed_linear(vectors, data, starts, *others)], [expected], 1e-5, 1e-5)

    return check


def sizes():
    """Of a few weights; and the second launch alone, where the sum over a weight's tiles takes two rounds."""
    counts, rule = [0, 9, 8 * 8200 + 3], (8, 2.0, 15.0, "bits")
    logits, grads = make_logits([torch.empty(count) for count in counts], 8), torch.linspace(0.5, 2, 3)
    expected = default.weight_sizes(logits, counts, *rule, 0.0)
    gradients = default.weight_sizes_backward(grads, logits, counts, *rule)
    check_finished = finished_size()

    def check():
        assert_near([weight_sizes.weight_sizes(logits, counts, *rule, 0.0)], [expected], 1e-6, 1e-4)
        assert_near(weight_sizes.weight_sizes_backward(grads, logits, counts, *rule), gradients, 1e-5, 1e-4)
        check_finished()

    return check


def finished_size():
    """Behind the tiles' parts stands what would be seen; of the logits, only the last one is read."""
    tiles, bounds, rule = CHUNK + 76, SizeBounds(2.0, -1.25), rule_of(2.0, 15.0, "bits")
    logits = torch.zeros(tiles * TILE)
    count, last_bits = 8 * len(logits) - 3, (rule.low + rule.high) / 2
    plan, config = weight_sizes._plan_and_config([logits], [count], "bits")
    drawn = [each.abs() for each in make((tiles, tiles, tiles))]
    parts = torch.tensor([[torch.nan, -1000.0, 1000.0]]).repeat(2 * CHUNK, 1)
    known = parts[:tiles]
    known.copy_(torch.stack([TILE * (5 + drawn[0]), 3 - drawn[1] / 8, 9 + drawn[2]], 1))
    lowest, highest = (round(each.item() + bounds.extra_bits) for each in (known[:, 1].min(), known[:, 2].max()))
    table = math.ceil(math.log2(1 + highest - min(lowest, 2)))
    of_levels = 8 * (known[:, 0].double().sum() - last_bits) + 5 * last_bits
    expected = of_levels + count * bounds.extra_bits + len(logits) * table

    def check():
        made = torch.zeros(1)
        launch(finish_sizes_kernel, 1, plan.tables([logits]), parts, made, 8, bounds, rule, CONFIG=config)
        assert_near([made[0]], [expected.float()], 1e-6, 0)

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
        "range per tensor": Subject(range_per_tensor, per_tensor, noisy),
        "range per group": Subject(per_group, ["ragged_noise_kernel", "ragged_backward_kernel"], noisy),
        "one launch": Subject(partial(one_launch, emulator), ["ticketed_noise_kernel"], noisy),
        "noise": Subject(drawn, ["noise_kernel"], ["noise"]),
        "words": Subject(packed_to_the_end, ["pack_kernel", "unpack_kernel", "requantize_kernel"], words_and_levels),
        "planes": Subject(in_planes, ["pack_planes_kernel", "unpack_planes_kernel"], ["planes"]),
        "planes of a weight": Subject(planes_of_weight, ["quantize_planes_kernel"], ["planes", "weight_range"]),
        "ranges of groups": Subject(ranges_of_groups, ["group_range_kernel"], ["weight_range"]),
        "packed rows": Subject(rows, ["unpack_rows_kernel", "multiply_rows_kernel"], ["packed_rows"]),
        "sizes": Subject(
            sizes, ["bits_parts_kernel", "finish_sizes_kernel", "sizes_backward_kernel"], ["weight_sizes"]
        ),
        "uniform noise": Subject(of_one_step, one_step, ["uniform_noise"]),
    }
