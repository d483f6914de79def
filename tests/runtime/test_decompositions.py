"""Exported packed models as operations of aten alone, which run where the package is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import diffq_fast
from support.packed_layers import QUANTIZERS, TOKENS, Network, close, saved

PROGRAM = """
    import sys

    class Refusing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "diffq_fast":
                raise ImportError("not here")

    sys.meta_path.insert(0, Refusing())
    import torch
    try:
        import diffq_fast
    except ImportError:
        pass
    else:
        sys.exit("the package is here")
    program = torch.export.load(sys.argv[1]).module()
    inputs = torch.load(sys.argv[2])
    torch.save([program(each) for each in inputs], sys.argv[3])
"""


def decomposed(model, example):
    """Exported with inputs of any number of rows."""
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    assert any("diffq_fast" in str(node.target) for node in program.graph.nodes)
    made = program.run_decompositions(diffq_fast.decompositions())
    assert not any("diffq_fast" in str(node.target) for node in made.graph.nodes)
    return made


def ran_elsewhere(program, inputs, folder):
    """The outputs of a process in which the package cannot be imported."""
    paths = [str(folder / name) for name in ("program.pt2", "inputs", "outputs")]
    torch.export.save(program, paths[0])
    torch.save(inputs, paths[1])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *paths]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return torch.load(paths[2])


@pytest.mark.parametrize("quantizer", ["groups of 8", "steps", "11 levels"])
def test_a_whole_model_runs_without_the_package(tmp_path, quantizer):
    model = diffq_fast.load(saved(tmp_path / "file", quantizer), Network(), packed=True).eval()
    inputs = [TOKENS, TOKENS.repeat(3, 1)]
    with torch.no_grad():
        expected = [model(each) for each in inputs]
    found = ran_elsewhere(decomposed(model, TOKENS), inputs, tmp_path)
    assert all(close(output, wanted, 32) for output, wanted in zip(found, expected, strict=True))
    assert [output.shape for output in found] == [output.shape for output in expected]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_looked_up_rows_have_the_same_bits(tmp_path, quantizer):
    layer = diffq_fast.load(saved(tmp_path / "file", quantizer), Network(), packed=True).embedding
    program = decomposed(layer, TOKENS).module()
    assert torch.equal(program(TOKENS), layer(TOKENS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantizer", ["groups of 8", "one group", "steps"])
def test_rounded_activations(tmp_path, quantizer, dtype):
    path = saved(tmp_path / "file", quantizer)
    layer = diffq_fast.load(path, Network(), packed=True, activations="int8").to(dtype).linear
    vectors = torch.randn(3, 32, dtype=dtype)
    with torch.no_grad():
        found, expected = decomposed(layer, vectors).module()(vectors), layer(vectors)
        layer.packed_weight.activations = "float"
        exact = layer(vectors)
    assert found.dtype == dtype
    if dtype == torch.bfloat16:
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)
    else:
        assert close(found, expected, 32)
        assert not close(found, exact, 32)


def test_more_rows_than_are_unpacked_at_once(tmp_path):
    """Three blocks of rows, the last one smaller."""
    packed = saved(tmp_path / "file", "steps", network=lambda: nn.Sequential(nn.Linear(2048, 1100)))
    layer = diffq_fast.load(packed, nn.Sequential(nn.Linear(2048, 1100)), packed=True)[0]
    vectors = torch.randn(4, 2048)
    with torch.no_grad():
        assert close(decomposed(layer, vectors).module()(vectors), layer(vectors), 2048)
