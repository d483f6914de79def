"""HSDP and tensor parallelism together, on meshes of three dimensions, against one process.

With four processes one of the three dimensions has one process only; each has its turn.
"""

import functools

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from diffq_fast import load, save
from support.parallel_runs import Run, assert_equal_runs
from support.sharded_runs import whole_state

SHAPES = ((2, 2, 1), (1, 2, 2), (2, 1, 2))
CASES = {
    **{f"{kind}/last": (kind, {"order": "last"}) for kind in ("gaussian", "group_ranges", "rate", "lsq", "qat")},
    **{f"gaussian/{order}": ("gaussian", {"order": order}) for order in ("first", "between")},
    "enter alone": ("enter alone", {}),
    "whole model": ("gaussian", {"by_layers": False}),
    "checkpointed": ("gaussian", {"checkpointed": True}),
}


def written(mesh, path):
    """A model's file before any training; and what another one loads from it."""
    save(Run("gaussian", mesh).quantizer, path, logits=True)
    with open(path, "rb") as file:
        stored = file.read()
    other = Run("gaussian", mesh)
    with torch.no_grad():
        for param in other.model.parameters():
            param.mul_(0.5)
    load(path, other.model)
    return stored, whole_state(other.model)


def run(path):
    found = {}
    for shape in SHAPES:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard", "tensor"))
        found[shape] = {case: Run(kind, mesh, **how).trained() for case, (kind, how) in CASES.items()}
        found[shape]["file"] = written(mesh, f"{path}/{shape[0]}{shape[1]}{shape[2]}.safetensors")
    return found


pytestmark = pytest.mark.processes(run=run)


@functools.cache
def alone(kind):
    return Run(kind).trained()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_three_dimensions_equal_one_process(ranks, shape, case):
    one = alone(CASES[case][0])
    for rank, results in enumerate(ranks):
        found = results[shape][case]
        assert_equal_runs(found, one, rank)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_file_is_that_of_one_process(ranks, shape, tmp_path):
    stored, state = written(None, str(tmp_path / "one.safetensors"))
    for results in ranks:
        assert results[shape]["file"][0] == stored
        for name, value in state.items():
            assert torch.equal(results[shape]["file"][1][name], value), name
