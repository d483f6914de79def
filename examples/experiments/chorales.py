"""Bach's chorales as audio: read from the scores that music21 carries, rendered voice by voice into exact stems.

Scores are read from the package's files, the SoundFont is the one inside pretty_midi; neither package is imported.
"""

import zipfile
from importlib import util
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

VOICES = {"violin": 40, "clarinet": 71, "French horn": 60, "bassoon": 70}  # General MIDI programs, soprano first
RATE = 8000  # samples per second
OVERSAMPLING = 4  # the SoundFont is rendered at four times the rate, then filtered
QUARTERS_PER_SECOND = 80 / 60
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


class Note(NamedTuple):
    """start, end in quarters; key is MIDI's."""

    start: float
    end: float
    key: int


def folder_of(package: str) -> Path:
    """Where an installed package lies, without importing it."""
    found = util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"this experiment needs {package}: pip install '.[examples]'; with --no-deps, what the example's head names"
        )
    return Path(found.origin).parent


def scores() -> list[Path]:
    """All compressed scores of Bach, by name."""
    return sorted(path for path in (folder_of("music21") / "corpus" / "bach").glob("*.mxl") if path.is_file())


def read_voices(path: Path) -> list[list[Note]]:
    """The notes of each part of a compressed MusicXML score."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("xml") and not name.startswith("META-INF")]
        root = ElementTree.fromstring(archive.read(names[0]))
    return [read_part(part) for part in root.iter("part")]


def read_part(part: ElementTree.Element) -> list[Note]:
    """Notes in the order of their starts; tied ones are one note. Repeats are played once."""
    notes: list[Note] = []
    place, divisions = 0.0, 1.0
    for element in part.iter():
        if element.tag == "divisions":
            divisions = float(element.text or 1)
        if element.tag not in ("note", "backup", "forward"):
            continue
        length = float(element.findtext("duration", "0")) / divisions
        if element.tag == "backup":
            place -= length
            continue
        if element.tag == "note" and element.find("pitch") is not None and length > 0:
            start = place if element.find("chord") is None else notes[-1].start
            add_note(notes, Note(start, start + length, key_of(element)), element)
        if element.find("chord") is None:
            place += length
    return notes


def add_note(notes: list[Note], note: Note, element: ElementTree.Element) -> None:
    """Append, or make the last note longer where this one is tied to it."""
    ties = {tie.get("type") for tie in element.iter("tie")}
    if "stop" in ties and notes and notes[-1].key == note.key:
        notes[-1] = notes[-1]._replace(end=note.end)
    else:
        notes.append(note)


def key_of(element: ElementTree.Element) -> int:
    octave, alter = int(element.findtext("pitch/octave", "4")), float(element.findtext("pitch/alter", "0"))
    return 12 * (octave + 1) + SEMITONES[element.findtext("pitch/step", "C")] + round(alter)


def render(notes: list[Note], program: int, seconds: float, rate: int = RATE) -> np.ndarray:
    """One voice on one instrument, mono float32 [rate * seconds]."""
    import tinysoundfont
    from scipy.signal import resample_poly

    fine = rate * OVERSAMPLING
    synth = tinysoundfont.Synth(samplerate=fine)
    synth.program_select(0, synth.sfload(str(folder_of("pretty_midi") / "TimGM6mb.sf2")), 0, program)
    events = sorted((time, on, note.key) for note in notes for time, on in ((note.start, True), (note.end, False)))
    ends = [min(round(time / QUARTERS_PER_SECOND * fine), round(seconds * fine)) for time, _, _ in events]
    pieces = [silence(ends[0] if ends else 0)]
    for (_, on, key), (start, end) in zip(events, pairwise([*ends, round(seconds * fine)]), strict=True):
        if on:
            synth.noteon(0, key, 100)
        else:
            synth.noteoff(0, key)
        if end > start:
            stereo = np.frombuffer(synth.generate(end - start), dtype=np.float32)
            pieces.append(stereo.reshape(-1, 2).mean(axis=1))
    return resample_poly(np.concatenate(pieces), 1, OVERSAMPLING).astype(np.float32)


def silence(samples: int) -> np.ndarray:
    return np.zeros(samples, dtype=np.float32)


def render_stems(path: Path, seconds: float) -> np.ndarray | None:
    """All voices of a score from its start, float32 [voices, samples]; None if it has not four sounding voices."""
    voices = read_voices(path)
    enough = seconds * QUARTERS_PER_SECOND
    if len(voices) != len(VOICES) or any(not notes or max(note.end for note in notes) < enough for notes in voices):
        return None
    programs = VOICES.values()
    return np.stack([render(notes, program, seconds) for notes, program in zip(voices, programs, strict=True)])
