"""Noisy weights: the oracle against diffq 0.2.4, numpy and decoders written apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffq_fast.reference.sizes import group_count
from support.oracle import assert_close_to_the_largest, backward_of, noisy_of


def test_noisy_weight_equals_diffq_bit_for_bit(noise_case):
    tensors, group_size, options = noise_case
    noisy = noisy_of(tensors["weight"], tensors["logit"], tensors["z"], group_size, **options)
    if options["param"] == "bits" or torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert torch.equal(noisy, tensors["noisy"])
    else:  # the file was drawn with AVX-512, and torch's exponential has another last bit with other instructions
        assert_close_to_the_largest(noisy, tensors["noisy"], tolerance=2**-23)
    assert not torch.equal(noisy, tensors["weight"])


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 4, 100])
def test_noisy_weight_is_the_formula_in_float32(group_size, per_group):
    torch.manual_seed(0)
    weight, z = torch.randn(5, 2), torch.randn(10)
    groups = group_count(10, group_size)
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
