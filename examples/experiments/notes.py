"""Audio without data sets: notes of known pitch, synthesised and rendered, and sentences of synthetic speakers."""

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly

from .chorales import QUARTERS_PER_SECOND, Note, folder_of, render

RATE = 16000  # samples per second
PROGRAMS = (0, 11, 16, 19, 21, 24, 40, 41, 42, 48, 52, 53, 56, 57, 60, 64, 65, 68, 70, 71, 73, 75)  # General MIDI
LOUDNESS = 0.03  # root of the mean square of a spoken sentence: -30 dB, what the speaker encoder was trained on


class Clip(NamedTuple):
    """float32 samples, and the pitch of each in Hz."""

    samples: np.ndarray
    pitch: np.ndarray


def synthesised(count: int, seconds: float, seed: int) -> list[Clip]:
    """Notes of 65 to 1047 Hz: harmonics that fall off, vibrato of up to half a semitone, noise of 1 %."""
    generator = np.random.default_rng(seed)
    return [_synthesised(generator, round(seconds * RATE)) for _ in range(count)]


def _synthesised(generator: np.random.Generator, count: int) -> Clip:
    time = np.arange(count) / RATE
    semitones = generator.uniform(36, 84) + generator.uniform(0, 0.5) * np.sin(
        2 * np.pi * (generator.uniform(4, 7) * time + generator.uniform())
    )
    pitch = 440 * 2 ** ((semitones - 69) / 12)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    fall, samples = generator.uniform(0.5, 2), np.zeros(count)
    for harmonic in range(1, 1 + int(RATE / 2 / pitch.max())):
        samples += harmonic**-fall * np.sin(harmonic * phase + generator.uniform(0, 2 * np.pi))
    samples = samples / np.abs(samples).max() + 0.01 * generator.standard_normal(count)
    return Clip(samples.astype(np.float32), pitch)


def rendered(count: int, seconds: float, seed: int) -> list[Clip]:
    """Single notes of the SoundFont's instruments, from 87 to 698 Hz, their onsets and what follows too."""
    generator = np.random.default_rng(seed)
    clips = []
    for _ in range(count):
        key, program = int(generator.integers(41, 78)), int(generator.choice(PROGRAMS))
        samples = render([Note(0, seconds * QUARTERS_PER_SECOND, key)], program, seconds, RATE)
        clips.append(Clip(samples, np.full(len(samples), 440 * 2 ** ((key - 69) / 12))))
    return clips


def spoken(sentences: Iterable[str], voices: Iterable[str]) -> list[np.ndarray]:
    """Each sentence by its voice of eSpeak NG, mono float32 at RATE, all equally loud."""
    speaker = _Speaker()
    return [speaker.say(sentence, voice) for sentence, voice in zip(sentences, voices, strict=True)]


class _Speaker:
    """eSpeak NG from the package espeakng-loader, by its C interface, which hands samples to a function."""

    # AUDIO_OUTPUT_SYNCHRONOUS (without a thread of the library's, for which a second speaker waits for ever),
    # POS_CHARACTER, espeakCHARS_UTF8
    SYNCHRONOUS, CHARACTERS, UTF8 = 2, 1, 1

    def __init__(self) -> None:
        folder = folder_of("espeakng_loader")
        self._library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        data = str(folder / "espeak-ng-data").encode()
        self._rate = int(self._library.espeak_Initialize(self.SYNCHRONOUS, 0, ctypes.c_char_p(data), 0))
        self._pieces: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._taken = kind(self._take)  # kept: the library only has its address
        self._library.espeak_SetSynthCallback(self._taken)

    def _take(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, sentence: str, voice: str) -> np.ndarray:
        self._pieces.clear()
        if self._library.espeak_SetVoiceByName(ctypes.c_char_p(voice.encode())) != 0:
            raise ValueError(f"spoken: eSpeak NG has no voice {voice!r}")
        text = sentence.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, self.CHARACTERS, 0, self.UTF8, None, None)
        samples = resample_poly(np.concatenate(self._pieces) / 32768, RATE, self._rate)
        return (samples * LOUDNESS / np.sqrt(np.mean(samples**2))).astype(np.float32)
