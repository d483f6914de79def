"""Comparisons of the Triton kernels with the oracle, for the tests of this folder and for the whole grid (``grid.py``).

They run whatever runs kernels on the CPU: the emulator of compiled code, or Triton's interpreter.
"""

from __future__ import annotations

import torch

from diffq_fast.backends import default
from diffq_fast.backends.triton import add_noise as launchers
from diffq_fast.backends.triton import noise as noise_launcher
from diffq_fast.backends.triton import packed_rows, planes, quantize, tables, uniform_noise, weight_sizes, words
from diffq_fast.backends.triton import weight_range as ranges_launcher
from diffq_fast.backends.triton.add_noise_ticketed_kernels import COUNTERS
from diffq_fast.reference.groups import per_element
from diffq_fast.reference.sizes import group_count, stream_words
from support.packed_row_forms import Rows
from support.triton_weights import (
    EPSILON,
    KEY,
    assert_near,
    assert_same,
    make,
    make_logits,
    make_widths,
    options_of,
)

FLOAT = torch.float32


def unaligned(count, dtype=FLOAT, seed=5):
    """A weight that begins at an odd multiple of its element's size."""
    return make((count + 1,), dtype, seed)[0][1:]


def assert_passes_equal(weights, grads, options, dtype=None):
    """Noisy weights (of ``dtype``, or each its weight's) and gradients; ``options``: the six of the operators."""
    logits, streams = make_logits(weights, options[0]), list(range(3, 3 + len(weights)))
    lists = weights, logits, KEY, streams, None
    noisy, *measured = launchers.add_noise(*lists, *options, dtype)
    expected, *ranges = default.add_noise(*lists, *options, dtype)
    epsilon = max(EPSILON[each.dtype] for each in [*weights, *noisy])
    assert_near(noisy, expected, epsilon, 2e-4)
    assert_same(measured, ranges)
    lists = grads, weights, logits, *ranges, KEY, streams
    got, expected = launchers.add_noise_backward(*lists, *options), default.add_noise_backward(*lists, *options)
    assert_near(got[0], expected[0], max(epsilon, 2e-5), 1e-3)
    for one, other in zip(got[1], expected[1], strict=True):
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-5 * scale)
    assert_same([got[2]], [expected[2]])


def assert_one_launch_equals_two(weights, group_size, noise_kind, dtype=None, before=lambda: None):
    """``before``: called between the two forms."""
    arguments = weights, make_logits(weights, group_size), KEY, list(range(5, 5 + len(weights)))
    options = options_of(group_size, noise_kind)
    expected, *measured = launchers.noisy_weights(*arguments, options, dtype)
    before()
    got, *ranges = launchers.noisy_weights(*arguments, options, dtype, one_launch=True)
    assert_same(got, expected)
    assert_same(ranges, measured)
    assert not tables.counters(torch.device("cpu"), COUNTERS.value + len(weights)).any()


def assert_uniform_noise_equals(weights, grads, group_size, dtype=None):
    """Uniform noise of one step, and the gradients of the steps."""
    sizes, streams = [group_size] * len(weights), list(range(3, 3 + len(weights)))
    counts = [group_count(weight.numel(), group_size) for weight in weights]
    steps = [step.abs() + 0.1 for step in make(counts, seed=1)]
    arguments = steps, KEY, streams, sizes
    noisy = uniform_noise.add_uniform_noise(weights, *arguments, dtype)
    expected = default.add_uniform_noise(weights, *arguments, dtype)
    assert_near(noisy, expected, max(EPSILON[each.dtype] for each in [*weights, *noisy]), 2e-6)
    got = uniform_noise.add_uniform_noise_backward(grads, *arguments)
    assert_near(got, default.add_uniform_noise_backward(grads, *arguments), 1e-5, 1e-4)


def assert_noise_equals(noise_kind):
    for begin, count in ((0, 0), (13, 1), (2**35 - 100, 5000)):
        z = noise_launcher.noise(KEY, 2**32 - 1, begin, count, noise_kind)
        expected = default.noise(KEY, 2**32 - 1, begin, count, noise_kind)
        assert_near([z], [expected], 0, 0 if noise_kind == "uniform" else 5e-5)


