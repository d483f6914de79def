"""The oracle against diffq 0.2.4 (golden files), numpy float32, and a decoder written apart."""

import math

import numpy as np
import pytest
import torch

from diffq_fast.reference import operators as reference
from diffq_fast.reference.bits import step_from_bits

AWKWARD = (0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000)
WIDTHS = range(1, reference.MAX_WIDTH + 1)
NAN, INF = float("nan"), float("inf")


def noisy_of(weight, logit, z, group_size, *, min_bits=2, max_bits=15, param="bits", per_group=False):
    return reference.noisy_weight(weight, logit, z, group_size, min_bits, max_bits, param, per_group)


def backward_of(grad, weight, logit, z, group_size, *, min_bits=2, max_bits=15, param="bits", per_group=False):
    bounds = reference.weight_range(weight, group_size, per_group)
    return reference.noisy_weight_backward(
        grad, weight, logit, bounds, z, group_size, min_bits, max_bits, param, per_group
    )


# -- groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "group_size", "groups"),
    [(0, 0, 0), (0, 8, 0), (1, 0, 1), (1, 8, 1), (8, 8, 1), (9, 8, 2), (9, 1, 9), (9, 0, 1), (9, 100, 1)],
)
def test_group_count(count, group_size, groups):
    assert reference.group_count(count, group_size) == groups
    per_group = torch.arange(groups)
    expected = [e // group_size if group_size else 0 for e in range(count)]
    assert reference.per_element(per_group, count, group_size).tolist() == expected


# -- training: against diffq -------------------------------------------------------------------------------


@pytest.fixture(params=range(5))
def noise_case(request, golden, golden_cases):
    """Tensors that diffq 0.2.4 drew and computed, and the arguments it had. Case 4 has ties at both ends."""
    tensors = {
        name.split(".", 1)[1]: tensor
        for name, tensor in golden("noise").items()
        if name.startswith(f"{request.param}.")
    }
    tensors["z"] = tensors["z"].reshape(-1)  # row-major, one value per element
    case = golden_cases[f"noise_{request.param}"]
    options = {name: case[name] for name in ("min_bits", "max_bits", "param")}
    return tensors, case["group_size"], options


def assert_close_to_the_largest(found, expected, tolerance=1e-6):
    """Every difference is at most ``tolerance`` times the largest expected magnitude."""
    assert found.shape == expected.shape
    largest = expected.abs().max().item()
    assert largest > 0
    assert (found - expected).abs().max().item() <= tolerance * largest


def test_noisy_weight_equals_diffq_bit_for_bit(noise_case):
    tensors, group_size, options = noise_case
    noisy = noisy_of(tensors["weight"], tensors["logit"], tensors["z"], group_size, **options)
    if options["param"] == "bits" or torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert torch.equal(noisy, tensors["noisy"])
    else:  # the file was drawn with AVX-512, and torch's exponential has another last bit with other instructions
        assert_close_to_the_largest(noisy, tensors["noisy"], tolerance=2**-23)
    assert not torch.equal(noisy, tensors["weight"])


def test_gradients_equal_diffq(noise_case):
    tensors, group_size, options = noise_case
    grad_weight, grad_logit, nonfinite = backward_of(
        tensors["grad_out"], tensors["weight"], tensors["logit"], tensors["z"], group_size, **options
    )
    assert_close_to_the_largest(grad_weight, tensors["grad_weight"])
    assert_close_to_the_largest(grad_logit, tensors["grad_logit"])
    assert nonfinite.item() == 0


def test_gradients_by_autograd_equal_diffq(noise_case):
    tensors, group_size, options = noise_case
    weight, logit = tensors["weight"].requires_grad_(), tensors["logit"].requires_grad_()
    noisy = noisy_of(weight, logit, tensors["z"], group_size, **options)
    grad_weight, grad_logit = torch.autograd.grad(noisy, (weight, logit), tensors["grad_out"])
    assert_close_to_the_largest(grad_weight, tensors["grad_weight"])
    assert_close_to_the_largest(grad_logit, tensors["grad_logit"])


def test_golden_case_with_ties_shares_the_gradient(golden):
    """diffq's own gradients: the elements at one end got equal shares on top of the gradient that passes."""
    case = {name: golden("noise")[f"4.{name}"] for name in ("weight", "grad_out", "grad_weight")}
    extra = case["grad_weight"] - case["grad_out"]
    for bound in (case["weight"].min(), case["weight"].max()):
        shares = extra[case["weight"] == bound]
        assert len(shares) > 1
        assert shares.abs().min() > 0
        torch.testing.assert_close(shares, shares[:1].expand_as(shares), rtol=0, atol=1e-6)


# -- training: the formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 4, 100])
def test_noisy_weight_is_the_formula_in_float32(group_size, per_group):
    torch.manual_seed(0)
    weight, z = torch.randn(5, 2), torch.randn(10)
    groups = reference.group_count(10, group_size)
    logit = torch.randn(groups)
    noisy = noisy_of(weight, logit, z, group_size, per_group=per_group).view(-1)
    flat = weight.view(-1).numpy()
    for element in range(10):
        group = element // group_size if group_size else 0
        members = flat[group * group_size : (group + 1) * group_size] if group_size and per_group else flat
        t = torch.sigmoid(logit[group]).numpy()
        bits = np.float32(15) * t + (np.float32(1) - t) * np.float32(2)
        step = 1 / (2 ** torch.tensor(bits) - 1).numpy()
        amplitude = (members.max() - members.min()) * step
        assert amplitude.dtype == np.float32
        assert noisy[element].item() == flat[element] + amplitude * z[element].numpy()


@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 4])
def test_backward_equals_autograd_of_the_forward(group_size, per_group, param):
    torch.manual_seed(1)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    logit = torch.randn(reference.group_count(15, group_size), dtype=torch.float64, requires_grad=True)
    grad, z = torch.randn(5, 3, dtype=torch.float64), torch.randn(15)
    options = {"param": param, "per_group": per_group, "min_bits": 2.5, "max_bits": 9.0}
    noisy = noisy_of(weight, logit, z, group_size, **options)
    expected = torch.autograd.grad(noisy, (weight, logit), grad)
    found = backward_of(grad, weight.detach(), logit.detach(), z, group_size, **options)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("per_group", [False, True])
