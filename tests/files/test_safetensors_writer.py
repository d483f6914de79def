"""What the writer writes, its reader takes: it refuses what would come back as a hostile file, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from diffq_fast.files import safetensors_writer
from diffq_fast.files.safetensors_reader import MAX_DIMENSIONS, open_file, read_header
from diffq_fast.files.safetensors_writer import TensorSource, write_safetensors


def source(shape, name="a"):
    return TensorSource(name, "U8", shape, lambda: np.zeros(1, dtype=np.uint8))


def test_as_many_dimensions_as_readers_take(tmp_path):
    path = tmp_path / "a"
    write_safetensors(path, [source((1,) * MAX_DIMENSIONS)], {})
    with open_file(path) as file:
        assert read_header(file, path).tensors["a"].shape == (1,) * MAX_DIMENSIONS
    with pytest.raises(ValueError, match="save: a: at most 32 dimensions, got 33"):
        write_safetensors(tmp_path / "b", [source((1,) * (MAX_DIMENSIONS + 1))], {})
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_header_longer_than_readers_take_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "MAX_HEADER_BYTES", 1000)
    write_safetensors(tmp_path / "a", [source((1,), "n" * 900)], {})
    with pytest.raises(ValueError, match="readers take 1,000; shorten them"):
        write_safetensors(tmp_path / "b", [source((1,), "n" * 1000)], {})
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


AT_EXIT = """
import atexit, sys, zlib
import numpy as np
from diffq_fast.files.safetensors_writer import TensorSource, write_safetensors

data = np.arange(1 << 20, dtype=np.uint32).view(np.uint8)
expected = zlib.crc32(data)

def save():
    def seal(raw, checksums):
        assert checksums == [expected], checksums
        return raw
    write_safetensors(sys.argv[1], [TensorSource("a", "U8", (len(data),), lambda: data)], {}, seal)
    print("saved")

atexit.register(save)
"""


def test_large_files_are_saved_while_the_interpreter_ends(tmp_path):
    """When no thread begins any more."""
    command = [sys.executable, "-c", AT_EXIT, str(tmp_path / "a")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "saved\n"
    assert (tmp_path / "a").stat().st_size > 1 << 22
