"""A training step of a transformer with and without DiffQ: G8. ``python measure_gpu_transformer.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from gpu_timing import interleaved, peak_bytes, print_rows, row, store
from torch import Tensor, nn

from diffq_fast import DiffQuantizer

WIDTH, LAYERS, HEADS, VOCABULARY = 1024, 12, 16, 8192
BATCH, LENGTH = 8, 1024


class Transformer(nn.Module):
    """About 167 million parameters, of which DiffQ takes the matrices."""

    def __init__(self, width: int, layers: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens)))


def stepper(
    device: str,
    quantized: bool,
    sizes: tuple[int, int, int, int],
    batch: tuple[int, int],
    noisy_dtype: str | None = None,
) -> Any:
    """A function that trains for one step and returns its loss, and the number of parameters."""
    torch.manual_seed(0)
    model = Transformer(*sizes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    count = sum(parameter.numel() for parameter in model.parameters())
    quantizer = None
    if quantized:
        quantizer = DiffQuantizer(model, group_size=8, noise="uniform", noisy_dtype=noisy_dtype)
        quantizer.setup_optimizer(optimizer)
    tokens = torch.randint(0, sizes[-1], batch, device=device)

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = model(tokens)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        if quantizer is not None:
            loss = loss + 1e-3 * quantizer.model_size()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, count


def measure() -> list[dict[str, Any]]:
    sizes, batch = (WIDTH, LAYERS, HEADS, VOCABULARY), (BATCH, LENGTH)
    plain, count = stepper("cuda", False, sizes, batch)
    noisy, _ = stepper("cuda", True, sizes, batch, "auto")
    cast, _ = stepper("cuda", True, sizes, batch)
    torch.manual_seed(1)
    lowered = noisy()
    torch.manual_seed(1)
    torch.testing.assert_close(lowered, cast(), rtol=1e-3, atol=0)
    variants = {"plain": plain, "DiffQ": noisy, "DiffQ, cast by autocast": cast}
    times = interleaved(variants, rounds=15)
    extra = {name: 100 * (times[name] / times["plain"] - 1) for name in variants}
    megabytes = {name: peak_bytes(step) / 2**20 for name, step in variants.items()}
    what = f"step of {count / 1e6:.0f} M parameters, {BATCH * LENGTH} tokens, over plain, %"
    rows = [row("G8", what, extra["DiffQ"], "<= 2", extra["DiffQ"] <= 2, milliseconds=times)]
    rows.append(
        row("", "the same, float32 noisy weights that autocast casts", extra["DiffQ, cast by autocast"], "", None)
    )
    rows.append(row("", "peak MB of the step beyond its state: DiffQ", megabytes["DiffQ"], "", None, **megabytes))
    return rows


def main() -> None:
    rows = measure()
    print_rows(rows)
    store(rows, Path(sys.argv[1]) / "gpu_transformer.json")


if __name__ == "__main__":
    main()