def test_ties_share_the_gradient_of_the_range_equally(per_group):
    weight = torch.tensor([3.0, -1.0, 0.0, 3.0, -1.0, 3.0, 0.5, 2.0])
    grad = torch.zeros(8)
    grad[2] = 2.0
    z = torch.full((8,), 0.25)
    logit = torch.zeros(1)
    step = step_from_bits(torch.tensor(8.5)).item()
    found = backward_of(grad, weight, logit, z, 8, per_group=per_group)[0]
    at_max, at_min = 2 * 0.25 * step / 3, -2 * 0.25 * step / 2
    expected = [at_max, at_min, 2.0, at_max, at_min, at_max, 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_ties_of_a_group_stay_in_the_group():
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])  # groups [0 1 1] [1 1 0] [0]
    grad, z, logit = torch.ones(7), torch.ones(7), torch.zeros(3)
    step = step_from_bits(torch.tensor(8.5)).item()
    found = backward_of(grad, weight, logit, z, 3, per_group=True)[0] - grad
    share = 3 * step
    expected = [-share, share / 2, share / 2, share / 2, share / 2, -share, 0.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_computed_in_float32(dtype):
    torch.manual_seed(2)
    weight, logit, z = torch.randn(4, 6).to(dtype), torch.randn(3), torch.randn(24)
    noisy = noisy_of(weight, logit, z, 8)
    assert noisy.dtype == dtype
    assert torch.equal(noisy, noisy_of(weight.float(), logit, z, 8).to(dtype))
    grad = torch.randn(4, 6).to(dtype)
    grad_weight, grad_logit, _ = backward_of(grad, weight, logit, z, 8)
    wide = backward_of(grad.float(), weight.float(), logit, z, 8)
    assert (grad_weight.dtype, grad_logit.dtype) == (dtype, torch.float32)
    assert torch.equal(grad_weight, wide[0].to(dtype))
    assert torch.equal(grad_logit, wide[1])


def test_nonfinite_logit_gradients_are_zeroed_and_counted():
    grad = torch.tensor([1.0, NAN, 1.0, 1.0, INF, 1.0, 1.0])
    weight, z, logit = torch.arange(7.0), torch.ones(7), torch.zeros(4)
    _, grad_logit, nonfinite = backward_of(grad, weight, logit, z, 2)
    assert nonfinite.item() == 2
    assert (grad_logit == 0).tolist() == [True, False, True, False]
    assert grad_logit.isfinite().all()


# -- range -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "bounds", "found"),
    [
        ([2.0], [2, 2], [0, 0, 1, 1]),
        ([1.0, -2.0, 5.0], [-2, 5], [1, 2, 1, 1]),
        ([4.0, 4.0, 4.0], [4, 4], [0, 0, 3, 3]),
        ([1.0, 0.0, 1.0, 0.0, 0.5, 1.0], [0, 1], [1, 0, 2, 3]),
        ([0.0, -0.0, 0.0], [0, 0], [0, 0, 3, 3]),
        ([INF, -INF, 0.0], [-INF, INF], [1, 0, 1, 1]),
        ([], [0, 0], [0, 0, 0, 0]),
    ],
)
def test_range_and_extremes_of_a_weight(values, bounds, found):
    weight = torch.tensor(values)
    range_ = reference.weight_range(weight, 2, False)
    assert range_.tolist() == [bounds]
    extremes = reference.extremes(weight, range_)
    assert extremes.dtype == torch.int64
    assert extremes.tolist() == [found]


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_nan_makes_the_range_nan_and_the_extremes_zero(position):
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    weight[position] = NAN
    range_ = reference.weight_range(weight, 0, False)
    assert range_.isnan().all()
    assert reference.extremes(weight, range_).tolist() == [[0, 0, 0, 0]]
    per_group = reference.weight_range(weight, 2, True)
    assert per_group.isnan().all(1).tolist() == [group == position // 2 for group in range(3)]


@pytest.mark.parametrize("group_size", [0, 1, 2, 3, 7, 50])
def test_range_per_group(group_size):
    torch.manual_seed(3)
    weight = torch.randn(7) - 10  # a padding with zeros would be the largest element
    size = group_size or 7
    expected = [[min(group), max(group)] for group in (weight[at : at + size].tolist() for at in range(0, 7, size))]
    assert reference.weight_range(weight, group_size, True).tolist() == expected
    assert reference.weight_range(weight[:0], group_size, True).shape == (0, 2)


# -- export: against numpy ---------------------------------------------------------------------------------


def per_element(values, count, group_size):
    return np.array([values[e // group_size if group_size else 0] for e in range(count)])


def numpy_levels(weight, widths, bounds, group_size):
    """round(((w - lo) / (hi - lo)) / u) in float32; bounds has one row per group."""
    step = np.float32(1) / (np.float32(2) ** widths.astype(np.float32) - np.float32(1))
    lo, hi, step = (per_element(x, len(weight), group_size) for x in (bounds[:, 0], bounds[:, 1], step))
    levels = np.rint(((weight - lo) / (hi - lo)) / step)
    assert levels.dtype == np.float32
    return levels


def numpy_weight(levels, widths, bounds, group_size):
    step = np.float32(1) / (np.float32(2) ** widths.astype(np.float32) - np.float32(1))
    lo, hi, step = (per_element(x, len(levels), group_size) for x in (bounds[:, 0], bounds[:, 1], step))
    weight = ((levels.astype(np.float32) * step) * (hi - lo)) + lo
    assert weight.dtype == np.float32
    return weight


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("count", [2, 8, 9, 1025])
def test_quantize_and_dequantize_equal_numpy_float32(count, group_size, per_group):
    torch.manual_seed(count)
    weight = torch.randn(count) * 3
    groups = reference.group_count(count, group_size)
    widths = (torch.arange(groups) % reference.MAX_WIDTH + 1).to(torch.uint8)
    bounds = reference.weight_range(weight, group_size, per_group)
    rows = bounds.numpy() if per_group else bounds.expand(groups, 2).numpy()
    levels = reference.quantize(weight, widths, bounds, group_size)
    with np.errstate(invalid="ignore"):  # a group of one element is constant: 0 / 0
        expected = np.nan_to_num(numpy_levels(weight.numpy(), widths.numpy(), rows, group_size))
    assert levels.dtype == torch.int32
    assert np.array_equal(levels.numpy(), expected)
    restored = reference.dequantize(levels, widths, bounds, group_size, torch.float32)
    assert np.array_equal(restored.numpy(), numpy_weight(levels.numpy(), widths.numpy(), rows, group_size))


@pytest.mark.parametrize("width", WIDTHS)
def test_quantize_uses_every_level_of_a_width_and_no_other(width):
    highest = 2**width - 1
    weight = torch.linspace(-1.5, 2.5, 4 * highest + 1)
    widths = torch.tensor([width], dtype=torch.uint8)
    bounds = reference.weight_range(weight, 0, False)
    levels = reference.quantize(weight, widths, bounds, 0)
    assert levels.unique().tolist() == list(range(highest + 1))
    restored = reference.dequantize(levels, widths, bounds, 0, torch.float32)
    assert restored[0].item() == -1.5
    assert (restored - weight).abs().max() <= 0.5 * 4 / highest * (1 + 1e-3) + 1e-6


def test_quantize_rounds_half_to_even():
    weight = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0])
    widths = torch.tensor([2], dtype=torch.uint8)
    levels = reference.quantize(weight * 2, widths, torch.tensor([[0.0, 6.0]]), 0)
    exact = [np.rint(np.float32(w / 3) / np.float32(1 / 3)) for w in weight.tolist()]
    assert levels.tolist() == exact == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("width", [3, 5, 8, 11, 15])
def test_quantize_divides_by_the_step_where_a_product_would_round_elsewhere(width):
    """Next to half a level, x / u and x * (2**b - 1) differ in float32; the format is defined by the first."""
    highest = 2**width - 1
    halves = ((np.arange(min(highest, 4000)) + 0.5) / highest).astype(np.float32)
    around = np.concatenate([halves, np.nextafter(halves, np.float32(0)), np.nextafter(halves, np.float32(1))])
    weight = np.concatenate([around, np.float32([0, 1])])
    expected = numpy_levels(weight, np.array([width]), np.array([[0, 1]], dtype=np.float32), 0)
    product = np.rint(weight * np.float32(highest))
    assert not np.array_equal(product, expected), "the check must be able to tell the two apart"
    widths = torch.tensor([width], dtype=torch.uint8)
    levels = reference.quantize(torch.from_numpy(weight), widths, torch.tensor([[0.0, 1.0]]), 0)
    assert np.array_equal(levels.numpy(), expected)


def test_an_empty_range_has_level_0_everywhere():
    levels = reference.quantize(
        torch.tensor([2.0, 5.0, -3.0]), torch.tensor([4], dtype=torch.uint8), torch.tensor([[2.0, 2.0]]), 0
    )
    assert levels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [0.0, -0.0, 3.25, -1e30, 1e-42])
@pytest.mark.parametrize("per_group", [False, True])
def test_a_constant_weight_has_one_level_and_comes_back_exactly(value, per_group):
    weight = torch.full((5,), value)
    widths = torch.tensor([1, 9, 16], dtype=torch.uint8)
    bounds = reference.weight_range(weight, 2, per_group)
    levels = reference.quantize(weight, widths, bounds, 2)
    assert levels.tolist() == [0] * 5
    assert torch.equal(reference.dequantize(levels, widths, bounds, 2, torch.float32), weight)


@pytest.mark.parametrize("group_size", [0, 1, 8])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), ()])
def test_quantize_of_empty_and_single_weights(shape, group_size):
    weight = torch.full(shape, 7.0)
    groups = reference.group_count(weight.numel(), group_size)
    widths = torch.full((groups,), 5, dtype=torch.uint8)
    bounds = reference.weight_range(weight, group_size, False)
    levels = reference.quantize(weight, widths, bounds, group_size)
    assert levels.shape == shape
    assert levels.dtype == torch.int32
    restored = reference.dequantize(levels, widths, bounds, group_size, torch.float32)
    assert torch.equal(restored, weight)


