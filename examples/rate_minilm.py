"""RateQuantizer on MiniLM: distilled from its own float model to a number of bits a weight, all told.

    pip install -e '.[examples]'
    python examples/rate_minilm.py                     # 2 bits, 240 steps of 32 sentences
    python examples/rate_minilm.py --bits 1.5 --steps 1000

A start goes on where the last one ended (build/rate_minilm/). Quality is Spearman's correlation of all pairwise
similarities of 800 held-out sentences with the float model's. Results: benchmarks/results/rate_minilm.json.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from experiments import minilm_words as minilm
from experiments.store import RESULTS, Store
from torch import Tensor, nn

from diffq_fast import RateQuantizer, SizeTarget

BATCH, WEIGHTS_LR, STEPS_LR = 32, 1e-4, 0.02
CHECKPOINT = 20  # steps between two


class Recipe:
    """What every run has in common, for the stored file."""

    def stored(self) -> dict[str, Any]:
        return {"batch": BATCH, "weights_lr": WEIGHTS_LR, "steps_lr": STEPS_LR, "sentences": 800}


class Run:
    """One training, from where it was left."""

    def __init__(self, bits: float, steps: int, seed: int) -> None:
        self.steps, self.seed = steps, seed
        torch.manual_seed(seed)
        self.teacher, self.model = minilm.pretrained(), minilm.pretrained().train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), WEIGHTS_LR)
        self.quantizer = RateQuantizer(self.model)
        self.quantizer.setup_optimizer(self.optimizer, lr=STEPS_LR)
        self.target = SizeTarget(self.quantizer, bits_per_weight=bits, total_steps=steps)
        self.path = Path(f"build/rate_minilm/{bits:g}_{steps}_{seed}.pt")
        self.seconds = 0.0
        words = minilm.Words()
        self.lines, self.held_out = ([words(line) for line in lines] for lines in minilm.sentences())
        if self.path.exists():
            self._resume(torch.load(self.path))

    def _resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.target.load_state_dict(state["target"])
        torch.set_rng_state(state["generator"])
        self.seconds = state["seconds"]

    def _keep(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"target": self.target.state_dict(), "generator": torch.get_rng_state(), "seconds": self.seconds}
        torch.save(state, self.path)

    def train(self) -> None:
        while self.target.steps < self.steps:
            begin, step = time.perf_counter(), self.target.steps
            for group, rate in zip(self.optimizer.param_groups, (WEIGHTS_LR, STEPS_LR), strict=True):
                group["lr"] = rate * self._rate(step)
            loss = self._loss(step)
            self.optimizer.zero_grad()
            (loss + self.target.penalty()).backward()
            self.optimizer.step()
            self.target.step()
            self.seconds += time.perf_counter() - begin
            if self.target.steps % CHECKPOINT == 0:
                self._keep()
                size = self.quantizer.model_size().item()
                print(f"step {self.target.steps}: loss {loss:.5f}, {size:.3f} MB, {self.seconds:.0f} s", flush=True)

    def _rate(self, step: int) -> float:
        """Constant for the first half, then a cosine to zero."""
        share = max(0.0, 2 * step / self.steps - 1)
        return float(0.5 + 0.5 * torch.tensor(share * torch.pi).cos())

    def _loss(self, step: int) -> Tensor:
        chosen = random.Random(self.seed * 1_000_003 + step).sample(self.lines, BATCH)
        tokens = minilm.batch(chosen)
        with torch.no_grad():
            wanted = self.teacher(tokens)
        found = self.model(tokens)
        return (found - wanted).square().sum(1).mean() + (found @ found.T - wanted @ wanted.T).square().mean()

    def row(self) -> dict[str, Any]:
        self.model.eval()
        expected = minilm.embeddings(self.teacher, self.held_out)
        quality = minilm.spearman(minilm.embeddings(self.model, self.held_out), expected)
        count = sum(param.numel() for param in self.teacher.parameters())
        true, estimate = self.quantizer.true_model_size(), self.quantizer.model_size().item()
        return {
            "label": f"rate {self.target.mb * 2**23 / count:g} bits {self.steps} steps",
            "seed": self.seed,
            "spearman": quality,
            "mb": true,
            "estimated_mb": estimate,
            "target_mb": self.target.mb,
            "bits_per_weight": true * 2**23 / count,
            "seconds": self.seconds,
            "seconds_of_size": seconds_of_size(self.quantizer, self.model),
        }


def seconds_of_size(quantizer: RateQuantizer, model: nn.Module) -> float:
    """Of one ``model_size()`` and its backward, the best of five."""
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        quantizer.model_size().backward()
        taken.append(time.perf_counter() - begin)
    model.zero_grad()
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=2.0, help="a weight, all told, parameters in float32 included")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "rate_minilm.json")
    given = parser.parse_args()
    run = Run(given.bits, given.steps, given.seed)
    run.train()
    row = run.row()
    Store(given.output, Recipe()).add([row])
    print(row)


if __name__ == "__main__":
    main()
