"""fully_shard and tensor parallelism together, two times two processes, against one process."""

import functools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from diffq_fast import SizeTarget, load, save
from support.parallel_runs import Run, assert_equal_runs
from support.sharded_runs import (
    QUANTIZERS,
    batches,
    whole_state,
)

CASES = {
    **{f"{kind}/{order}": (kind, {"order": order}, {}) for kind in QUANTIZERS for order in ("between", "last")},
    "enter alone": ("enter alone", {}, {}),
    **{f"{kind}/first": (kind, {"order": "first"}, {}) for kind in ("gaussian", "rate", "qat")},
    "whole model": ("gaussian", {"by_layers": False}, {}),
    "checkpointed": ("gaussian", {"checkpointed": True}, {}),
    "frozen": ("gaussian", {"order": "between"}, {"frozen": False}),
    "rounded": ("gaussian", {}, {"frozen": True}),
}
del CASES["lsq/between"]  # torch's fully_shard refuses parameters of no dimension
KINDS = ("gaussian", "rate", "lsq")


def written(kind, mesh, path):
    """A model's file before any training, when all values are the very same; and what another loads from it."""
    save(Run(kind, mesh).quantizer, path, logits=True)
    with open(path, "rb") as file:
        stored = file.read()
    other = Run(kind, mesh)
    with torch.no_grad():
        for param in other.model.parameters():
            param.mul_(0.5)
    load(path, other.model)
    return stored, whole_state(other.model)


def resumed(mesh, path):
    """Two steps, a distributed checkpoint, and two more from it in another arrangement."""
    run = Run("gaussian", mesh)
    torch.manual_seed(1)  # a checkpoint keeps the generator of one process
    for batch in batches(2):
        run.sized(batch)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.save({"model": model, "optimizer": optimizer, "rng": torch.get_rng_state()}, checkpoint_id=path)
    return gone_on(mesh, path, "between")


def gone_on(mesh, path, order):
    run = Run("gaussian", mesh, order)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state = {"model": model, "optimizer": optimizer, "rng": torch.get_rng_state()}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(run.model, run.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    torch.set_rng_state(state["rng"])
    for batch in batches(2):
        run.sized(batch)
    return whole_state(run.model)


def targeted(mesh):
    run = Run("gaussian", mesh)
    target = SizeTarget(run.quantizer, bits_per_weight=8, total_steps=6)
    for batch in batches(6):
        run.step(batch, target.penalty, target.step)
    return float(target.price), run.quantizer.true_model_size(), whole_state(run.model)


def in_bfloat16(mesh, order):
    """Mixed precision: what a layer reads, the dtypes of what is learned, its gradients."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    run = Run("gaussian", mesh, order, mp_policy=policy)
    seen = []
    run.model.up.register_forward_pre_hook(lambda layer, args: seen.append(layer.weight.dtype))
    _, grads = run.sized(batches()[0])
    learned = {each.dtype for each in run.quantizer.learned_parameters()}
    return seen, learned, {name: grad for name, grad in grads.items() if "logit" in name}


def run(path):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return {
        "trained": {case: Run(kind, mesh, **how).trained(**what) for case, (kind, how, what) in CASES.items()},
        "files": {kind: written(kind, mesh, f"{path}/{kind}.safetensors") for kind in KINDS},
        "resumed": resumed(mesh, f"{path}/checkpoint"),
        "target": targeted(mesh),
        "bfloat16": {order: in_bfloat16(mesh, order) for order in ("between", "last")},
    }


pytestmark = pytest.mark.processes(run=run)


@functools.cache
def alone(kind, frozen):
    return Run(kind).trained(frozen)


@pytest.mark.parametrize("case", CASES)
def test_both_together_equal_one_process(ranks, case):
    kind, _, what = CASES[case]
    one = alone(kind, what.get("frozen"))
    for rank, results in enumerate(ranks):
        found = results["trained"][case]
        assert_equal_runs(found, one, rank)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_that_of_one_process(ranks, kind, tmp_path):
    stored, state = written(kind, None, str(tmp_path / "one.safetensors"))
    for results in ranks:
        assert results["files"][kind][0] == stored
        for name, value in state.items():
            assert torch.equal(results["files"][kind][1][name], value), name


def test_training_goes_on_over_both_and_in_one_process(ranks, folder):
    run = Run("gaussian")
    for batch in (*batches(2), *batches(2)):
        run.sized(batch)
    for found in [gone_on(None, f"{folder}/checkpoint", "last"), *(results["resumed"] for results in ranks)]:
        torch.testing.assert_close(dict(found), whole_state(run.model), rtol=1e-3, atol=1e-4)


def test_a_size_target_is_reached_alike(ranks):
    price, size, state = targeted(None)
    for results in ranks:
        assert results["target"][0] == pytest.approx(price, rel=1e-3)
        assert results["target"][1] == size
        torch.testing.assert_close(results["target"][2], state, rtol=1e-3, atol=1e-4)


def test_mixed_precision_leaves_what_is_learned_in_float32(ranks):
    for results in ranks:
        for seen, learned, grads in results["bfloat16"].values():
            assert seen == [torch.bfloat16]
            assert learned == {torch.float32}
            assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads.values())
        torch.testing.assert_close(
            results["bfloat16"]["between"][2], results["bfloat16"]["last"][2], rtol=1e-4, atol=1e-6
        )
