"""The operators stay until the process has ended: daemon threads may be calling them."""

from __future__ import annotations

import subprocess
import sys

# Registered first, so called last: behind what torch does when the interpreter ends.
PROGRAM = """
import atexit

def call():
    key = functional.draw_key(torch.zeros(1))
    noisy = functional.add_noise([weight], [logit], key).noisy[0]
    noisy.sum().backward()
    functional.fake_quantize([weight], [widths], functional.weight_range([weight]))
    print("answered")

atexit.register(call)
import torch
from diffq_fast import functional

weight, logit = torch.ones(8).requires_grad_(), torch.zeros(1, requires_grad=True)
widths = torch.tensor([3], dtype=torch.uint8)
"""


def test_operators_answer_behind_the_exit_handlers_of_torch():
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "answered", "")
