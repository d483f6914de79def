"""What weights take in a file with learned bits: the operator against the oracle."""

from __future__ import annotations

import math

import pytest
import torch

from diffq_fast import functional
from diffq_fast.backends import cpu
from diffq_fast.functional import NoiseOptions
from diffq_fast.reference.sizes import group_count
from diffq_fast.reference.weight_sizes import weight_size, weight_size_backward
from support.operators import NAN, PARAMS, check, leaves, ops

COUNTS = [0, 1, 7, 8, 9, 35, 1000, 8 * 5000 + 3]


def logits_of(group_size, dtype=torch.float32, spread=2.0):
    torch.manual_seed(group_size)
    return [spread * torch.randn(group_count(count, group_size)).to(dtype) for count in COUNTS]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype, requires_grad):
    logits = logits_of(8, dtype)
    if requires_grad:
        logits = leaves(logits)
    check(ops.weight_sizes.default, logits, COUNTS, 8, 2.0, 15.0, "bits", 0.5)
    if not requires_grad:
        check(ops.weight_sizes_backward.default, torch.rand(8).to(dtype), logits, COUNTS, 8, 2.0, 15.0, "bits")


def test_one_weight_by_hand():
    """Logits of zero give 5 of 2 to 8 bits: 12 elements, and for two groups a width from 2 to 5, which takes 2."""
    options = NoiseOptions(8, 2, 8)
    assert functional.weight_sizes([torch.zeros(2)], [12], options).tolist() == [5 * 12 + 2 * 2]
    # 8 bits and, for the last four elements, 2; a width from 2 to 8 takes 3
    assert functional.weight_sizes([torch.tensor([90.0, -90.0])], [12], options).tolist() == [8 * 8 + 2 * 4 + 2 * 3]
    # one bit less: a table from 1
    fewer = functional.weight_sizes([torch.tensor([90.0, -90.0])], [12], options, extra_bits=-1)
    assert fewer.tolist() == [7 * 8 + 1 * 4 + 2 * 3]


@pytest.mark.parametrize("extra_bits", [0, 1.5, -1.25])
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("group_size", [0, 1, 3, 8, 64, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_it_equals_the_oracle(dtype, group_size, param, extra_bits):
    logits = logits_of(group_size, dtype)
    options = NoiseOptions(group_size, 2, 15, param)
    sizes = functional.weight_sizes(logits, COUNTS, options, extra_bits=extra_bits)
    rows = zip(logits, COUNTS, strict=True)
    expected = torch.stack(
        [weight_size(each.double(), count, group_size, 2, 15, param, extra_bits) for each, count in rows]
    )
    assert sizes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(sizes.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("group_size", [0, 1, 3, 8, 64, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_equal_the_oracles(dtype, group_size, param):
    logits = leaves(logits_of(group_size, dtype))
    factors = torch.linspace(0.5, 2, len(COUNTS))
    sizes = functional.weight_sizes(logits, COUNTS, NoiseOptions(group_size, 2, 15, param))
    (sizes * factors).sum().backward()
    rounding = 4e-3 if dtype == torch.bfloat16 else 1e-6  # of the largest slope: where t is about 1, 1 - t is rounded
    for logit, count, factor in zip(logits, COUNTS, factors, strict=True):
        expected = weight_size_backward(factor.double(), logit.detach().double(), count, group_size, 2, 15, param)
        assert logit.grad.dtype == dtype
        largest = factor * 13 * min(group_size or count, count)
        assert ((logit.grad.double() - expected).abs() <= rounding * max(largest, 1e-9)).all()


@pytest.mark.parametrize("param", PARAMS)
def test_gradcheck(param):
    torch.manual_seed(3)
    logits = leaves([torch.randn(3).double(), torch.randn(1).double()])

    def sizes(*each):
        return functional.weight_sizes(each, [20, 5], NoiseOptions(8, 2, 15, param))

    assert torch.autograd.gradcheck(sizes, logits)
    assert torch.autograd.gradgradcheck(sizes, logits)


def test_only_some_logits_need_a_gradient():
    logits = [torch.zeros(2), torch.zeros(2).requires_grad_()]
    functional.weight_sizes(logits, [16, 16]).sum().backward()
    assert logits[0].grad is None
    torch.testing.assert_close(logits[1].grad, torch.full((2,), 8 * 13 / 4))


def test_a_logit_that_is_nan_makes_its_weight_nan():
    logits = [torch.zeros(5000), torch.zeros(2)]
    logits[0][4321] = NAN
    sizes = functional.weight_sizes(logits, [40000, 16])
    assert sizes.isnan().tolist() == [True, False]


def test_infinite_logits_are_the_ends_of_the_interval():
    sizes = functional.weight_sizes([torch.tensor([math.inf]), torch.tensor([-math.inf])], [8, 8])
    assert sizes.tolist() == [8 * 15 + 4, 8 * 2]


@pytest.mark.skipif(not cpu.status()[0], reason="torch's own sums depend on its threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_result_does_not_depend_on_threads(threads):
    torch.manual_seed(4)
    logit, before = torch.randn(100_000).requires_grad_(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size = functional.weight_sizes([logit], [800_000])
        (grad,) = torch.autograd.grad(size, logit)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(size, functional.weight_sizes([logit], [800_000]), rtol=0, atol=0)
    torch.testing.assert_close(grad, torch.autograd.grad(functional.weight_sizes([logit], [800_000]), logit)[0])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": []}, ValueError, "expected at least one logits, and as many counts, got 0, 1"),
        ({"counts": [16, 16]}, ValueError, "expected at least one logits, and as many counts, got 1, 2"),
        ({"counts": [-1]}, ValueError, r"counts\[0\] must not be negative, got -1"),
        ({"counts": [30]}, ValueError, r"logits\[0\] must have shape \[4\], one per group of 8 in 30 elements"),
        ({"logits": [torch.zeros(2, dtype=torch.int32)]}, TypeError, r"logits\[0\] must be a floating tensor"),
        ({"options": NoiseOptions(-1)}, ValueError, "group_size must be 0"),
        ({"options": NoiseOptions(param="steps")}, ValueError, "param must be one of"),
        ({"options": NoiseOptions(min_bits=9, max_bits=3)}, ValueError, "expected 0 < min_bits < max_bits < 128"),
    ],
)
def test_a_bad_argument_is_refused(change, error, words):
    arguments = {"logits": [torch.zeros(2)], "counts": [16]} | change
    with pytest.raises(error, match=f"weight_sizes: {words}"):
        functional.weight_sizes(**arguments)
