"""Without the compiled core everything works, and one warning says so."""

import subprocess
import sys

BLOCKED = """
import sys, warnings
sys.modules["diffq_fast._core"] = None  # as where nothing was compiled
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import diffq_fast
    assert not told, "importing the package is silent and light"
    from diffq_fast import DiffQuantizer, functional, backend_info
    import diffq_fast.packed.save_load
ours = [str(w.message) for w in told if "diffq_fast" in str(w.message)]
assert len(ours) == 1, ours
print(ours[0])
import torch
model = torch.nn.Linear(64, 64)
quantizer = DiffQuantizer(model, group_size=8)
quantizer.no_optimizer()
model(torch.randn(2, 64)).sum().backward()
assert model.weight_diffq.grad.abs().sum() > 0
print(backend_info()["backends"]["cpu"])
"""

DOCTOR = """
import sys
sys.modules["diffq_fast._core"] = None
from diffq_fast.cli import main
sys.exit(main(["doctor"]))
"""


def run(*arguments, script=None):
    command = [sys.executable, *(["-c", script] if script else arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_a_missing_core_is_told_once_with_the_reason():
    done = run(script=BLOCKED)
    assert done.returncode == 0, done.stderr
    warning, info = done.stdout.splitlines()
    assert "without its compiled core (reason: " in warning
    assert "diffq-fast doctor says how to get it" in warning
    assert "'active': False" in info


def test_doctor_says_how_to_get_the_core():
    done = run(script=DOCTOR)
    assert done.returncode == 0, done.stderr
    assert "C++ compiler" in done.stdout
    assert "pip install" in done.stdout


def test_training_needs_nothing_but_torch():
    done = run(
        script="""
import sys
for name in ("safetensors", "matplotlib", "scipy", "mlxtend"):
    sys.modules[name] = None
import torch
from diffq_fast import DiffQuantizer, save
model = torch.nn.Linear(64, 64)
quantizer = DiffQuantizer(model, group_size=8)
quantizer.no_optimizer()
model(torch.randn(2, 64)).sum().backward()
"""
    )
    assert done.returncode == 0, done.stderr
