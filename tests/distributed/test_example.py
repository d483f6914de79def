"""The example of a sharded training, as its first line says to run it."""

import subprocess
import sys
import threading
import time

import torch

import diffq_fast
from diffq_fast.quantizers import shards
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


def test_the_end_of_a_save_waits_until_a_tensor_is_let_go(monkeypatch):
    """A process that ends while gloo's thread still has it is aborted, now and then, by torch."""
    value = torch.ones((), requires_grad=True)
    held = [value * value]  # the graph has it too
    assert value._use_count() > 1
    release = threading.Timer(0.2, held.clear)
    begin = time.monotonic()
    release.start()
    shards._wait_until_let_go(value)
    assert value._use_count() == 1
    assert time.monotonic() - begin > 0.15
    held.append(value * value)
    monkeypatch.setattr(shards, "MOST_WAIT", 0.05)
    shards._wait_until_let_go(value)  # not for ever
    assert value._use_count() > 1
