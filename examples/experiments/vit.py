"""A small vision transformer and the block it shares with the text transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added to its input; [batch, tokens, width]."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm = nn.LayerNorm(width)
        self.to_heads = nn.Linear(width, 3 * width)
        self.from_heads = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        split = self.to_heads(self.attention_norm(tokens)).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        tokens = tokens + self.from_heads(attended.transpose(1, 2).reshape(batch, count, width))
        return tokens + self.narrow(F.relu(self.widen(self.feed_forward_norm(tokens))))


class VisionTransformer(nn.Module):
    """Grey images [batch, 1, 28, 28] to logits [batch, classes], through 16 tokens: a convolution halves the picture,
    a second one makes a token of every 4 x 4 places."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width // 2, kernel_size=3, stride=2, padding=1)
        self.patches = nn.Conv2d(width // 2, width, kernel_size=4, stride=4, padding=1)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(F.relu(self.stem(images))).flatten(2).transpose(1, 2) + self.places
        return self.out(self.norm(self.blocks(tokens)).mean(dim=1))
