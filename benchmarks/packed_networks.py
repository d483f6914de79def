"""Pretrained networks for ``measure_packed_models.py`` and ``measure_packed_memory.py``, and real inputs of each.

The networks are those of ``examples/``, packed after training at 4 bits a weight as docs/post_training.md recommends,
with second moments over other inputs than those that they are given here. Moments are kept in ``build/``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import diffq_fast

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from experiments import crepe, minilm, voice_encoder

BITS, TOKENS, MOST = 4.0, 32, 32  # of a weight; of a sentence; inputs
MOMENTS = Path("build/packed_networks")
Inputs = tuple[Tensor, ...]


class Network(NamedTuple):
    """pretrained, and empty: of its shape, whose layers are linear (True), or torch's convolutions. inputs: 32 real
    ones. moments: a calibration file, by the names of the weights."""

    pretrained: Callable[[], nn.Module]
    empty: Callable[[bool], nn.Module]
    inputs: Callable[[], Inputs]
    moments: Callable[[], Path]


def pack(name: str, folder: Path) -> float:
    """Writes float.pt, as ``torch.save`` does, float.safetensors and packed into the folder; bits of a weight."""
    from safetensors.torch import save_file

    network = NETWORKS[name]
    state = {key: value.contiguous() for key, value in network.pretrained().state_dict().items()}
    torch.save(state, folder / "float.pt")
    torch.save(network.inputs(), folder / "inputs.pt")
    save_file(state, folder / "float.safetensors")
    given = folder / "float.safetensors", folder / "packed"
    return diffq_fast.pack_checkpoint(*given, bits_per_weight=BITS, calibration=network.moments()).bits_per_weight


def inputs_of(folder: Path, batch: int) -> Inputs:
    return tuple(each[:batch].clone() for each in torch.load(folder / "inputs.pt", weights_only=True))


def _crepe(linear: bool) -> nn.Module:
    model = crepe.Crepe("tiny").eval()
    model.as_linear = linear
    return model


def _sentences() -> Inputs:
    """Their first 32 tokens, of those that have so many."""
    from experiments.sentences import batches, sentences

    ((tokens, mask),) = batches(sentences()[:400], 400)
    long = mask[:, :TOKENS].all(1)
    return tokens[long][:MOST, :TOKENS], mask[long][:MOST, :TOKENS]


def _frames() -> Inputs:
    import audio_checkpoints as audio
    from experiments.notes import rendered, synthesised

    clips = [kind(audio.NOTES, audio.SECONDS, audio.JUDGED_SEED) for kind in (synthesised, rendered)]
    frames = torch.cat([crepe.frames_of(clip, audio.HOP)[0] for clip in clips[0] + clips[1]])
    return (frames[:: len(frames) // MOST][:MOST],)


def _speech() -> Inputs:
    import audio_checkpoints as audio

    clips, _ = audio.speech(audio.JUDGED_VOICES, 0)
    return (torch.cat([voice_encoder.parts_of(clip)[:1] for clip in clips])[:MOST],)


def _moments_of_sentences() -> Path:
    import post_training

    settings = post_training.Settings(quick=False)
    texts = post_training.sentences()[settings.judged :][: settings.calibrated]
    post_training.FOLDER.mkdir(parents=True, exist_ok=True)
    return post_training.calibration_file(settings, texts)


def _moments_of_frames() -> Path:
    import audio_checkpoints as audio

    def made() -> dict[str, Tensor]:
        return diffq_fast.calibrate(crepe.of_convolutions(crepe.pretrained("tiny")), audio.pitch_batches())

    return _kept("crepe_tiny", made)


def _moments_of_speech() -> Path:
    import audio_checkpoints as audio

    def made() -> dict[str, Tensor]:
        return diffq_fast.calibrate(voice_encoder.pretrained(), audio.speaker_batches())

    return _kept("resemblyzer", made)


def _kept(name: str, make: Callable[[], dict[str, Tensor]]) -> Path:
    from diffq_fast.post_training.calibration import save_calibration

    path = MOMENTS / f"{name}.safetensors"
    if not path.exists():
        MOMENTS.mkdir(parents=True, exist_ok=True)
        save_calibration(path, make())
    return path


NETWORKS = {
    "MiniLM": Network(minilm.pretrained, lambda linear: minilm.MiniLM().eval(), _sentences, _moments_of_sentences),
    "CREPE tiny": Network(lambda: crepe.pretrained("tiny"), _crepe, _frames, _moments_of_frames),
    "Resemblyzer": Network(
        voice_encoder.pretrained,
        lambda linear: voice_encoder.VoiceEncoder().eval(),
        _speech,
        _moments_of_speech,
    ),
}
