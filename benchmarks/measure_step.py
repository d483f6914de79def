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
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training_models import Encoder, ManyLayers, encoder_step

import diffq_fast
from diffq_fast import functional
from diffq_fast.reference import weight_sizes

SETTINGS = {"uniform g=64": (64, "uniform"), "uniform g=8": (8, "uniform"), "gaussian g=8": (8, "gaussian")}


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
            parameters = list(model.parameters())

            def run(model=model, x=x, parameters=parameters) -> None:
                for parameter in parameters:
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
    steps = encoder_steps(quick)
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU]):  # the first one of a process takes several times as long
            steps["plain"]()
    for name, step in steps.items():
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
