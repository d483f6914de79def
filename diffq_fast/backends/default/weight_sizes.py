"""What weights take in a file with learned bits, and the gradient."""

from __future__ import annotations

import torch

from ..._ops import range_dtype
from ...reference import weight_sizes as reference
from .registration import kernel


@kernel
def weight_sizes(logits, counts, *options):
    sizes = [reference.weight_size(logit, count, *options) for logit, count in zip(logits, counts, strict=True)]
    return torch.stack([size.to(range_dtype(logits)) for size in sizes])


@kernel
def weight_sizes_backward(grads, logits, counts, *options):
    return [
        reference.weight_size_backward(grad, logit, count, *options)
        for grad, logit, count in zip(grads.unbind(), logits, counts, strict=True)
    ]
