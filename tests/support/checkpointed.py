"""Models whose blocks run in activation checkpoints."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        return x + self.dropout(torch.relu(self.inner(self.norm(x))))


class Residual(nn.Module):
    """A block without chance, which compiles as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


class ResidualNet(nn.Module):
    """Three of them: ``plain``, or each in a ``reentrant`` checkpoint or one that is not (any other mode)."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.mode = mode

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.mode == "plain" else checkpoint(block, x, use_reentrant=self.mode == "reentrant")
        return x


class Net(nn.Module):
    """Blocks that can be checkpointed, alone or in nested regions, and a head tied to the first layer."""

    def __init__(self, mode: str = "plain", reentrant: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16, bias=False)
        self.blocks = nn.ModuleList(Block(16) for _ in range(3))
        self.head = nn.Linear(16, 16, bias=False)
        self.head.weight = self.embed.weight
        self.mode, self.reentrant = mode, reentrant

    def region(self, function, x):
        return checkpoint(function, x, use_reentrant=self.reentrant)

    def run_blocks(self, x):
        for block in self.blocks:
            x = self.region(block, x) if self.mode != "plain" else block(x)
        return x

    def forward(self, x):
        x = self.embed(x)
        x = self.region(self.run_blocks, x) if self.mode == "nested" else self.run_blocks(x)
        return self.head(x)
