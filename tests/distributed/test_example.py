"""The example of a sharded training, as its first line says to run it."""

import subprocess
import sys

import diffq_fast
from support.paths import ROOT
from support.sharded_runs import free_port


def test_the_example_trains_to_its_size(tmp_path):
    path = tmp_path / "model.safetensors"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command = [*launcher, ROOT / "examples/train_sharded.py", path]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    assert float(made.stdout.split()[1]) < 0.5  # untrained: 1.0
    report = diffq_fast.inspect(path)
    assert 3.8 < report.bits_per_weight < 4.1
