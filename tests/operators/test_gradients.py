"""Gradients of noisy weights: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference import add_noise as add_noise_oracle
from diffq_fast.reference import philox
from diffq_fast.reference import weight_range as weight_range_oracle
from diffq_fast.reference.options import NoiseOptions
from diffq_fast.reference.sizes import group_count
from support.operators import (
    DTYPES,
    INF,
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck_add_noise_backward(per_group, dtype):
    weights = weights_of(dtype)
    logits = logits_of(weights, 4, torch.float64 if dtype == torch.float64 else torch.float32)
    found, extremes = ops.weight_range(weights, 4, per_group)
    grads = [torch.ones_like(weight) for weight in weights]
    streams = list(range(len(weights)))
    arguments = (grads, weights, logits, found, extremes, KEY, streams, *options_of(4, per_group=per_group))
    check(ops.add_noise_backward.default, *arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
def test_gradients_equal_the_oracle(group_size, per_group, param, kind):
    weights = weights_of()
    logits = logits_of(weights, group_size)
    options = options_of(group_size, param=param, kind=kind, per_group=per_group)
    weight_leaves, logit_leaves = leaves(weights), leaves(logits)
    noisy = add_noise(weight_leaves, logit_leaves, *options)
    grads = [torch.randn_like(tensor) for tensor in noisy]
    found = torch.autograd.grad(noisy, weight_leaves + logit_leaves, grads)
    for index, (weight, logit, grad) in enumerate(zip(weights, logits, grads, strict=True)):
        bounds = weight_range_oracle.weight_range(weight, group_size, per_group)
        z = philox.noise(KEY, index, 0, weight.numel(), kind)
        chosen = NoiseOptions.from_operator(*options)
        grad_weight, grad_logit, _ = add_noise_oracle.noisy_weight_backward(grad, weight, logit, bounds, z, chosen)
        torch.testing.assert_close(found[index], grad_weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[len(weights) + index], grad_logit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 4])
def test_gradcheck(group_size, per_group, param, kind):
    torch.manual_seed(2)
    weights = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 5), (4,), (1,))]
    weights, logits = leaves(weights), leaves(logits_of(weights, group_size, torch.float64))
    options = options_of(group_size, min_bits=1.5, max_bits=6.0, param=param, kind=kind, per_group=per_group)

    def noisy(*tensors):
        return tuple(add_noise(tensors[:3], tensors[3:], *options))

    assert torch.autograd.gradcheck(noisy, (*weights, *logits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_share_the_gradient_equally(dtype):
    """All of z enters S; each of the three maxima gets S / 3 and each of the two minima -S / 2."""
    (weight,) = leaves([torch.tensor([3.0, -1.0, 0.0, 3.0, -1.0, 3.0, 0.5, 2.0], dtype=dtype)])
    (logit,) = leaves([torch.zeros(1)])  # 8.5 bits of 2 … 15
    grad = torch.tensor([1.0, -2.0, 0.5, 4.0, 0.25, -1.0, 2.0, 1.0], dtype=dtype)
    (noisy,) = add_noise([weight], [logit], *options_of(0, max_bits=15.0, kind="uniform"))
    noisy.backward(grad)
    total = (grad.double() * philox.uniform(KEY, 0, 0, 8).double()).sum() / (2**8.5 - 1)
    share = torch.tensor([1 / 3, -1 / 2, 0, 1 / 3, -1 / 2, 1 / 3, 0, 0]).double()
    expected = grad.double() + total * share
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-6)
    torch.testing.assert_close(weight.grad.double(), expected, rtol=tolerance, atol=1e-6)
    slope = -torch.log(torch.tensor(2.0)) * 2**8.5 / (2**8.5 - 1) ** 2 * 13 / 4
    expected = 4 * total.item() * (2**8.5 - 1) * slope.item()
    assert logit.grad.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("group_size", [0, 1024, 1000])
def test_sums_over_large_groups_keep_their_precision(group_size):
    """A float32 running sum over a million terms would lose three digits and more."""
    weight, grad = torch.randn(1_000_003), torch.rand(1_000_003) + 1000
    (leaf,) = leaves([weight])
    (logit,) = leaves([torch.zeros(group_count(1_000_003, group_size))])
    add_noise([leaf], [logit], *options_of(group_size, kind="uniform"))[0].backward(grad)
    z = philox.uniform(KEY, 0, 0, 1_000_003)
    bounds = weight_range_oracle.weight_range(weight, 0, False)
    exact = add_noise_oracle.noisy_weight_backward(
        grad.double(), weight.double(), logit.detach().double(), bounds.double(), z, NoiseOptions(group_size, 2.0, 9.0)
    )
    largest = exact[1].abs().max()
    torch.testing.assert_close(logit.grad.double(), exact[1], rtol=1e-5, atol=1e-6 * largest)
    for end in (weight.argmin(), weight.argmax()):
        total = exact[0][end] - grad[end]
        assert leaf.grad[end].item() - grad[end].item() == pytest.approx(total.item(), rel=1e-4)


def test_frozen_weight_and_frozen_logit_get_no_gradient():
    weights, logits = weights_of()[:1], logits_of(weights_of()[:1], 8)
    options = options_of(8)
    both_w, both_l = leaves(weights), leaves(logits)
    add_noise(both_w, both_l, *options)[0].square().sum().backward()
    only_logits = leaves(logits)
    add_noise(weights, only_logits, *options)[0].square().sum().backward()
    assert weights[0].grad is None
    assert torch.equal(only_logits[0].grad, both_l[0].grad)
    only_weights = leaves(weights)
    add_noise(only_weights, logits, *options)[0].square().sum().backward()
    assert logits[0].grad is None
    assert torch.equal(only_weights[0].grad, both_w[0].grad)
    assert not add_noise(weights, logits, *options)[0].requires_grad


@pytest.mark.parametrize("per_group", [False, True])
def test_weights_outside_of_the_loss_get_no_gradient(per_group):
    weights = [torch.randn(5, 3), torch.randn(2, 2), torch.randn(9), torch.randn(4)]
    logits, options = logits_of(weights, 4), options_of(4, per_group=per_group)
    weight_leaves, logit_leaves = leaves(weights), leaves(logits)
    nonfinite = torch.zeros(4, requires_grad=True)
    noisy = add_noise(weight_leaves, logit_leaves, *options, nonfinite=nonfinite)
    (noisy[0].square().sum() + noisy[2].square().sum()).backward()
    for index in (1, 3):
        assert weight_leaves[index].grad is None
        assert logit_leaves[index].grad is None
    for index in (0, 2):
        alone, logit = leaves([weights[index]]), leaves([logits[index]])
        add_noise(alone, logit, *options, streams=[index])[0].square().sum().backward()
        assert torch.equal(weight_leaves[index].grad, alone[0].grad)
        assert torch.equal(logit_leaves[index].grad, logit[0].grad)
    assert nonfinite.grad.tolist() == [0, 0, 0, 0]


def test_nonfinite_logit_gradients_are_zeroed_and_counted():
    weights = leaves([torch.arange(8.0), torch.arange(8.0), torch.arange(8.0), torch.arange(6.0)])
    logits = leaves([torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(2)])
    nonfinite = torch.zeros(4, requires_grad=True)
    noisy = add_noise(weights, logits, *options_of(4), nonfinite=nonfinite)
    grads = [torch.ones(8), torch.ones(8), torch.ones(8), torch.ones(6)]
    grads[1][5] = NAN
    grads[2][0], grads[2][7] = INF, -INF
    torch.autograd.backward(noisy, grads)
    assert nonfinite.grad.tolist() == [0, 1, 2, 0]
    assert nonfinite.tolist() == [0, 0, 0, 0]
    zeroed = [(logit.grad == 0).tolist() for logit in logits]
    assert zeroed == [[False, False], [False, True], [True, True], [False, False]]
    assert all(logit.grad.isfinite().all() for logit in logits)
    assert weights[1].grad[5].isnan()


def test_nonfinite_counts_only_the_weights_in_the_loss():
    weights, logits = leaves([torch.arange(8.0)] * 3), leaves([torch.zeros(2)] * 3)
    nonfinite = torch.zeros(3, requires_grad=True)
    noisy = add_noise(weights, logits, *options_of(4), nonfinite=nonfinite)
    (noisy[2] * torch.tensor([INF] + [1.0] * 7)).sum().backward()
    assert nonfinite.grad.tolist() == [0, 0, 1]


def test_no_noise_is_kept_for_the_backward():
    weights, logits = (
        leaves([torch.randn(100, 100), torch.randn(3000)]),
        leaves([torch.zeros(1250), torch.zeros(375)]),
    )
    inputs = {tensor.untyped_storage().data_ptr() for tensor in (*weights, *logits, KEY)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        noisy = add_noise(weights, logits, *options_of(8))
    others = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in inputs]
    assert len(kept) >= 5
    assert sum(tensor.untyped_storage().nbytes() for tensor in others) <= 256
    noisy[0].sum().backward()
    assert weights[0].grad is not None


def test_half_precision_logits_get_half_precision_gradients():
    (weight,), (logit,) = leaves([torch.randn(4, 8)]), leaves([torch.randn(4).to(torch.bfloat16)])
    add_noise([weight], [logit], *options_of(8))[0].sum().backward()
    assert logit.grad.dtype == torch.bfloat16


# -- second order ------------------------------------------------------------------------------------------------------


def second_order(noisy_of, weights, logits, seed=5):
    """Gradients of a function of the gradients, with respect to weights, logits and the gradient that came in."""
    torch.manual_seed(seed)
    weights, logits = leaves(weights), leaves(logits)
    noisy = noisy_of(weights, logits)
    grads = leaves([torch.randn_like(tensor) for tensor in noisy])
    first = torch.autograd.grad(noisy, weights + logits, grads, create_graph=True)
    total = sum((each.double() * torch.randn_like(each).double()).sum() for each in first)
    return torch.autograd.grad(total, weights + logits + grads, materialize_grads=True)


def noisy_of_oracle(options, kind):
    def noisy(weights, logits):
        chosen = NoiseOptions.from_operator(*options)
        noise = [ops.noise(KEY, index, 0, weight.numel(), kind) for index, weight in enumerate(weights)]
        made = zip(weights, logits, noise, strict=True)
        return [add_noise_oracle.noisy_weight(*each, chosen) for each in made]

    return noisy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
def test_second_gradients_equal_the_oracle(group_size, per_group, param, kind):
    """Autograd through the oracle's forward, twice; some weights have ties."""
    weights = [*weights_of(), torch.tensor([3.0, -1.0, 0.0, 3.0, -1.0, 3.0, 0.5, 2.0, -1.0])]
    logits = logits_of(weights, group_size)
    options = options_of(group_size, param=param, kind=kind, per_group=per_group)
    made = second_order(lambda *lists: add_noise(*lists, *options), weights, logits)
    expected = second_order(noisy_of_oracle(options, kind), weights, logits)
    for one, another in zip(made, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 3])
