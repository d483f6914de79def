"""Noisy weights in another dtype than their weights': the float32 result rounded once, on every backend."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from diffq_fast import functional
from diffq_fast.backends import cpu, default
from diffq_fast.reference.sizes import group_count

ops = torch.ops.diffq_fast
BACKENDS = {"default": (default.add_noise, default.add_noise_backward)}
if cpu.status()[0]:
    BACKENDS["cpu"] = (ops.add_noise, ops.add_noise_backward)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
COUNTS = (0, 1, 7, 8, 9, 1023, 1024, 1025, 5000, 40_000)
GROUP_SIZES = (0, 1, 4, 7, 8, 16, 3000)
KEY = torch.tensor(-0x123456789ABCDEF)


def make(counts, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).to(dtype) for count in counts]


def logits_of(weights, group_size):
    return make([group_count(weight.numel(), group_size) for weight in weights], seed=1)


def options(group_size=8, per_group=False, param="bits", kind="uniform"):
    return group_size, 2.0, 15.0, param, kind, per_group


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# -- the forward ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_float32_noisy_weight_cast_to_the_dtype(backend, group_size, per_group, dtype):
    add_noise, _ = BACKENDS[backend]
    weights = make(COUNTS)
    for kind, param in (("uniform", "bits"), ("gaussian", "noise")):
        lists = weights, logits_of(weights, group_size), KEY, list(range(len(weights))), None
        chosen = options(group_size, per_group, param, kind)
        expected, found, extremes = add_noise(*lists, *chosen)
        noisy, range_again, extremes_again = add_noise(*lists, *chosen, dtype)
        assert_same(noisy, [tensor.to(dtype) for tensor in expected])
        assert_same([range_again, extremes_again], [found, extremes])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weight_dtype", FLOATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_weights_are_rounded_once(backend, weight_dtype, dtype):
    """A half-precision weight to float32, or to the other half precision, without its own rounding between."""
    add_noise, _ = BACKENDS[backend]
    weights = make(COUNTS, weight_dtype)
    lists = logits_of(weights, 8), KEY, list(range(len(weights))), None
    expected = add_noise([weight.float() for weight in weights], *lists, *options())[0]
    assert_same(add_noise(weights, *lists, *options(), dtype)[0], [tensor.to(dtype) for tensor in expected])


@pytest.mark.parametrize("backend", BACKENDS)
def test_halves_overflows_and_nan_round_as_a_cast_does(backend):
    """A huge group in float16 overflows; one constant group keeps every weight, of which some lie on a tie."""
    add_noise, _ = BACKENDS[backend]
    nan, inf = float("nan"), float("inf")
    ties = torch.tensor([1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 2**-25, 3 * 2**-25, -(2**-24)])
    weights = [ties, torch.full((16,), 1e5), torch.tensor([1.0, nan, 2.0]), torch.tensor([inf, -inf, 1.0])]
    logits = [torch.full((group_count(weight.numel(), 8),), 20.0) for weight in weights]
    for dtype in (torch.bfloat16, torch.float16):
        arguments = weights, logits, KEY, [0, 1, 2, 3], None, *options()
        expected = [tensor.to(dtype) for tensor in add_noise(*arguments)[0]]
        assert_same(add_noise(*arguments, dtype)[0], expected)
    assert expected[1].isinf().all()


def test_float64_weights_are_rounded_once_from_float64():
    weights, logits = [torch.randn(40, dtype=torch.float64)], [torch.zeros(5, dtype=torch.float64)]
    arguments = weights, logits, KEY, [0], None, *options()
    expected = ops.add_noise(*arguments)[0][0]
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(ops.add_noise(*arguments, dtype)[0][0], expected.to(dtype))
    assert ops.add_noise([weights[0].float()], [logits[0].float()], *arguments[2:], torch.float64)[0][0].dtype == (
        torch.float64
    )


# -- the backward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_lower_dtype_equal_those_cast_to_float32(backend, grad_dtype, group_size, per_group):
    _, add_noise_backward = BACKENDS[backend]
    weights, grads = make(COUNTS), make(COUNTS, grad_dtype, seed=3)
    weights[-1].clamp_(-1, 1)  # ties
    grads[3][5] = float("inf")
    lists = weights, logits_of(weights, group_size), *ops.weight_range(weights, group_size, per_group), KEY
    rest = *lists, list(range(len(weights))), *options(group_size, per_group)
    got = add_noise_backward(grads, *rest)
    expected = add_noise_backward([grad.float() for grad in grads], *rest)
    for one, other in zip(got, expected, strict=True):
        assert_same(one if isinstance(one, list) else [one], other if isinstance(other, list) else [other])
    assert all(grad.dtype == torch.float32 for grad in got[0])


@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_half_precision_weights_are_rounded_once(backend, weight_dtype, grad_dtype):
    _, add_noise_backward = BACKENDS[backend]
    weights, grads = make(COUNTS, weight_dtype), make(COUNTS, grad_dtype, seed=3)
    bounds = ops.weight_range(weights, 8, False)
    rest = logits_of(weights, 8), *bounds, KEY, list(range(len(weights))), *options()
    got = add_noise_backward(grads, weights, *rest)
    expected = add_noise_backward([grad.float() for grad in grads], [weight.float() for weight in weights], *rest)
    assert_same(got[0], [grad.to(weight_dtype) for grad in expected[0]])
    assert_same([*got[1], got[2]], [*expected[1], expected[2]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autograd_gives_each_weight_a_gradient_of_its_dtype(dtype):
    weights = [torch.randn(40, requires_grad=True), torch.randn(9).half().requires_grad_()]
    logits = [torch.zeros(5, requires_grad=True), torch.zeros(2, requires_grad=True)]
    nonfinite = torch.zeros(2, requires_grad=True)
    noisy = ops.add_noise(weights, logits, KEY, [0, 1], nonfinite, *options(), dtype)[0]
    assert [tensor.dtype for tensor in noisy] == [dtype, dtype]
    upstream = [torch.randn(tensor.shape).to(dtype) for tensor in noisy]
    got = torch.autograd.grad(noisy, [*weights, *logits, nonfinite], upstream)
    assert [grad.dtype for grad in got[:2]] == [torch.float32, torch.float16]
    plain = ops.add_noise(weights, logits, KEY, [0, 1], nonfinite, *options())[0]
    casts = [tensor.to(dtype) for tensor in plain]
    expected = torch.autograd.grad(casts, [*weights, *logits, nonfinite], upstream)
    assert_same([got[0], *got[2:]], [expected[0], *expected[2:]])
    torch.testing.assert_close(got[1], expected[1], rtol=2**-9, atol=1e-6)


# -- registration and arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck(per_group, dtype):
    weights = [weight.requires_grad_() for weight in make((35, 0, 1))]
    logits = [logit.requires_grad_() for logit in logits_of(weights, 4)]
    arguments = weights, logits, KEY, [0, 1, 2], None, *options(4, per_group)
    assert set(opcheck(ops.add_noise.default, (*arguments, dtype)).values()) == {"SUCCESS"}


def test_opcheck_of_the_backward_with_gradients_of_another_dtype():
    weights, grads = make((35, 0, 1)), make((35, 0, 1), torch.bfloat16, seed=3)
    bounds = ops.weight_range(weights, 4, False)
    arguments = grads, weights, logits_of(weights, 4), *bounds, KEY, [0, 1, 2], *options(4)
    assert set(opcheck(ops.add_noise_backward.default, arguments).values()) == {"SUCCESS"}


def test_the_public_function_takes_a_dtype():
    weights, logits = make((16, 9)), logits_of(make((16, 9)), 8)
    plain, found = functional.add_noise(weights, logits, KEY)
    noisy, found_again = functional.add_noise(weights, logits, KEY, dtype=torch.bfloat16)
    assert_same(noisy, [tensor.bfloat16() for tensor in plain])
    assert torch.equal(found, found_again)
    with pytest.raises(TypeError, match=r"add_noise: dtype must be a floating dtype, got torch\.int8"):
        functional.add_noise(weights, logits, KEY, dtype=torch.int8)
