"""The picture of bits: what is drawn for a quantizer and for a file, and the word where matplotlib is missing."""

import sys

import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast import DiffQuantizer
from diffq_fast.watch import bits_plot
from support.models import mlp


@pytest.fixture
def drawn(monkeypatch):
    """The rows that were drawn last."""
    kept = []
    draw = bits_plot.draw_bits
    monkeypatch.setattr(bits_plot, "draw_bits", lambda rows, *rest: (kept.append(rows), draw(rows, *rest)))
    return kept


def test_plot_bits_draws_the_whole_bits_of_each_weight(tmp_path, drawn):
    quantizer = DiffQuantizer(mlp(), min_size=0.001, group_size=8, init_bits=6)
    with torch.no_grad():
        quantizer.learned_parameters()[0][:100] = 30.0  # all but 15 bits
    diffq_fast.plot_bits(quantizer, tmp_path / "bits.png")
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")
    first, second = drawn[0]
    assert (first.name, second.name) == ("0", "2")
    assert first.histogram == {6: 512 - 100, 15: 100}
    assert second.histogram == {6: 128}
    assert second.mean == pytest.approx(6)
    assert first.mean == pytest.approx((6 * 412 + 15 * 100) / 512)


@pytest.mark.parametrize("layers", [0, 1, 400])
def test_any_number_of_weights_is_drawn(tmp_path, layers):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
    diffq_fast.plot_bits(DiffQuantizer(model, min_size=0, exclude=["*bias"]), tmp_path / "bits.png")
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        diffq_fast.plot_bits(DiffQuantizer(mlp(), min_size=0.001), tmp_path / "bits.png")
