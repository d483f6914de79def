"""Images: 2,500 training and 2,500 held-out real MNIST digits, a vision transformer and a residual network."""

from collections.abc import Iterator

import mnist
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .resnet import ResNet
from .task import Recipe, Task
from .vit import VisionTransformer

VALIDATION_PER_CLASS = 50


class Images(Task):
    """What both networks have in common: digits, augmentation and split are those of the demo."""

    metric = "accuracy, %"
    higher_is_better = True
    aim = 0.3
    difference_unit = "points"

    def load(self, validation: bool = False) -> None:
        self.train, self.held_out = mnist.split(mnist.load_digits())
        if validation:
            self.train, self.held_out = mnist.split(self.train, VALIDATION_PER_CLASS)

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        while True:
            order = torch.randperm(len(self.train.labels), generator=generator)
            for chosen in order.split(self.recipe.batch):
                yield mnist.augment(self.train.images[chosen], generator), self.train.labels[chosen]

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(network(images), labels)

    def scores(self, network: nn.Module) -> np.ndarray:
        """1 where the label is right, else 0."""
        return (mnist.predict(network, self.held_out) == self.held_out.labels).int().numpy()

    def quality(self, scores: np.ndarray) -> float:
        return 100 * float(scores.mean())

    def differences(self, scores: np.ndarray, plain: np.ndarray) -> np.ndarray:
        return 100.0 * (scores - plain)


class ImagesVit(Images):
    """12 layers of width 32 on 16 tokens: 111,818 parameters."""

    name = "images_vit"
    recipe = Recipe(
        start_steps=2500,
        steps=300,
        batch=32,
        start_rate=2e-3,
        rate=1e-3,
        weight_decay=1e-2,
        min_size=0.0005,
        bits_rate=5e-2,
        penalties=(1.0, 4.0, 16.0, 60.0),
        coded_times=(8, 12, 16),
    )

    def build(self) -> nn.Module:
        return VisionTransformer(layers=12, width=32, heads=4, hidden=64, classes=mnist.CLASSES)


class ImagesResnet(Images):
    """Three stages of two blocks: 174,970 parameters."""

    name = "images_resnet"
    recipe = Recipe(
        start_steps=1000,
        steps=400,
        batch=50,
        start_rate=3e-3,
        rate=1e-3,
        weight_decay=1e-2,
        min_size=0.0005,
        bits_rate=5e-2,
        penalties=(0.5, 2.0, 8.0, 30.0),
        coded_times=(16, 24, 32),
        coded=("rate", "packed", "taught packed"),
    )

    def build(self) -> nn.Module:
        return ResNet(channels=(16, 32, 64), blocks=2, classes=mnist.CLASSES)
