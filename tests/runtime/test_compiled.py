"""Whole packed models under ``torch.compile``, which keeps within its limit of recompilations, and ``torch.export``."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import diffq_fast
from support.packed_layers import TOKENS, Network, both, close, saved

LAYERS = 30


class Deep(nn.Module):
    """Linear layers, each of another shape."""

    def __init__(self):
        super().__init__()
        sizes = [16 + 8 * place for place in range(LAYERS + 1)]
        self.layers = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes)))

    def forward(self, vectors):
        return self.layers(vectors)


class Recurrent(nn.Module):
    """Layers at which the compiler leaves the graph, each with four weights of other shapes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(16 + 8 * place, 24 + 8 * place, batch_first=True) for place in range(8))

    def forward(self, vectors):
        for layer in self.layers:
            vectors = layer(vectors)[0]
        return vectors


class Mixed(nn.Module):
    """A convolution, an attention and a linear layer again and again, each of another shape."""

    def __init__(self):
        super().__init__()
        sizes = [16 + 8 * place for place in range(LAYERS // 3 + 1)]
        self.convolutions = nn.ModuleList(nn.Conv1d(size, size, 3, padding=1) for size in sizes[:-1])
        self.attentions = nn.ModuleList(nn.MultiheadAttention(size, 4, batch_first=True) for size in sizes[:-1])
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def forward(self, vectors):
        for convolution, attention, linear in zip(self.convolutions, self.attentions, self.linears, strict=True):
            vectors = convolution(vectors.mT).mT
            vectors = linear(vectors + attention(vectors, vectors, vectors)[0])
        return vectors


@pytest.fixture(autouse=True)
def _limit_is_an_error():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


NETWORKS = {
    "linear": (Deep, lambda: torch.randn(3, 16)),
    "recurrent": (Recurrent, lambda: torch.randn(2, 5, 16)),
    "mixed": (Mixed, lambda: torch.randn(2, 5, 16)),
    "all": (Network, lambda: TOKENS),
}


@pytest.mark.parametrize("quantizer", ["groups of 8", "steps"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_model_stays_below_the_limit_of_recompilations(tmp_path, name, quantizer):
    network, inputs = NETWORKS[name]
    _, packed = both(saved(tmp_path / "file", quantizer, network=network), network)
    given = inputs()
    with torch.no_grad():
        found = torch.compile(packed, backend="aot_eager")(given)
        assert close(found, packed(given), 256)
    if name in ("linear", "mixed"):
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_model_is_exported(tmp_path, name):
    network, inputs = NETWORKS[name]
    model = diffq_fast.load(saved(tmp_path / "file", network=network), network(), packed=True).eval()
    given = inputs()
    with torch.no_grad():
        program = torch.export.export(model, (given,))
        assert close(program.module()(given), model(given), 256)
    operators = [str(node.target) for node in program.graph.nodes if "diffq_fast" in str(node.target)]
    linear = sum(type(each).__name__ == "PackedLinear" for each in model.modules())
    assert operators.count("diffq_fast.packed_linear.default") == linear > 0 or name == "recurrent"