def test_gradgradcheck(group_size, per_group, param, kind):
    torch.manual_seed(2)
    weights = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 5), (4,))]
    weights, logits = leaves(weights), leaves(logits_of(weights, group_size, torch.float64))
    options = options_of(group_size, min_bits=1.5, max_bits=6.0, param=param, kind=kind, per_group=per_group)

    def noisy(*tensors):
        return tuple(add_noise(tensors[:2], tensors[2:], *options))

    assert torch.autograd.gradgradcheck(noisy, (*weights, *logits))


def test_third_gradients():
    """Of one weight in one group, by the noise of another logit: the third derivative of the step."""
    torch.manual_seed(3)
    weights, logits = leaves([torch.randn(6)]), leaves([torch.randn(1)])
    options = options_of(0)

    def third(noisy):
        grad = noisy[0].sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(grad.sum(), logits, create_graph=True)
        return grad

    made = third(add_noise(weights, logits, *options))
    torch.testing.assert_close(made, third(noisy_of_oracle(options, "gaussian")(weights, logits)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_gradients_of_lower_dtypes_arrive_in_them(dtype):
    made = second_order(lambda *lists: add_noise(*lists, *options_of(4)), weights_of(dtype), logits_of(weights_of(), 4))
    count = len(weights_of())
    assert [each.dtype for each in made] == [dtype] * count + [torch.float32] * count + [dtype] * count


def test_the_second_gradient_of_one_weight_of_several():
    """The others took no part in the loss, or not in the function of the gradients."""
    weights = [torch.randn(7) for _ in range(3)]
    weights, logits = leaves(weights), leaves(logits_of(weights, 4))
    noisy = add_noise(weights, logits, *options_of(4))
    first = torch.autograd.grad(noisy[0].square().sum() + noisy[2].sum(), [weights[0], logits[2]], create_graph=True)
    made = torch.autograd.grad(first[0].sum(), [weights[0], logits[0]])
    alone = add_noise(weights[:1], logits[:1], *options_of(4))
    (again,) = torch.autograd.grad(alone[0].square().sum(), weights[0], create_graph=True)
    for one, another in zip(made, torch.autograd.grad(again.sum(), [weights[0], logits[0]]), strict=True):
        torch.testing.assert_close(one, another)
