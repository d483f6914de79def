"""FSDP2 on two and four processes, and two times two, against one process."""

import functools

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from diffq_fast import save
from support.sharded_runs import (
    QUANTIZERS,
    Net,
    batches,
    mean_over,
    own_rows,
    whole,
    whole_state,
)


def shard(model, mesh):
    for block in (model.first, model.second):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(kind, mesh=None, order="before", checkpointed=False, frozen=None, path=None):
    """A short training: losses, sizes, the noise that was seen, gradients of the first step, the state at the end."""
    torch.manual_seed(0)
    model = Net(checkpointed)
    if mesh is not None and order == "before":
        shard(model, mesh)
    quantizer = QUANTIZERS[kind](model)
    if mesh is not None and order == "after":
        shard(model, mesh)
    learned = {id(param) for param in quantizer.learned_parameters()}
    weights = [param for param in model.parameters() if id(param) not in learned]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    quantizer.setup_optimizer(optimizer, lr=0.05)
    torch.manual_seed(1 if mesh is None or not any(mesh.get_coordinate()) else 99)  # only the first one's key counts
    seen = []
    model.first[0].register_forward_pre_hook(lambda module, args: seen.append(module.weight.detach().clone()))
    losses, sizes, grads = [], [], {}
    for step, batch in enumerate(batches()):
        if step == 2 and frozen is not None:
            quantizer.freeze_bits(straight_through=frozen)
        loss = model(own_rows(batch, mesh)).square().mean()
        size = quantizer.model_size()
        (loss + 30 * size).backward()
        if step == 0:
            grads = {name: whole(param.grad) for name, param in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean_over(loss, mesh))
        sizes.append(float(size.detach()))
    model.eval()
    with torch.no_grad():
        out = model(batches()[0])
    exact = quantizer.true_model_size()
    result = {"losses": losses, "sizes": sizes, "exact": exact, "out": out, "grads": grads, "seen": seen}
    if path is not None:
        save(quantizer, path)
    return {**result, "state": whole_state(model)}


CASES = {
    **{f"{kind}/{order}": {"kind": kind, "order": order} for kind in QUANTIZERS for order in ("before", "after")},
    "checkpointed": {"kind": "gaussian", "checkpointed": True},
    "frozen": {"kind": "gaussian", "order": "after", "frozen": False},
    "rounded": {"kind": "gaussian", "order": "before", "frozen": True},
    "rate_frozen": {"kind": "rate", "frozen": False},
}
del CASES["lsq/after"]  # torch's fully_shard refuses parameters of no dimension
FEW = ("gaussian/before", "gaussian/after", "checkpointed")


def run(path):
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    meshes = {"two": square["shard"], "four": init_device_mesh("cpu", (4,)), "square": square}
    results = {}
    for size, mesh in meshes.items():
        for case, options in CASES.items():
            if size == "two" or case in FEW:
                results[size, case] = train(mesh=mesh, **options)
    return results


pytestmark = pytest.mark.processes(run=run)


@functools.cache
def alone(case):
    options = {name: value for name, value in CASES[case].items() if name != "order"}
    return train(**options)


RUNS = [("two", case) for case in CASES] + [(size, case) for size in ("four", "square") for case in FEW]


@pytest.mark.parametrize(("size", "case"), RUNS)
def test_sharded_equals_unsharded(ranks, size, case):
    one = alone(case)
    for rank, results in enumerate(ranks):
        found = results[size, case]
        assert torch.equal(found["seen"][0], one["seen"][0]), rank  # the noise, bit for bit
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-4), rank
        assert found["sizes"] == pytest.approx(one["sizes"], rel=1e-5), rank
        assert found["exact"] == pytest.approx(one["exact"], rel=1e-6), rank
        for name, grad in one["grads"].items():
            torch.testing.assert_close(
                found["grads"][name], grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
        for name, value in one["state"].items():
            torch.testing.assert_close(
                found["state"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
        torch.testing.assert_close(found["out"], one["out"], rtol=1e-3, atol=1e-4)
