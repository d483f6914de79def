"""The default kernels work on pieces of a weight, with numpy on a CPU: they equal the oracle, which does not."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.backends.default.pieces import PIECE
from diffq_fast.reference import add_noise, philox, planes, weight_range
from diffq_fast.reference import quantize as quantize_oracle
from diffq_fast.reference.options import NoiseOptions
from diffq_fast.reference.sizes import group_count
from support.operators import NAN, options_of

KEYS = (0, -1, -8198552921648689, 2**62 + 12345)
STREAMS = (0, 7, 2**32 - 1)
# begin and count: whole calls and others, beyond one piece, where the high word of the counter begins and within it
RUNS = ((0, 1), (0, PIECE + 1), (5, 2 * PIECE), (2**35 - 24, 24), (2**35 - 3, 9), (13, 8), (2**40 + 3, 1000))
COUNT = 2 * PIECE + 24


@pytest.mark.parametrize(("begin", "count"), RUNS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("key", KEYS)
def test_uniform_noise_is_the_oracles_bit_for_bit(key, stream, begin, count):
    key = torch.tensor(key)
    made = default.noise(key, stream, begin, count, "uniform")
    assert torch.equal(made, philox.uniform(key, stream, begin, count))
    normal = default.noise(key, stream, begin, count, "gaussian")
    torch.testing.assert_close(normal, philox.gaussian(key, stream, begin, count), rtol=0, atol=2e-6)


@pytest.mark.parametrize("stream", [-1, -5, 2**32])
def test_noise_names_a_stream_out_of_range(stream):
    with pytest.raises(ValueError, match=f"noise: streams must be between 0 and .*, got {stream}"):
        default.noise(torch.tensor(3), stream, 0, 8, "uniform")


@pytest.mark.parametrize("columns", [32, 4, 31])
@pytest.mark.parametrize("width", range(1, 17))
def test_planes_are_the_oracles(width, columns):
    torch.manual_seed(width)
    for count in (0, 1, 5, 64 * columns, 64 * columns + 1, 70 * 64 * columns + 9):
        values = torch.randint(0, 2**width, (count,), dtype=torch.int32)
        expected = planes.pack_planes(values, width, 64, columns)
        made = default.pack_planes(values, width, 64, columns)
        assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
        assert torch.equal(made, expected)
        assert torch.equal(default.unpack_planes(expected, count), values.to(torch.int16))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_planes_of_any_integers_leave_the_values_alone(dtype):
    values = torch.arange(100).to(dtype)
    assert torch.equal(default.pack_planes(values, 7, 64, 32), planes.pack_planes(values, 7, 64, 32))
    assert torch.equal(values, torch.arange(100).to(dtype))


@pytest.mark.parametrize("group_size", [1, 8, 24, 64])
def test_planes_of_a_weight_are_the_oracles(group_size):
    torch.manual_seed(3)
    weight = torch.randn(COUNT // 192 * 192)
    widths = torch.randint(2, 16, (len(weight) // group_size,), dtype=torch.uint8)
    ranges = torch.tensor([[-2.0, 2.0]])
    counts = [int((widths == width).sum()) * group_size for width in range(1, 17)]
    made = default.quantize_planes(weight, widths, ranges, group_size, counts)
    levels = quantize_oracle.quantize(weight, widths, ranges, group_size)
    for one, expected in zip(made, planes.pack_planes_by_width(levels, widths, group_size), strict=True):
        assert torch.equal(one, expected)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8, 64, 100, PIECE + 8])
def test_levels_are_the_oracles(group_size, per_group):
    torch.manual_seed(4)
    weight = torch.randn(COUNT)
    groups = group_count(COUNT, group_size)
    widths = torch.randint(1, 17, (groups,), dtype=torch.uint8)
    ranges = weight_range.weight_range(weight, group_size, per_group)
    arguments = [widths], ranges, group_size, per_group
    levels = quantize_oracle.quantize(weight, widths, ranges, group_size)
    assert torch.equal(default.quantize([weight], *arguments)[0], levels)
    rounded = quantize_oracle.dequantize(levels, widths, ranges, group_size, torch.float32)
    assert torch.equal(default.dequantize([levels], *arguments, torch.float32)[0], rounded)
    assert torch.equal(default.fake_quantize([weight], *arguments)[0], rounded)


@pytest.mark.parametrize("ties", [1, 3, COUNT])
def test_extremes_are_found_in_their_piece(ties):
    """The first of them, in whatever piece."""
    torch.manual_seed(5)
    weight = torch.randn(COUNT)
    if ties == COUNT:
        weight.fill_(2.5)
    else:
        weight[[COUNT - 1, PIECE + 7, PIECE + 9][:ties]] = -9.0
        weight[[PIECE, COUNT - 2, COUNT - 3][:ties]] = 9.0
    ranges, extremes = default.weight_range([weight], 0, False)
    assert torch.equal(ranges, weight_range.weight_range(weight, 0, False))
    assert torch.equal(extremes, weight_range.extremes(weight, ranges))
    weight[PIECE + 1] = NAN
    ranges, extremes = default.weight_range([weight], 0, False)
    assert ranges.isnan().all()
    assert extremes.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("grad_size", [1.0, 1e36])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize(("group_size", "per_group"), [(0, False), (1, False), (8, False), (8, True), (100, False)])
def test_noisy_weights_and_gradients_are_the_oracles(group_size, per_group, param, constant, grad_size):
    torch.manual_seed(6)
    weight, grad = torch.randn(COUNT), grad_size * torch.randn(COUNT)
    if constant:
        weight.fill_(2.5)
    else:
        weight[PIECE + 3] = weight[5] = weight.max()  # tied
    logit = torch.randn(group_count(COUNT, group_size))
    key, arguments = torch.tensor(11), options_of(group_size, param=param, kind="uniform", per_group=per_group)
    options, z = NoiseOptions.from_operator(*arguments), philox.uniform(key, 2, 0, COUNT)
    noisy, ranges, extremes = default.add_noise([weight], [logit], key, [2], None, *arguments)
    torch.testing.assert_close(noisy[0], add_noise.noisy_weight(weight, logit, z, options), rtol=0, atol=2e-6)
    given = [grad], [weight], [logit], ranges, extremes, key, [2]
    made = default.add_noise_backward(*given, *arguments)
    expected = add_noise.noisy_weight_backward(grad, weight, logit, ranges, z, options)
    for one, other in zip((made[0][0], made[1][0], made[2][0]), expected, strict=True):
        largest = max(float(other[other.isfinite()].abs().max()), 1e-30)
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-5, atol=2e-6 * largest)


@pytest.mark.parametrize("group_size", [0, 8])
def test_storages_can_still_be_resized(group_size):
    """As fully_shard does with those of weights: numpy's view of a tensor forbids it for good."""
    weight, grad, key = torch.randn(64), torch.randn(64), torch.tensor(5)
    logits, widths = torch.zeros(group_count(64, group_size)), torch.full((group_count(64, group_size),), 3).byte()
    options = options_of(group_size=group_size)
    _noisy, ranges, extremes = default.add_noise([weight], [logits], key, [0], None, *options, None)
    default.add_noise_backward([grad], [weight], [logits], ranges, extremes, key, [0], *options)
    levels = torch.arange(64).int()
    default.pack_planes(levels, 6, 64, 4)
    planes_of_levels = planes.pack_planes(levels, 6, 64, 4)
    default.unpack_planes(planes_of_levels, 64)
    default.quantize_planes(weight, widths, ranges, group_size, [0, 0, 64] + [0] * 13)
    for tensor in (weight, grad, key, logits, widths, ranges, levels, planes_of_levels):
        assert tensor.untyped_storage().resizable()


@pytest.mark.parametrize("columns", [0, 4])
@pytest.mark.parametrize("width", [1, 15])
def test_planes_without_values_have_none(width, columns):
    none = torch.zeros((0, width, columns), dtype=torch.int64)
    assert default.unpack_planes(none, 0).shape == (0,)
    assert default.unpack_planes(torch.zeros((1, width, 0), dtype=torch.int64), 0).shape == (0,)
    assert default.pack_planes(torch.zeros(0).int(), width, 64, 4).shape == (0, width, 4)
