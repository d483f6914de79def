"""Noisy weights: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference import add_noise as add_noise_oracle
from diffq_fast.reference import philox
from diffq_fast.reference import planes as planes_oracle
from diffq_fast.reference.options import NoiseOptions
from support.operators import (
    DTYPES,
    KEY,
    KINDS,
    NAN,
    PARAMS,
    add_noise,
    check,
    leaves,
    logits_of,
    ops,
    options_of,
    weights_of,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def amplitude_of(weight):
    return (weight.max() - weight.min()).item() if weight.numel() else 0.0


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck_add_noise(per_group, dtype, requires_grad):
    weights = weights_of(dtype)
    logits = logits_of(weights, 4, torch.float64 if dtype == torch.float64 else torch.float32)
    nonfinite = torch.zeros(len(weights))
    if requires_grad:
        weights, logits, nonfinite = leaves(weights), leaves(logits), nonfinite.requires_grad_()
    streams = list(range(len(weights)))
    check(ops.add_noise.default, weights, logits, KEY, streams, nonfinite, *options_of(4, per_group=per_group))
    check(ops.add_noise.default, weights[:1], [logits[0]], KEY, [3], None, *options_of(4, per_group=per_group))


@pytest.mark.parametrize("count", [0, 1, 200])
@pytest.mark.parametrize("rows", sorted(planes_oracle.PLANE_DTYPES))
def test_opcheck_plane_operators(rows, count):
    values = torch.arange(count) % 8
    check(ops.pack_planes.default, values, 3, rows, 4)
    check(ops.pack_planes_seen.default, values, 3, rows, 4)
    check(ops.unpack_planes.default, ops.pack_planes(values, 3, rows, 4), count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_noise_equals_the_oracle(dtype, group_size, per_group, param, kind):
    """To 1e-5 of the range in float32, and in half precision to one rounding more."""
    weights = weights_of(dtype)
    logits = logits_of(weights, group_size)
    streams = [4, 0, 2**31, 7, 1, 2**32 - 1]
    options = options_of(group_size, param=param, kind=kind, per_group=per_group)
    noisy = add_noise(weights, logits, *options, streams=streams)
    for weight, logit, stream, found in zip(weights, logits, streams, noisy, strict=True):
        z = philox.noise(KEY, stream, 0, weight.numel(), kind)
        expected = add_noise_oracle.noisy_weight(weight, logit, z, NoiseOptions.from_operator(*options))
        assert (found.dtype, found.shape) == (weight.dtype, weight.shape)
        assert found.is_contiguous()
        rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0
        torch.testing.assert_close(found, expected, rtol=rounding, atol=1e-5 * amplitude_of(weight) + 1e-30)


def test_a_weight_reaches_the_loss_with_its_own_stream_and_range():
    """A list is nothing but its weights one by one."""
    weights = weights_of()
    logits, options = logits_of(weights, 8), options_of(8)
    noisy = add_noise(weights, logits, *options)
    for index, (weight, logit) in enumerate(zip(weights, logits, strict=True)):
        assert torch.equal(noisy[index], add_noise([weight], [logit], *options, streams=[index])[0])


def test_a_nan_in_a_weight_is_passed_on_and_its_logits_stay_finite():
    weights = [torch.arange(8.0), torch.arange(8.0)]
    weights[0][3] = NAN
    weights, logits = leaves(weights), leaves([torch.zeros(2), torch.zeros(2)])
    nonfinite = torch.zeros(2, requires_grad=True)
    noisy = add_noise(weights, logits, *options_of(4), nonfinite=nonfinite)
    assert noisy[0].isnan().any()
    assert noisy[1].isfinite().all()
    sum(tensor.sum() for tensor in noisy).backward()
    assert logits[0].grad.tolist() == [0, 0]
    assert nonfinite.grad.tolist() == [2, 0]
    assert logits[1].grad.isfinite().all()
    assert (logits[1].grad != 0).all()


def test_inputs_are_not_changed():
    weights = weights_of()
    logits = logits_of(weights, 8)
    copies = [tensor.clone() for tensor in (*weights, *logits, KEY)]
    noisy = add_noise(leaves(weights), leaves(logits), *options_of(8))
    noisy[0].sum().backward()
    add_noise(weights, logits, *options_of(8))
    for tensor, copy in zip((*weights, *logits, KEY), copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    weights = [torch.randn(333, 301), torch.randn(77), torch.randn(2**16)]
    logits, options = logits_of(weights, 8), options_of(8)

    def run():
        weight_leaves, logit_leaves = leaves(weights), leaves(logits)
        noisy = add_noise(weight_leaves, logit_leaves, *options)
        torch.autograd.backward(noisy, [weight.cos() for weight in weights])
        return [*noisy, *(leaf.grad for leaf in weight_leaves + logit_leaves)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = run()
        torch.set_num_threads(3)
        expected = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_computed_in_float32(dtype):
    (weight,) = leaves([torch.randn(40, 8).to(dtype)])
    logit = torch.randn(40)
    (noisy,) = add_noise([weight], [logit], *options_of(8))
    (wide,) = add_noise([weight.detach().float()], [logit], *options_of(8))
    assert noisy.dtype == dtype
    assert torch.equal(noisy, wide.to(dtype))
    noisy.sum().backward()
    assert weight.grad.dtype == dtype
