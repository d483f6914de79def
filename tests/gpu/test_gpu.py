"""The operators on a CUDA device against the oracle on the CPU: same key, same words, same uniforms.

Tolerances: approximate exponentials and logarithms leave a step within 1e-6 of itself and a normal within
5e-5 (docs/philox.md); a float32 noisy weight may so differ by 5e-5 of the range, bfloat16 and float16 by one
unit more.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import diffq_fast.functional
from diffq_fast import backend_info
from diffq_fast.backends import default
from support.gpu_tensors import (
    COUNTS,
    EPSILON,
    KEY,
    assert_gradients_near,
    assert_near,
    assert_same,
    cuda,
    make,
    make_logits,
    ops,
    options,
)

pytestmark = pytest.mark.gpu

GROUP_SIZES = (0, 1, 2, 4, 8, 16, 64, 1024, 7, 3000)
DRAWS, MANY_DRAWS = 2**22, 10**9
STEPS = 100


def test_triton_answers():
    assert backend_info()["backends"]["triton"]["active"], backend_info()


# -- noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [0, 1, 4095, 2**35 - 100])
def test_uniform_noise_is_bit_equal_and_gaussian_noise_near(begin):
    for count in COUNTS:
        uniform = ops.noise(KEY.cuda(), 2**32 - 1, begin, count, "uniform")
        assert_same([uniform], [default.noise(KEY, 2**32 - 1, begin, count, "uniform")])
        gaussian = ops.noise(KEY.cuda(), 1, begin, count, "gaussian")
        assert_near([gaussian], [default.noise(KEY, 1, begin, count, "gaussian")], 0, 5e-5)


def test_every_draw_gives_its_normal_within_the_tolerance():
    """All 65,536 radii occur in 2**22 elements (but for a chance of 1e-9), the ones near u = 1 among them."""
    gaussian = ops.noise(KEY.cuda(), 2, 0, DRAWS, "gaussian").cpu()
    assert torch.isfinite(gaussian).all()
    assert (gaussian - default.noise(KEY, 2, 0, DRAWS, "gaussian")).abs().max() <= 5e-5


@pytest.mark.slow
def test_statistics_of_a_thousand_million_draws():
    """Mean and variance within six standard errors: false alarms once in 10**8 runs. Sums in float64."""
    count, piece = MANY_DRAWS, 2**27
    for noise_kind, variance, fourth in (("uniform", 1 / 12, 1 / 80), ("gaussian", 0.25, 3 / 16)):
        total = square = 0.0
        for begin in range(0, count, piece):
            z = ops.noise(KEY.cuda(), 9, begin, min(piece, count - begin), noise_kind)
            total += z.sum(dtype=torch.float64).item()
            square += z.square().sum(dtype=torch.float64).item()
        assert abs(total / count) < 6 * math.sqrt(variance / count)
        # 16-bit draws lower the normal's variance by 5.3e-6 of itself (docs/philox.md, section 5)
        grid = 1 - (2.0**-32 if noise_kind == "uniform" else 5.3e-6)
        assert abs(square / count - variance * grid) < 6 * math.sqrt((fourth - variance**2) / count) + 1e-7


# -- training ------------------------------------------------------------------------------------------------


def both(weights, grads, *arguments):
    """Outputs of forward and backward: from the GPU, and from the oracle on the CPU."""
    logits, streams = make_logits(weights, arguments[0]), list(range(len(weights)))
    results = []
    for place, noise_of, gradient_of in (
        (cuda, ops.add_noise, ops.add_noise_backward),
        (list, default.add_noise, default.add_noise_backward),
    ):
        w, g, lg, (key,) = place(weights), place(grads), place(logits), place([KEY])
        with torch.no_grad():
            noisy, ranges, extremes = noise_of(w, lg, key, streams, None, *arguments)
            results.append(
                (noisy, ranges, extremes, *gradient_of(g, w, lg, ranges, extremes, key, streams, *arguments))
            )
    return results


def assert_passes_equal(weights, grads, *arguments):
    got, expected = both(weights, grads, *arguments)
    epsilon = EPSILON[weights[0].dtype]
    assert_near(got[0], expected[0], epsilon, 2e-4)
    assert_same(got[1:3], expected[1:3])
    assert_near(got[3], expected[3], max(epsilon, 2e-5), 1e-3)
    for one, other in zip(got[4], expected[4], strict=True):
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one.cpu(), other, rtol=2e-4, atol=1e-5 * scale)
    assert_same([got[5]], [expected[5]])


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("noise_kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", EPSILON)
def test_training_equals_the_oracle(dtype, group_size, noise_kind, per_group):
    param = "bits" if noise_kind == "uniform" else "noise"
    arguments = options(group_size, per_group, param, noise_kind)
    assert_passes_equal(make(COUNTS, dtype), make(COUNTS, dtype, seed=3), *arguments)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("noise_kind", ["uniform", "gaussian"])
def test_training_equals_the_compiled_core(noise_kind, per_group):
    if not backend_info()["backends"]["cpu"]["active"]:
        pytest.skip("the compiled core is not there")
    weights, logits = make(COUNTS), make_logits(make(COUNTS), 8)
    chosen, streams = options(8, per_group, "bits", noise_kind), list(range(len(COUNTS)))
    results = []
    for place in (cuda, list):
        w, lg, g, (key,) = place(weights), place(logits), place(make(COUNTS, seed=3)), place([KEY])
        with torch.no_grad():
            noisy, ranges, extremes = ops.add_noise(w, lg, key, streams, None, *chosen)
            results.append((noisy, ops.add_noise_backward(g, w, lg, ranges, extremes, key, streams, *chosen)))
    (noisy, gradients), (expected, expected_gradients) = results
    assert_near(noisy, expected, 0, 2e-4)
    assert_near(gradients[0], expected_gradients[0], 2e-5, 1e-3)
    for one, other in zip(gradients[1], expected_gradients[1], strict=True):
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one.cpu(), other, rtol=2e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 8, 7])
def test_noisy_weights_of_another_dtype_equal_those_cast_to_it(group_size, per_group, dtype):
    weights = [*make(COUNTS), make((8193,), seed=5)[0][1:], torch.tensor([1.0, float("nan")]), torch.full((9,), 1e5)]
    logits, streams = make_logits(weights, group_size), list(range(len(weights)))
    lists = cuda(weights), cuda(logits), KEY.cuda(), streams, None
    with torch.no_grad():
        expected, ranges, extremes = ops.add_noise(*lists, *options(group_size, per_group))
        noisy, *measured = ops.add_noise(*lists, *options(group_size, per_group), dtype)
    assert_same(noisy, [tensor.to(dtype) for tensor in expected])
    assert_same(measured, [ranges, extremes])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 8, 7])
def test_gradients_of_a_lower_dtype_are_near_those_cast_to_float32(group_size, per_group, dtype):
    """Near, not equal: for another dtype the compiler contracts products and orders sums in another way. Triton's
    interpreter gives equal ones."""
    weights, grads = cuda(make(COUNTS)), cuda(make(COUNTS, dtype, seed=3))
    weights[-1].clamp_(-1, 1)
    measured = ops.weight_range(weights, group_size, per_group)
    lists = cuda(make_logits(weights, group_size)), *measured, KEY.cuda(), list(range(len(weights)))
    got = ops.add_noise_backward(grads, weights, *lists, *options(group_size, per_group))
    widened = [grad.float() for grad in grads]
    expected = ops.add_noise_backward(widened, weights, *lists, *options(group_size, per_group))
    assert_gradients_near(got, expected, grads, weights, lists, options(group_size, per_group))
    assert all(grad.dtype == torch.float32 for grad in got[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_autocasts_dtype_give_what_its_casts_give(dtype):
    from diffq_fast import DiffQuantizer

    def step(noisy_dtype):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        model = nn.Sequential(nn.Embedding(50, 64), layer, nn.Linear(64, 50)).cuda()
        DiffQuantizer(model, min_size=0, group_size=8, noisy_dtype=noisy_dtype).no_optimizer()
        seen = []
        model[2].register_forward_pre_hook(lambda module, args: seen.append(module.weight.dtype))
        torch.manual_seed(1)
        with torch.autocast("cuda", dtype):
            out = model(torch.arange(48, device="cuda").view(2, 24))
        out.float().square().mean().backward()
        return out.detach(), [parameter.grad for parameter in model.parameters()], seen

    out, grads, seen = step("auto")
    expected, expected_grads, plain = step(None)
    assert (seen, plain) == ([dtype], [torch.float32])
    assert_near([out], [expected], EPSILON[dtype], EPSILON[dtype])
    for one, other in zip(grads, expected_grads, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("per_group", [False, True])
def test_ties_nan_and_unaligned_views_equal_the_oracle(per_group):
    tied = make((50_001,))[0].clamp(-1, 1)[1:]
    weights = [tied, torch.tensor([1.0, float("nan"), 2.0]), torch.ones(100), make((8193,), seed=5)[0][1:]]
    assert_passes_equal(weights, make([w.numel() for w in weights], seed=3), *options(8, per_group))


def test_results_repeat_exactly():
    weights, grads = make((300_001, 5000)), make((300_001, 5000), seed=3)
    once, _ = both(weights, grads, *options())
    again, _ = both(weights, grads, *options())
    for one, other in zip(once, again, strict=True):
        assert_same(
            one if isinstance(one, (list, tuple)) else [one],
            other if isinstance(other, (list, tuple)) else [other],
        )


def test_gradients_flow_through_autograd():
    weight = make((4096,))[0].cuda().requires_grad_()
    logit = torch.zeros(512, device="cuda", requires_grad=True)
    (noisy,), _, _ = ops.add_noise([weight], [logit], KEY.cuda(), [0], None, *options())
    (noisy * noisy).sum().backward()
    again = weight.detach().cpu().requires_grad_()
    logit_again = logit.detach().cpu().requires_grad_()
    (expected,), _, _ = ops.add_noise([again], [logit_again], KEY, [0], None, *options())
    (expected * expected).sum().backward()
    torch.testing.assert_close(weight.grad.cpu(), again.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(logit.grad.cpu(), logit_again.grad, rtol=1e-3, atol=1e-3)


def test_operators_pass_opcheck():
    """Results of several weights are pieces of one buffer: two of the checks take those for aliases of each other
    (that of compiled calls warns, and fails where the environment has CI), so they are made with one weight."""
    weights, logits = cuda(make((64, 9))), cuda(make((8, 2), seed=1))
    others = "test_schema", "test_autograd_registration"
    both = weights, logits, KEY.cuda(), [0, 1], None, *options()
    torch.library.opcheck(ops.add_noise.default, both, test_utils=others)
    torch.library.opcheck(ops.add_noise.default, (weights[:1], logits[:1], KEY.cuda(), [0], None, *options()))
    torch.library.opcheck(ops.weight_range.default, (weights, 8, False))


def train(device):
    from diffq_fast import DiffQuantizer

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 32)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    quantizer = DiffQuantizer(model, min_size=0.0, group_size=8, noise="uniform")
    quantizer.setup_optimizer(optimizer, lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(STEPS):
        x = torch.randn(16, 64, generator=generator).to(device)
        torch.manual_seed(step)
        loss = model(x).square().mean() + 1e-2 * quantizer.model_size()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, float(quantizer.true_model_size())


def test_training_for_a_hundred_steps_equals_the_cpu(monkeypatch):
    """The two devices' generators differ, so the key is made from the step's seed on both."""
    original = diffq_fast.functional.draw_key
    monkeypatch.setattr(
        diffq_fast.functional,
        "draw_key",
        lambda like: torch.tensor(torch.initial_seed() * 7919).to(like.device),
    )
    on_gpu, size_on_gpu = train("cuda")
    on_cpu, size_on_cpu = train("cpu")
    assert original is not diffq_fast.functional.draw_key
    torch.testing.assert_close(torch.tensor(on_gpu), torch.tensor(on_cpu), rtol=2e-2, atol=1e-4)
    assert size_on_gpu == pytest.approx(size_on_cpu, rel=0.02)