def test_quantize_keeps_nan_and_infinity_inside_of_the_levels():
    weight = torch.tensor([0.0, NAN, 1.0, INF, -INF])
    widths = torch.tensor([3], dtype=torch.uint8)
    for bounds in ([[0.0, 1.0]], [[NAN, NAN]], [[-INF, INF]]):
        levels = reference.quantize(weight, widths, torch.tensor(bounds), 0)
        assert ((levels >= 0) & (levels <= 7)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dequantize_computes_in_float32_and_casts_at_the_end(dtype):
    torch.manual_seed(5)
    weight = torch.randn(6, 7)
    widths = torch.arange(3, 9).to(torch.uint8)
    bounds = reference.weight_range(weight, 7, False)
    levels = reference.quantize(weight, widths, bounds, 7)
    single = reference.dequantize(levels, widths, bounds, 7, torch.float32)
    cast = reference.dequantize(levels, widths, bounds, 7, dtype)
    assert cast.dtype == dtype
    assert cast.shape == (6, 7)
    assert torch.equal(cast, single.to(dtype))
    half = weight.to(torch.bfloat16)
    assert torch.equal(reference.quantize(half, widths, bounds, 7), reference.quantize(half.float(), widths, bounds, 7))


@pytest.mark.parametrize("group_size", [0, 1, 8])
def test_groups_follow_the_logical_order_of_a_permuted_weight(group_size):
    torch.manual_seed(6)
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    groups = reference.group_count(weight.numel(), group_size)
    widths = (torch.arange(groups) % 9 + 2).to(torch.uint8)
    logit, z = torch.randn(groups), torch.randn(weight.numel())
    plain = weight.contiguous()
    bounds = reference.weight_range(plain, group_size, True)
    assert torch.equal(reference.weight_range(weight, group_size, True), bounds)
    expected = reference.quantize(plain, widths, bounds, group_size)
    assert torch.equal(reference.quantize(weight, widths, bounds, group_size), expected)
    assert torch.equal(noisy_of(weight, logit, z, group_size), noisy_of(plain, logit, z, group_size))


# -- packing: the native layout ----------------------------------------------------------------------------


def decoded_levels(words, widths, group_size, count):
    """The levels of packed words, by the words of the format alone: one Python integer per lane."""
    width_of = [widths[e // group_size if group_size else 0] for e in range(count)]
    levels, start = [None] * count, 0
    for width in range(1, 17):
        members = [e for e in range(count) if width_of[e] == width]
        for first in range(0, len(members), 1024):
            block = members[first : first + 1024]
            lanes = math.ceil(len(block) / 32)
            bits = [
                sum((words[start + t * lanes + lane] % 2**32) << (32 * t) for t in range(width))
                for lane in range(lanes)
            ]
            for place in range(32 * lanes):
                row, lane = divmod(place, lanes)
                value = bits[lane] >> (row * width) & (2**width - 1)
                if place < len(block):
                    levels[block[place]] = value
                else:
                    assert value == 0, "rows past the end must hold 0"
            start += width * lanes
    assert start == len(words)
    return levels


def random_levels(count, widths, group_size, seed=0):
    torch.manual_seed(seed)
    limit = 2 ** reference.per_element(widths.to(torch.int64), count, group_size)
    levels = torch.randint(0, 2**16, (count,)) % limit
    return torch.where(torch.arange(count) % 5 == 0, limit - 1, levels).to(torch.int32)


@pytest.mark.parametrize("width", WIDTHS)
def test_pack_of_one_width_decodes_at_awkward_counts(width):
    widths = torch.tensor([width], dtype=torch.uint8)
    for count in AWKWARD:
        widths_of = widths[: min(count, 1)]
        levels = random_levels(count, widths, 0, seed=width)
        words = reference.pack(levels, widths_of, 0)
        assert words.dtype == torch.int32
        assert words.numel() == width * math.ceil(count / 32) == reference.stream_words(count, width)
        assert decoded_levels(words.tolist(), [width], 0, count) == levels.tolist()
        assert torch.equal(reference.unpack(words, widths_of, 0, count), levels)


@pytest.mark.parametrize("group_size", [1, 3, 8, 40])
@pytest.mark.parametrize("count", [1, 9, 1025, 5000])
def test_pack_of_mixed_widths_decodes(count, group_size):
    groups = reference.group_count(count, group_size)
    torch.manual_seed(group_size)
    widths = torch.randint(1, 17, (groups,), dtype=torch.uint8)
    levels = random_levels(count, widths, group_size)
    words = reference.pack(levels, widths, group_size)
    assert decoded_levels(words.tolist(), widths.tolist(), group_size, count) == levels.tolist()
    assert torch.equal(reference.unpack(words, widths, group_size, count), levels)


def test_pack_words_of_small_examples():
    """By hand: 40 levels take two lanes, so value p is in lane p % 2, row p // 2."""
    three = torch.tensor([3], dtype=torch.uint8)
    assert reference.pack(torch.tensor([1, 2, 3]), three, 0).tolist() == [0o321, 0, 0]
    words = reference.pack(torch.arange(40) % 8, three, 0)
    even, odd = ("".join(str(p % 8) for p in reversed(range(start, 40, 2))) for start in (0, 1))
    even, odd = int(even, 8), int(odd, 8)
    expected = [lane >> (32 * t) & 0xFFFFFFFF for t in range(3) for lane in (even, odd)]
    assert [word % 2**32 for word in words.tolist()] == expected
    widths = torch.tensor([5, 2], dtype=torch.uint8)  # the narrower stream comes first
    assert reference.pack(torch.tensor([31, 3]), widths, 1).tolist() == [3, 0, 31, 0, 0, 0, 0]


# -- packing: diffq's bit planes ---------------------------------------------------------------------------

PACKED_COUNTS = (1, 63, 2048, 5000)


@pytest.mark.parametrize("count", PACKED_COUNTS)
@pytest.mark.parametrize("width", range(1, 16))
def test_planes_equal_what_diffq_packed(golden, width, count):
    packers = golden("packers")
    levels = packers[f"levels.{width}.{count}"]
    blocks = packers[f"bitpack.{width}.{count}"]
    assert torch.equal(reference.pack_planes(levels, width, 64, 32), blocks)
    assert reference.worst_value(levels) == max(levels.tolist(), default=0)
    assert torch.equal(reference.unpack_planes(blocks, count), levels)
    rectangle = packers[f"torch_pack.{width}.{count}"]
    columns = math.ceil(count / 16)
    assert torch.equal(reference.pack_planes(levels, width, 16, columns), rectangle[None])
    assert torch.equal(reference.unpack_planes(rectangle[None], count), levels)


@pytest.mark.parametrize("rows", sorted(reference.PLANE_DTYPES))
@pytest.mark.parametrize("count", [0, 1, 65, 200])
def test_planes_put_bit_j_of_a_value_into_bit_r_of_word_j(rows, count):
    columns, nbits = 3, 15
    torch.manual_seed(rows)
    values = torch.randint(0, 2**nbits, (count,))
    planes = reference.pack_planes(values, nbits, rows, columns)
    assert planes.dtype == reference.PLANE_DTYPES[rows]
    assert planes.shape == (math.ceil(count / (rows * columns)), nbits, columns)
    words = {(k, j, c): 0 for k in range(len(planes)) for j in range(nbits) for c in range(columns)}
    for place, value in enumerate(values.tolist()):
        block, rest = divmod(place, rows * columns)
        row, column = divmod(rest, columns)
        for bit in range(nbits):
            words[block, bit, column] |= (value >> bit & 1) << row
    found = {at: planes[at].item() % 2**rows for at in words}
    assert found == words
    unpacked = reference.unpack_planes(planes, count)
    assert unpacked.dtype == torch.int16
    assert unpacked.tolist() == values.tolist()


def test_no_planes_unpack_to_zeros():
    planes = reference.pack_planes(torch.zeros(5, dtype=torch.int64), 0, 64, 32)
    assert planes.shape == (1, 0, 32)
    assert reference.unpack_planes(planes, 5).tolist() == [0] * 5
