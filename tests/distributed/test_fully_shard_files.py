"""Sharded models: packed files, states that go on over another number of processes, size targets, mixed precision."""

import functools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from diffq_fast import DiffQuantizer, SizeTarget, load, save
from support.sharded_runs import OPTIONS, QUANTIZERS, Net, batches, own_rows, whole_state

KINDS = ["gaussian", "group_ranges", "rate", "lsq", "qat"]


def shard(model, mesh, **options):
    if mesh is not None:
        for block in (model.first, model.second):
            fully_shard(block, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
    return model


def set_up(kind, mesh, **options):
    torch.manual_seed(0)
    model = shard(Net(), mesh, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    quantizer = QUANTIZERS[kind](model)
    quantizer.setup_optimizer(optimizer, lr=0.05)
    torch.manual_seed(1)
    return model, optimizer, quantizer


def steps(model, optimizer, quantizer, mesh, number, target=None):
    for batch in batches(number):
        loss = model(own_rows(batch, mesh)).float().square().mean()
        (loss + (target.penalty() if target else 30 * quantizer.model_size())).backward()
        optimizer.step()
        if target is not None:
            target.step()
        optimizer.zero_grad()


def written(kind, mesh, path):
    """A model's file before any training, when all values are the very same; and what another loads from it."""
    _, _, quantizer = set_up(kind, mesh)
    save(quantizer, path, logits=kind != "qat")
    with open(path, "rb") as file:
        stored = file.read()
    torch.manual_seed(3)
    model = shard(Net(), mesh)
    QUANTIZERS[kind](model)
    load(path, model)
    return stored, whole_state(model)


def resumed(first, second, path):
    """Two steps over one mesh, a distributed checkpoint, and two over another one."""
    model, optimizer, quantizer = set_up("gaussian", first)
    steps(model, optimizer, quantizer, first, 2)
    state, optimizer_state = get_state_dict(model, optimizer)
    in_path = {"model": state, "optimizer": optimizer_state, "rng": torch.get_rng_state()}
    dcp.save(in_path, checkpoint_id=path)
    return go_on(second, path)


def go_on(mesh, path):
    model, optimizer, quantizer = set_up("gaussian", mesh)
    state, optimizer_state = get_state_dict(model, optimizer)
    in_path = {"model": state, "optimizer": optimizer_state, "rng": torch.get_rng_state()}
    dcp.load(in_path, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=in_path["model"], optim_state_dict=in_path["optimizer"])
    torch.set_rng_state(in_path["rng"])
    steps(model, optimizer, quantizer, mesh, 2)
    return whole_state(model)


def targeted(mesh):
    model, optimizer, quantizer = set_up("gaussian", mesh)
    target = SizeTarget(quantizer, bits_per_weight=6, total_steps=8)
    steps(model, optimizer, quantizer, mesh, 8, target)
    return float(target.price), quantizer.true_model_size(), whole_state(model)


def in_bfloat16(mesh, order):
    """Mixed precision of FSDP: what a layer reads, the dtypes of what is learned and of its gradient, the losses."""
    torch.manual_seed(0)
    model = Net()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if order == "before":
        shard(model, mesh, mp_policy=policy)
    quantizer = DiffQuantizer(model, group_size=4, init_bits=4, **OPTIONS)
    if order == "after":
        shard(model, mesh, mp_policy=policy)
    quantizer.no_optimizer()
    seen = []
    model.first[0].register_forward_pre_hook(lambda module, args: seen.append(module.weight.dtype))
    torch.manual_seed(1)
    model(own_rows(batches()[0], mesh)).float().square().mean().backward()
    learned = quantizer.learned_parameters()
    model.eval()
    with torch.no_grad():
        model(batches()[0])
    grads = [whole_state_of(param.grad) for param in learned]
    return seen, {param.dtype for param in learned}, {grad.dtype for grad in grads}, grads


def whole_state_of(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def run(path):
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    two, four, pair = square["shard"], init_device_mesh("cpu", (4,)), square.get_local_rank("replicate")
    files = {kind: written(kind, two, f"{path}/{kind}{pair}.safetensors") for kind in KINDS}
    files["square"] = written("gaussian", square, f"{path}/square.safetensors")
    return {
        "files": files,
        "target": targeted(two),
        "bfloat16": {order: in_bfloat16(two, order) for order in ("before", "after")},
        "resumed": resumed(square, four, f"{path}/checkpoint"),
    }


pytestmark = pytest.mark.processes(run=run)


@functools.cache
def alone(kind, path):
    return written(kind, None, path)


@pytest.mark.parametrize("kind", [*KINDS, "square"])
def test_a_sharded_model_writes_and_reads_the_same_file(kind, ranks, tmp_path):
    stored, state = alone("gaussian" if kind == "square" else kind, str(tmp_path / "one.safetensors"))
    for results in ranks:
        assert results["files"][kind][0] == stored
        for name, value in state.items():
            assert torch.equal(results["files"][kind][1][name], value), name


def test_training_goes_on_over_another_number_of_processes(ranks, folder):
    model, optimizer, quantizer = set_up("gaussian", None)
    steps(model, optimizer, quantizer, None, 2)
    steps(model, optimizer, quantizer, None, 2)
    uninterrupted, on_one = whole_state(model), go_on(None, f"{folder}/checkpoint")
    for name, value in uninterrupted.items():
        torch.testing.assert_close(on_one[name], value, rtol=1e-3, atol=1e-4)
        for results in ranks:
            torch.testing.assert_close(results["resumed"][name], value, rtol=1e-3, atol=1e-4)


def test_a_size_target_is_reached_alike(ranks):
    price, size, state = targeted(None)
    for results in ranks:
        assert results["target"][0] == pytest.approx(price, rel=1e-3)
        assert results["target"][1] == size
        for name, value in state.items():
            torch.testing.assert_close(results["target"][2][name], value, rtol=1e-3, atol=1e-4)


def test_mixed_precision_leaves_what_is_learned_in_float32(ranks):
    for results in ranks:
        for seen, learned, grads, values in results["bfloat16"].values():
            assert seen == [torch.bfloat16, torch.bfloat16]  # in training and in evaluation
            assert learned == grads == {torch.float32}
            assert all(bool(value.isfinite().all()) for value in values)
            assert sum(bool(value.any()) for value in values) == len(values) - 1  # the norm's weight is one number
        before, after = (results["bfloat16"][order][3] for order in ("before", "after"))
        assert all(map(torch.equal, before, after))