def assert_ranges_equal(dtype, group_size, per_group):
    """Ties, constants, NaN, infinities, empty weights."""
    nan, inf = float("nan"), float("inf")
    weights = [torch.ones(900), torch.tensor([1.0, -2, 1, -2, 0]), torch.tensor([1.0, nan])]
    weights += [torch.tensor([0.0, -0.0]), torch.full((9,), inf), torch.tensor([-inf, 1.0]), torch.tensor([])]
    weights = [each.to(dtype) for each in [*weights, torch.cat([*make((8300,)), torch.tensor([nan])])]]
    weights.append(unaligned(8201, dtype))
    arguments = weights, group_size, per_group
    assert_same(ranges_launcher.weight_range(*arguments), default.weight_range(*arguments))


def assert_levels_equal(weight, widths, group_size, per_group):
    """Quantising, dequantising, and both at once."""
    ranges, _ = default.weight_range([weight], group_size, per_group)
    arguments = [widths], ranges, group_size, per_group
    (levels,) = default.quantize([weight], *arguments)
    assert_same(quantize.quantize([weight], *arguments), [levels])
    (restored,) = default.dequantize([levels], *arguments, weight.dtype)
    assert_same(quantize.dequantize([levels], *arguments, weight.dtype), [restored])
    assert_same(quantize.fake_quantize([weight], *arguments), [restored])


def words_needed(widths, group_size, count):
    width_of = per_element(widths, count, group_size)
    return sum(stream_words(int((width_of == width).sum()), width) for width in range(1, 17))


def assert_words_equal(weight, widths, group_size, per_group):
    """Packing and unpacking of levels, and of weights."""
    count, dtype = weight.numel(), weight.dtype
    ranges, _ = default.weight_range([weight], group_size, per_group)
    options = widths, ranges, group_size, per_group
    (levels,) = default.quantize([weight], [widths], *options[1:])
    (restored,) = default.dequantize([levels], [widths], *options[1:], dtype)
    size = words_needed(widths, group_size, count)
    packed = default.pack(levels, widths, group_size, size)
    assert_same([words.pack(levels, widths, group_size, size)], [packed])
    assert_same([words.unpack(packed, widths, group_size, count)], [levels])
    assert_same([words.quantize_pack(weight, *options, size)], [packed])
    assert_same([words.unpack_dequantize(packed, *options, [count], dtype)], [restored])


def assert_planes_of_weight_equal(weight, group_size, choices=(1, 11)):
    count, widths = weight.numel(), make_widths(weight.numel(), group_size, choices)
    ranges, _ = default.weight_range([weight], group_size, False)
    width_of = per_element(widths, count, group_size)
    counts = [int((width_of == width).sum()) for width in range(1, 17)]
    arguments = weight, widths, ranges, group_size, counts
    assert_same(planes.quantize_planes(*arguments), default.quantize_planes(*arguments))


def assert_planes_equal(rows, columns, width):
    for count in (0, 1, rows * columns + 3):
        values = torch.randint(0, 1 << width, (count,), generator=torch.Generator().manual_seed(1)).to(torch.int16)
        arguments = values, width, rows, columns
        packed = default.pack_planes(*arguments)
        assert_same([planes.pack_planes(*arguments)], [packed])
        assert_same([planes.unpack_planes(packed, count)], [default.unpack_planes(packed, count)])


def assert_rows_equal(name, numbers):
    """Packed rows of one of ``FORMS``: unpacked, and multiplied with so many vectors."""
    given = Rows(name)
    indices = torch.tensor([given.rows - 1, 0, -1, given.rows])
    found = packed_rows.unpack_rows(indices, *given.arguments())
    assert_same([found[:2]], [given.weight[indices[:2]]])
    assert found[2:].isnan().all()
    for number in numbers:
        vectors = make((number * given.form.columns,))[0].view(number, given.form.columns)
        expected = default.packed_linear(vectors.double(), *given.arguments())
        largest = vectors.abs().double() @ given.weight.abs().double().T
        found = packed_rows.packed_linear(vectors, *given.arguments())
        assert ((found - expected).abs() <= given.form.columns * 2.0**-24 * largest + 1e-30).all()


def assert_sizes_equal(counts, group_size, param, extra_bits):
    """What weights take in a file, and the gradients of their logits."""
    logits = [2 * logit for logit in make([group_count(count, group_size) for count in counts], seed=1)]
    rule = group_size, 2.0, 15.0, param
    found = weight_sizes.weight_sizes(logits, counts, *rule, extra_bits)
    torch.testing.assert_close(found, default.weight_sizes(logits, counts, *rule, extra_bits), rtol=1e-6, atol=1e-4)
    grads = torch.linspace(0.5, 2, len(counts))
    made = weight_sizes.weight_sizes_backward(grads, logits, counts, *rule)
    assert_near(made, default.weight_sizes_backward(grads, logits, counts, *rule), 1e-5, 1e-4)
