"""atomic_file: the path holds the old file or the whole new one, whatever happens in between."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest

from diffq_fast.files.atomic_file import atomic_file
from support.paths import ROOT

REPOSITORY = ROOT


def test_writes_a_new_file(tmp_path):
    with atomic_file(tmp_path / "new") as file:
        file.write(b"text")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new").read_bytes() == b"text"
    assert os.listdir(tmp_path) == ["new"]


def test_a_new_file_has_the_mode_that_the_umask_says(tmp_path):
    with atomic_file(tmp_path / "new"):
        pass
    (tmp_path / "plain").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_replaces_a_file_and_keeps_its_mode(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_follows_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "target").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_litter(error, tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")

    def fail():
        with atomic_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old"]


def test_refuses_what_is_no_regular_file(tmp_path):
    with pytest.raises(ValueError, match="is not a regular file"), atomic_file(tmp_path):
        pass
    with pytest.raises(ValueError, match="is not a regular file"), atomic_file("/dev/null"):
        pass


def test_a_kill_leaves_the_old_file(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    code = (
        "import os, signal, sys; from diffq_fast.files.atomic_file import atomic_file\n"
        "with atomic_file(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["n" * 250, "ü" * 125, "語" * 83 + "n", "🙂" * 62 + "ab"])
def test_takes_names_as_long_as_the_system_does(name, tmp_path):
    assert len(os.fsencode(name)) == 250
    with atomic_file(tmp_path / name) as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == [name]
