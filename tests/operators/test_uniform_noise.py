"""Uniform noise of one step: the operator against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast import functional
from diffq_fast.reference import philox, uniform_noise
from diffq_fast.reference.sizes import group_count
from support.operators import DTYPES, KEY, check, leaves, ops, weights_of

SIZES = [0, 1, 3, 8, 64, 7]  # of the groups of each of weights_of()
STREAMS = [4, 0, 2**31, 7, 1, 2**32 - 1]


def steps_of(weights, sizes, dtype=torch.float32):
    torch.manual_seed(1)
    counts = [group_count(weight.numel(), size) for weight, size in zip(weights, sizes, strict=True)]
    return [torch.rand(count).to(dtype) + 0.01 for count in counts]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, requires_grad):
    weights = weights_of(dtype)
    steps = steps_of(weights, SIZES)
    if requires_grad:
        weights, steps = leaves(weights), leaves(steps)
    check(ops.add_uniform_noise.default, weights, steps, KEY, STREAMS, SIZES)
    if not requires_grad:  # it has no gradient of its own
        check(ops.add_uniform_noise_backward.default, weights, steps, KEY, STREAMS, SIZES)


@pytest.mark.parametrize("out", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sizes", [SIZES, [0] * 6, [1] * 6, [5] * 6, [16] * 6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_equals_the_oracle(dtype, sizes, out):
    weights = weights_of(dtype)
    steps = steps_of(weights, sizes)
    noisy = functional.add_uniform_noise(weights, steps, KEY, group_sizes=sizes, streams=STREAMS, dtype=out)
    for weight, step, stream, size, made in zip(weights, steps, STREAMS, sizes, noisy, strict=True):
        z = philox.uniform(KEY, stream, 0, weight.numel())
        expected = uniform_noise.noisy_weight(weight, step, z, size, out)
        assert (made.dtype, made.shape, made.is_contiguous()) == (out or dtype, weight.shape, True)
        rounding = torch.finfo(made.dtype).eps if made.dtype in (torch.float16, torch.bfloat16) else 0
        torch.testing.assert_close(made, expected, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1023, 1024, 1025, 5000, 40000])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 8, 384, 20000])
def test_gradients_equal_the_oracle(count, size):
    torch.manual_seed(2)
    weight, grad = torch.randn(count).requires_grad_(), torch.randn(count)
    (steps,) = leaves(steps_of([weight], [size]))
    (noisy,) = functional.add_uniform_noise([weight], [steps], KEY, group_sizes=[size], streams=[5])
    noisy.backward(grad)
    z = philox.uniform(KEY, 5, 0, count)
    expected = uniform_noise.step_gradient(grad, steps.detach(), z, size)
    assert torch.equal(weight.grad, grad)
    torch.testing.assert_close(steps.grad, expected, rtol=1e-5, atol=1e-5)


def test_gradcheck():
    weight, steps = torch.randn(3, 5).double().requires_grad_(), (torch.rand(3).double() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda weight, steps: ops.add_uniform_noise([weight], [steps], KEY, [3], [5])[0], (weight, steps)
    )


def test_gradgradcheck():
    """Of two weights; the first function of the gradients uses one of them only."""
    torch.manual_seed(4)
    weights, steps = (
        leaves([torch.randn(3, 5).double(), torch.randn(7).double()]),
        leaves([torch.rand(3).double() + 0.1, torch.rand(1).double() + 0.1]),
    )

    def squares(*tensors):
        return [each**2 for each in ops.add_uniform_noise(tensors[:2], tensors[2:], KEY, [3, 8], [5, 0])]

    for used in (slice(1), slice(2)):
        assert torch.autograd.gradgradcheck(lambda *each, used=used: tuple(squares(*each)[used]), (*weights, *steps))


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_second_gradients_equal_the_oracles(out, size):
    """In the gradient that came in: the sums of grad * noise are linear in it."""
    torch.manual_seed(5)
    weight, grad = torch.randn(100), torch.randn(100).to(out).requires_grad_()
    (steps,) = leaves(steps_of([weight], [size]))
    (noisy,) = functional.add_uniform_noise([weight], [steps], KEY, group_sizes=[size], streams=[2], dtype=out)
    (first,) = torch.autograd.grad(noisy, steps, grad, create_graph=True)
    second = torch.randn_like(first)
    (made,) = torch.autograd.grad(first, grad, second)
    z = philox.uniform(KEY, 2, 0, 100)
    expected = uniform_noise.noisy_weight(torch.zeros(100), second, z, size, out)
    assert made.dtype == out
    torch.testing.assert_close(made, expected, rtol=torch.finfo(out).eps, atol=1e-6)


def test_a_weight_that_the_loss_does_not_use_gets_no_gradient():
    weights, steps = leaves([torch.randn(8), torch.randn(8)]), leaves([torch.ones(1), torch.ones(1)])
    functional.add_uniform_noise(weights, steps, KEY, group_sizes=[0, 0])[1].sum().backward()
    assert weights[0].grad is None
    assert steps[0].grad is None
    assert steps[1].grad.abs().item() > 0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"steps": [torch.ones(2)]}, ValueError, r"steps\[0\] must have shape \[4\]"),
        ({"steps": [torch.ones(4).half()]}, TypeError, r"steps\[0\] must be float32 or float64, got torch.float16"),
        ({"steps": []}, ValueError, "expected 1 steps, one per weight, got 0"),
        ({"group_sizes": [2, 2]}, ValueError, "expected 1 group_sizes, one per weight, got 2"),
        ({"group_sizes": [-1]}, ValueError, "group_size must be 0"),
        ({"streams": [-1]}, ValueError, "streams must be between 0"),
        ({"key": torch.tensor(1.0)}, TypeError, "key must be an int64 tensor"),
        ({"dtype": torch.int32}, TypeError, "dtype must be a floating dtype"),
        ({"weights": []}, ValueError, "expected at least one weight"),
    ],
)
def test_a_bad_argument_is_refused(change, error, words):
    arguments = {"weights": [torch.zeros(8)], "steps": [torch.ones(4)], "key": KEY, "group_sizes": [2]} | change
    with pytest.raises(error, match=f"add_uniform_noise: {words}"):
        functional.add_uniform_noise(**arguments)
