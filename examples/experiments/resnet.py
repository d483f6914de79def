"""A small residual network."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two convolutions, added to their input or, where the shape changes, to a projection of it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.project: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.project = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(images)))))
        return F.relu(inner + self.project(images))


class ResNet(nn.Module):
    """Grey images [batch, 1, pixels, pixels] to logits [batch, classes]; every stage but the first halves the size."""

    def __init__(self, channels: tuple[int, ...], blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels[0], 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        stages: list[nn.Module] = []
        for inputs, outputs in pairwise((channels[0], *channels)):
            stages.append(Residual(inputs, outputs, stride=1 if not stages else 2))
            stages += [Residual(outputs, outputs, stride=1) for _ in range(blocks - 1)]
        self.stages = nn.Sequential(*stages)
        self.out = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(F.relu(self.norm(self.stem(images))))
        return self.out(features.mean(dim=(2, 3)))
