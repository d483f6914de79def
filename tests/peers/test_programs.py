"""Demucs 4.1, unmodified, over the alias; and what it saves, loaded by Demucs over diffq itself, and back."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

import diffq_fast
from diffq_fast.cli import main
from support.paths import ROOT

pytestmark = pytest.mark.programs

PROGRAMS = ROOT / "tests" / "support" / "demucs_programs.py"


def run(command, package, folder):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAMS, command, package, folder],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["resume", "qat", "hub", "import_pattern"])
def test_program(command, tmp_path):
    run(command, "alias", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("audio_separator") is None, reason="audio-separator is not installed")
def test_audio_separator(tmp_path):
    run("separator", "alias", tmp_path)


def test_trained_saved_and_loaded(tmp_path):
    run("write", "alias", tmp_path)
    run("read", "alias", tmp_path)


@pytest.mark.peer
@pytest.mark.parametrize(("writer", "reader"), [("alias", "diffq"), ("diffq", "alias")])
def test_what_one_package_saves_the_other_loads(writer, reader, tmp_path):
    run("write", writer, tmp_path)
    run("read", reader, tmp_path)


def test_package_converts_to_a_packed_file(tmp_path, capsys):
    run("write", "alias", tmp_path)
    for name, module in (("HDemucs", "demucs.hdemucs"), ("HTDemucs", "demucs.htdemucs")):
        old, new = tmp_path / f"{name}.th", tmp_path / f"{name}.safetensors"
        assert main(["convert", str(old), str(new), "--model", f"{module}:{name}", "--json"]) == 0
        lost = json.loads(capsys.readouterr().out)["not_carried_over"]
        assert lost == [f"how to build the model ({module}.{name}, its arguments)", "the training arguments"]
        expected = torch.load(tmp_path / f"{name}.expected")["parameters"]
        found = diffq_fast.load(new)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
