"""Models with every layer that can keep its weights packed, and files of them by every quantizer."""

from __future__ import annotations

import torch
from torch import nn

import diffq_fast
from diffq_fast import LSQ, DiffQuantizer, RateQuantizer, UniformQuantizer
from diffq_fast.runtime.weight import PackedWeight


class Network(nn.Module):
    """Every layer that there is a packed one for."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.convolution = nn.Conv1d(32, 24, 3, padding=1)
        self.transposed = nn.ConvTranspose1d(24, 32, 3, padding=1)
        self.lstm = nn.LSTM(32, 24, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(48, 32, batch_first=True)
        self.rnn = nn.RNN(32, 32, batch_first=True)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.linear = nn.Linear(32, 27)
        self.head = nn.Linear(27, 50)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = self.transposed(torch.relu(self.convolution(x.mT))).mT
        for layer in (self.lstm, self.gru, self.rnn):
            x, _ = layer(x)
        x = self.attention(x, x, x)[0]
        return self.head(torch.relu(self.linear(x)))


class Images(nn.Module):
    """Convolutions of two and three dimensions."""

    def __init__(self):
        super().__init__()
        self.plane = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, groups=2))
        self.space = nn.Sequential(nn.Conv3d(8, 8, (1, 3, 3)), nn.ReLU(), nn.ConvTranspose3d(8, 4, (1, 3, 3)))

    def forward(self, images):
        return self.space(self.plane(images)[:, :, None])


QUANTIZERS = {
    "groups of 8": lambda model: DiffQuantizer(model, group_size=8, min_size=0.0001),
    "groups of 64, range per group": lambda model: DiffQuantizer(
        model, group_size=64, min_size=0.0001, range_scope="group"
    ),
    "one group": lambda model: DiffQuantizer(model, group_size=0, min_size=0.0001),
    "a scale": lambda model: LSQ(model, min_size=0.0001),
    "one width": lambda model: UniformQuantizer(model, bits=4, min_size=0.0001),
    "11 levels": lambda model: UniformQuantizer(model, bits=3.5, min_size=0.0001),
    "steps": lambda model: RateQuantizer(model, min_size=0.0001),
}
TOKENS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def saved(path, quantizer="groups of 8", coding="fixed", network=Network, dtype=None):
    torch.manual_seed(0)
    model = network() if dtype is None else network().to(dtype)
    attached = QUANTIZERS[quantizer](model)
    model.eval()
    if isinstance(attached, DiffQuantizer):
        for parameter in attached.learned_parameters():
            nn.init.normal_(parameter)
    diffq_fast.save(attached, path, coding=coding)
    return path


def both(path, network=Network, dtype=None):
    """The model with unpacked weights, and with packed ones."""
    made = [network() if dtype is None else network().to(dtype) for _ in range(2)]
    return diffq_fast.load(path, made[0]).eval(), diffq_fast.load(path, made[1], packed=True).eval()


def weights_of(model):
    return [module for module in model.modules() if isinstance(module, PackedWeight)]


def close(a, b, count):
    """To float32's rounding, of sums of so many products."""
    return torch.allclose(a, b, rtol=0, atol=2**-20 * count * float(a.abs().max()))
