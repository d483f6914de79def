"""The examples of ``docs/integrations.md`` run."""

import importlib.util
import re
import subprocess
import sys

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.timeout(1200)  # two programs that import transformers, on a machine that may be busy
TRAINER, FOLDER, LIGHTNING = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "integrations.md").read_text(), re.DOTALL
)


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def run(example, folder):
    done = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_length(example):
    """Short, as the page shows it."""
    assert len([line for line in example.splitlines() if line]) <= 20


def check_size(printed):
    reached, asked = map(float, re.search(r"([\d.]+) MB, asked for ([\d.]+) MB", printed).groups())
    assert 0.9 * asked < reached <= asked


@needs("transformers", "accelerate")
def test_trainer_reaches_its_size_and_the_folder_loads(tmp_path):
    check_length(TRAINER)
    check_size(run(TRAINER, tmp_path))
    run(FOLDER + "\nassert any('Packed' in type(module).__name__ for module in model.modules())\n", tmp_path)


@needs("lightning")
def test_lightning_reaches_its_size(tmp_path):
    check_length(LIGHTNING)
    check_size(run(LIGHTNING, tmp_path))
    assert (tmp_path / "model.safetensors").exists()
