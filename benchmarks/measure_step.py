"""Measures whole training steps: T1, T2 and T4. Writes ``results/training_step_<machine>.json``.

python benchmarks/measure_step.py [--quick] [--rows step,size,small,profile] [--output NAME]

The model has the shape of MiniLM: six layers of 384, a vocabulary of 30,522, batches of 16 sentences of 64 tokens,
fused AdamW. Plain torch, this package and, where it is installed, diffq as it comes are timed in turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import torch
from harness import RESULTS, Variant, machine_name, store, time_variants
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import diffq_fast
from diffq_fast import functional
from diffq_fast.reference import weight_sizes

WIDTH, LAYERS, HEADS, VOCABULARY, BATCH, LENGTH = 384, 6, 12, 30522, 16, 64
PENALTY = 1e-3
SETTINGS = {"uniform g=64": (64, "uniform"), "uniform g=8": (8, "uniform"), "gaussian g=8": (8, "gaussian")}


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


def peer() -> Any:
    """diffq, or None."""
    if importlib.util.find_spec("diffq") is None:
        return None
    import diffq

    return diffq


def encoder_steps(quick: bool) -> dict[str, Callable[[], Tensor]]:
    """A step of each variant, plain first."""
    steps = {"plain": encoder_step(quick, None, None)}
    for name, (group_size, noise) in SETTINGS.items():
        steps[name] = encoder_step(quick, diffq_fast, {"group_size": group_size, "noise": noise})
    if peer() is not None:
        steps["diffq gaussian g=8"] = encoder_step(quick, peer(), {"group_size": 8})
    return steps


def measure_step(quick: bool, seconds: float) -> dict[str, Any]:
    """T1: the step over that of the plain model."""
    steps = encoder_steps(quick)
    losses = [float(step()) for step in steps.values()]
    assert all(abs(loss - losses[0]) < 0.1 for loss in losses), losses
    timed = time_variants([Variant(name, step) for name, step in steps.items()], seconds, least=5)
    for variant in timed.values():
        for kind in ("median", "cpu", "least"):
            variant[f"{kind} over plain"] = variant[kind] / timed["plain"][kind]
    return timed


def logits_of(quick: bool) -> tuple[list[Tensor], list[int]]:
    """Those of the model's weights in groups of 8, and the counts of the weights."""
    model = Encoder(1, 1000) if quick else Encoder()
    counts = [each.numel() for each in model.parameters() if each.numel() > 2621]
    torch.manual_seed(0)
    return [torch.randn(-(-count // 8)).requires_grad_() for count in counts], counts


def measure_size(quick: bool, seconds: float) -> dict[str, Any]:
    """T2: the size at g = 8 with its backward: the operator, its formula in plain torch, and diffq's."""
    logits, counts = logits_of(quick)
    rule = 2.0, 15.0, "bits"

    def run(size: Callable[[], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(size(), logits))

    def operator() -> Tensor:
        return functional.weight_sizes(logits, counts, functional.NoiseOptions(8)).sum()

    def formula() -> Tensor:
        sizes = [
            weight_sizes.weight_size(each, count, 8, *rule, 0.0) for each, count in zip(logits, counts, strict=True)
        ]
        return torch.stack(sizes).sum()

    def check() -> None:
        torch.testing.assert_close(operator(), formula(), rtol=1e-5, atol=0)
        torch.testing.assert_close(run(operator), run(formula), rtol=1e-4, atol=1e-6)

    bytes_ = 12 * sum(each.numel() for each in logits)
    variants = [
        Variant("forward", operator, check, bytes_ // 3),
        Variant("forward and backward", lambda: run(operator), bytes=bytes_),
        Variant("plain torch", lambda: run(formula), bytes=bytes_),
    ]
    for name, package in {"diffq_fast": diffq_fast, "diffq": peer()}.items():
        if package is not None:
            model = Encoder(1, 1000) if quick else Encoder()
            quantizer = package.DiffQuantizer(model, group_size=8)
            learned = [each for each_name, each in model.named_parameters() if each_name.endswith("_diffq")]

            def of_quantizer(quantizer=quantizer, learned=learned) -> Any:
                return torch.autograd.grad(quantizer.model_size(), learned)

            variants.append(Variant(f"model_size of {name}", of_quantizer))
    return time_variants(variants, seconds)


def measure_small(quick: bool, seconds: float) -> dict[str, Any]:
    """T4: forward and backward of a model of 300 small weights, on one thread; with and without a quantizer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    variants = []
    for name, package in {"plain": None, "diffq_fast": diffq_fast, "diffq": peer()}.items():
        if name == "plain" or package is not None:
            torch.manual_seed(0)
            model, x = ManyLayers(30 if quick else 300), torch.randn(4, 16)
            if package is not None:
                quantizer = package.DiffQuantizer(model, group_size=8, min_size=0, noise="uniform")
                quantizer.setup_optimizer(torch.optim.SGD(list(model.parameters())[:1], lr=0.1))
            model.train()

            def run(model=model, x=x) -> None:
                for parameter in model.parameters():
                    parameter.grad = None
                model(x).sum().backward()

            variants.append(Variant(name, run))
    timed = time_variants(variants, seconds, least=20)
    torch.set_num_threads(threads)
    for each in timed.values():
        each["milliseconds more than plain"] = 1e3 * (each["median"] - timed["plain"]["median"])
    return timed


def measure_profile(quick: bool, seconds: float) -> dict[str, dict[str, float]]:
    """Where the time of a step goes: milliseconds of a step in each of torch's operators, the largest first."""
    found = {}
    for name, step in encoder_steps(quick).items():
        step()
        rounds = max(2, int(seconds))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(rounds):
                step()
        rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
        found[name] = {row.key: round(row.self_cpu_time_total / 1e3 / rounds, 3) for row in rows[:16]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: to see that everything runs")
    parser.add_argument("--rows", default="step,size,small,profile")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each variant")
    parser.add_argument("--output", help="name of the file under results")
    arguments = parser.parse_args()
    seconds = 0.1 if arguments.quick else arguments.seconds
    measures = {"step": measure_step, "size": measure_size, "small": measure_small, "profile": measure_profile}
    name = arguments.output or f"training_step_{machine_name()}{'_quick' if arguments.quick else ''}"
    path = RESULTS / f"{name}.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}  # other rows stay
    for row in arguments.rows.split(","):
        results[row] = measures[row](arguments.quick, seconds)
        print(f"written: {store(name, results)}", flush=True)


if __name__ == "__main__":
    main()
