"""The models whose training steps are timed, with any version of this package or with diffq."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, VOCABULARY, BATCH, LENGTH = 384, 6, 12, 30522, 16, 64
PENALTY = 1e-3


class Encoder(nn.Module):
    """A sentence encoder of MiniLM's shape: 22.7 million parameters."""

    def __init__(self, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(512, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        return self.layers(self.norm(self.words(tokens) + self.places(places))).mean(1)


class ManyLayers(nn.Module):
    """300 weights of 256 elements, whose kernels take no time to speak of."""

    def __init__(self, count: int = 300) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def stepper(model: nn.Module, inputs: Tensor, package: Any, options: dict[str, Any] | None) -> Callable[[], Tensor]:
    """A function that trains for one step; without ``options`` the model is plain."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    quantizer = None
    if options is not None:
        quantizer = package.DiffQuantizer(model, **options)
        quantizer.setup_optimizer(optimizer)
    model.train()

    def step() -> Tensor:
        loss = model(inputs).square().mean()
        if quantizer is not None:
            loss = loss + PENALTY * quantizer.model_size()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def encoder_step(quick: bool, package: Any, options: dict[str, Any] | None) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    model = Encoder(1, 1000) if quick else Encoder()
    tokens = torch.randint(0, 1000 if quick else VOCABULARY, (BATCH, LENGTH))
    return stepper(model, tokens, package, options)
