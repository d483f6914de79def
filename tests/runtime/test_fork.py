"""A packed model in forked children: the same outputs as in the parent, whose threads are not there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from support.paths import ROOT

# The products before the fork start the core's threads; 40 vectors and 129 take its other two ways.
PROGRAM = """
    import os, sys
    import torch
    from torch import nn
    import diffq_fast

    def network():
        return nn.Sequential(nn.Embedding(50, 256), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64))

    torch.manual_seed(0)
    quantizer = diffq_fast.DiffQuantizer(network(), group_size=64, min_size=0.0001)
    diffq_fast.save(quantizer, sys.argv[1])
    model = diffq_fast.load(sys.argv[1], network(), packed=True, activations=sys.argv[2])
    inputs = [torch.randint(0, 50, (count,)) for count in (1, 40, 129)]
    with torch.no_grad():
        expected = [model(each) for each in inputs]
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                torch.set_num_threads(1)
                equal = [torch.equal(model(each), found) for each, found in zip(inputs[:2], expected)]
                # 129 vectors go through torch's product, which may sum otherwise with one thread.
                equal.append(torch.allclose(model(inputs[2]), expected[2], rtol=1e-5, atol=1e-6))
                os._exit(0 if equal == [True] * 3 else 1)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0, 0], codes
        assert all(torch.equal(model(each), found) for each, found in zip(inputs, expected))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_a_forked_child_computes_the_same(tmp_path, activations):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "file"), activations]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
