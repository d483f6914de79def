"""What a training step calls reads no value on the host: nothing there waits for a GPU."""

from __future__ import annotations

import pytest
import torch

from diffq_fast import functional
from diffq_fast.backends import default
from support.no_reads import NoReads
from support.operators import KEY, leaves, logits_of, options_of, weights_of, widths_of


def noise_options(per_group):
    return functional.NoiseOptions(group_size=4, range_scope="group" if per_group else "tensor")


def test_a_read_is_refused():
    with NoReads():
        for read in (lambda x: x.item(), lambda x: bool(x > 0), lambda x: x.nonzero(), lambda x: int(x)):
            with pytest.raises(AssertionError, match="reads values on the host"):
                read(torch.ones(()))
        widths, ranges = torch.ones(1, dtype=torch.uint8), torch.zeros(1, 2)
        with pytest.raises(AssertionError, match="reads values on the host"):
            functional.quantize([torch.ones(3)], [widths], ranges)  # an export may look


@pytest.mark.parametrize("per_group", [False, True])
def test_the_functions_of_a_step_read_nothing(per_group):
    weights = weights_of()
    logits, nonfinite = logits_of(weights, 4), torch.zeros(len(weights), requires_grad=True)
    learned = [*leaves(weights), *leaves(logits)]
    widths, scope = widths_of(weights, 4), "group" if per_group else "tensor"
    with NoReads():
        key = functional.draw_key(weights[0])
        halves = learned[: len(weights)], learned[len(weights) :]
        noisy, ranges = functional.add_noise(*halves, key, noise_options(per_group), nonfinite=nonfinite)
        torch.autograd.grad(sum(each.sum() for each in noisy), [*learned, nonfinite], retain_graph=True)
        torch.autograd.grad(noisy[0].sum(), learned[0])  # the rows of one weight alone
        rounded = functional.fake_quantize(weights, widths, ranges, group_size=4, range_scope=scope)
        functional.weight_range(weights, group_size=4, range_scope=scope)
    assert [each.shape for each in rounded] == [each.shape for each in weights]


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_kernels_of_a_step_read_nothing(dtype, per_group):
    """They answer on any device without kernels of its own; inside of an operator no mode would see their reads."""
    weights = weights_of(dtype)
    logits, widths = logits_of(weights, 4), widths_of(weights, 4)
    noise = KEY, list(range(len(weights)))
    options = options_of(4, per_group=per_group)
    with NoReads():
        noisy, ranges, extremes = default.add_noise(weights, logits, *noise, None, *options)
        default.add_noise_backward(noisy, weights, logits, ranges, extremes, *noise, *options)
        default.fake_quantize(weights, widths, ranges, 4, per_group, torch.float16)


@pytest.mark.parametrize("per_group", [False, True])
def test_a_step_runs_on_a_device_without_values(per_group):
    weights = [each.to("meta").requires_grad_() for each in weights_of()]
    logits = [each.to("meta").requires_grad_() for each in logits_of(weights, 4)]
    widths, scope = [each.to("meta") for each in widths_of(weights, 4)], "group" if per_group else "tensor"
    key = functional.draw_key(weights[0])
    noisy, ranges = functional.add_noise(weights, logits, key, noise_options(per_group))
    grads = torch.autograd.grad(noisy, [*weights, *logits], [torch.ones_like(each) for each in noisy])
    assert [grad.shape for grad in grads] == [each.shape for each in (*weights, *logits)]
    rounded = functional.fake_quantize(weights, widths, ranges, group_size=4, range_scope=scope)
    assert all(each.is_meta and each.shape == weight.shape for each, weight in zip(rounded, weights, strict=True))
