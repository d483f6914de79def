"""A small network in the manner of Demucs: a U-Net on the waveform, with gated units and a recurrent middle."""

from torch import Tensor, nn

KERNEL = 8
STRIDE = 4


class Separator(nn.Module):
    """Mixtures [batch, samples] to stems [batch, stems, samples]; samples must be a multiple of STRIDE**depth."""

    def __init__(self, stems: int, channels: int, depth: int) -> None:
        super().__init__()
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            inputs, inner = (channels * 2 ** (level - 1) if level else 1), channels * 2**level
            outputs = inputs if level else stems
            down = [nn.Conv1d(inputs, inner, KERNEL, STRIDE, padding=2), nn.ReLU(), nn.Conv1d(inner, 2 * inner, 1)]
            up = [nn.Conv1d(inner, 2 * inner, 3, padding=1), nn.GLU(dim=1)]
            up += [nn.ConvTranspose1d(inner, outputs, KERNEL, STRIDE, padding=2)]
            self.encoders.append(nn.Sequential(*down, nn.GLU(dim=1)))
            self.decoders.insert(0, nn.Sequential(*up, nn.ReLU() if level else nn.Identity()))
        self.recurrent = nn.LSTM(inner, inner // 2, bidirectional=True, batch_first=True)

    def forward(self, mixtures: Tensor) -> Tensor:
        size = mixtures.square().mean(dim=1).sqrt().add(1e-3)[:, None, None]
        inner, skipped = mixtures[:, None] / size, []
        for encoder in self.encoders:
            inner = encoder(inner)
            skipped.append(inner)
        inner = inner + self.recurrent(inner.transpose(1, 2))[0].transpose(1, 2)
        for decoder in self.decoders:
            inner = decoder(inner + skipped.pop())
        return inner * size
