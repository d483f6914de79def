"""Models that hold the tensors of the golden cases under the names that their files use."""

from torch import nn


class Tied(nn.Module):
    """Two linear layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 32)
        self.b = nn.Linear(32, 32)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))


GOLDEN_MODELS = {
    "diffq_linear_g8": lambda: nn.Linear(64, 48),
    "diffq_linear_g1": lambda: nn.Linear(33, 17, bias=False),
    "diffq_conv_g16_minbits3": lambda: nn.Conv2d(16, 24, 3, bias=False),
    "diffq_noiseparam_g4": lambda: nn.Linear(40, 20, bias=False),
    "diffq_extra_bits": lambda: nn.Linear(40, 20, bias=False),
    "diffq_lstm_g8": lambda: nn.LSTM(16, 32, num_layers=2),
    "diffq_float16_others": mlp,
    "diffq_exclude_others": mlp,
    "diffq_tied": Tied,
    "diffq_unpacked": lambda: nn.Linear(64, 48),
    "diffq_torch_pack": lambda: nn.Linear(64, 48),
    "uniform_8": lambda: nn.Linear(64, 48),
    "uniform_3": lambda: nn.Linear(64, 48),
    "uniform_15_f16": lambda: nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4)),
    "lsq_4": lambda: nn.Linear(64, 48),
    "lsq_8_torch_pack": lambda: nn.Linear(64, 48),
}
