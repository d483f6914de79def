"""A model with one of everything that a packed file must carry, and a quantizer on it."""

from __future__ import annotations

import torch
from torch import nn

from diffq_fast.quantizers.diffq import DiffQuantizer


class Net(nn.Module):
    """Convolution, batch norm, tied linear layers with tied biases, and buffers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 10, 3)
        self.norm = nn.BatchNorm1d(10)
        self.first = nn.Linear(10, 10)
        self.second = nn.Linear(10, 10)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean(2)
        return self.second(torch.relu(self.first(x))) * self.gain


def trained(spread: float = 1.5, dtype: torch.dtype = torch.float32, **arguments) -> tuple[Net, DiffQuantizer]:
    """A model whose batch norm has seen data and whose logits are spread."""
    torch.manual_seed(3)
    model = Net().to(dtype)
    options = {"group_size": 8, "min_size": 80 * 4 / 2**20} | arguments
    quantizer = DiffQuantizer(model, **options)
    quantizer.no_optimizer()
    model(torch.randn(4, 3, 9, dtype=dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_diffq"):
                parameter.add_(spread * torch.randn_like(parameter))
    return model, quantizer


def widths_of(quantizer) -> dict[str, list[int]]:
    return {record.name: record.widths.tolist() for record in quantizer.export_weights()}
