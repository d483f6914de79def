"""Sharded models: packed files, states that go on over another number of processes, size targets, mixed precision.

Before the job of four processes that most tests look at there is one of two, which leaves a checkpoint.
"""

import functools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from diffq_fast import DiffQuantizer, SizeTarget, load, save
from support.sharded_runs import OPTIONS, QUANTIZERS, Net, batches, own_rows, run_processes, whole_state

KINDS = ["gaussian", "group_ranges", "rate", "lsq", "qat"]
RESUMED = ["gaussian", "rate"]


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


def aimed(quantizer):
    return SizeTarget(quantizer, bits_per_weight=6, total_steps=8)


def begun(kind, mesh, path):
    """Two steps to a size, and a distributed checkpoint; the state then."""
    model, optimizer, quantizer = set_up(kind, mesh)
    target = aimed(quantizer)
    steps(model, optimizer, quantizer, mesh, 2, target)
    state, optimizer_state = get_state_dict(model, optimizer)
    in_path = {"model": state, "optimizer": optimizer_state, "target": target.state_dict()}
    dcp.save({**in_path, "rng": torch.get_rng_state()}, checkpoint_id=path)
    return whole_state(model)


def go_on(kind, mesh, path):
    """Two steps more from a checkpoint: the state, and the price of the size."""
    model, optimizer, quantizer = set_up(kind, mesh)
    target = aimed(quantizer)
    state, optimizer_state = get_state_dict(model, optimizer)
    in_path = {"model": state, "optimizer": optimizer_state, "target": target.state_dict()}
    in_path["rng"] = torch.get_rng_state()
    dcp.load(in_path, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=in_path["model"], optim_state_dict=in_path["optimizer"])
    target.load_state_dict(in_path["target"])
    torch.set_rng_state(in_path["rng"])
    steps(model, optimizer, quantizer, mesh, 2, target)
    return {**whole_state(model), "price": target.price.clone()}


def resumed(first, second, path):
    """Two steps over one mesh, and two over another one."""
    begun("gaussian", first, path)
    return go_on("gaussian", second, path)


def begun_by_two(path):
    """A job of its own: a checkpoint of each kind, and one whole state, of the first process."""
    mesh = init_device_mesh("cpu", (2,))
    states = {kind: begun(kind, mesh, f"{path}/{kind}") for kind in RESUMED}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    full = get_model_state_dict(set_up("gaussian", mesh)[0], options=options)
    if not mesh.get_rank():
        torch.save(full, f"{path}/full.pt")
    return states


def filled(mesh, path):
    """A model that takes the whole state from the first process."""
    torch.manual_seed(4)
    model = shard(Net(), mesh)
    QUANTIZERS["gaussian"](model)
    full = {} if mesh.get_rank() else torch.load(path)
    set_model_state_dict(model, full, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return whole_state(model)


def targeted(mesh):
    model, optimizer, quantizer = set_up("gaussian", mesh)
    target = aimed(quantizer)
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
        "of_two": {kind: go_on(kind, four, f"{path}/two/{kind}") for kind in RESUMED},
        "filled": filled(four, f"{path}/two/full.pt"),
    }


@pytest.fixture(scope="module")
def two(folder):
    (folder / "two").mkdir()
    return run_processes(begun_by_two, folder / "two", world=2)


@pytest.fixture(scope="module")
def ranks(two, folder):
    return run_processes(run, folder)


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


@functools.cache
def uninterrupted(kind):
    """Four steps in one process: the states behind two and four, and the price."""
    model, optimizer, quantizer = set_up(kind, None)
    target = aimed(quantizer)
    steps(model, optimizer, quantizer, None, 2, target)
    middle = whole_state(model)
    steps(model, optimizer, quantizer, None, 2, target)
    return middle, {**whole_state(model), "price": target.price}


def test_training_goes_on_over_another_number_of_processes(ranks, folder):
    expected, on_one = uninterrupted("gaussian")[1], go_on("gaussian", None, f"{folder}/checkpoint")
    for found in (on_one, *(results["resumed"] for results in ranks)):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", RESUMED)
def test_a_job_of_two_processes_goes_on_as_one_of_four_and_of_one(two, ranks, folder, kind):
    middle, end = uninterrupted(kind)
    for results in two:
        torch.testing.assert_close(results[kind], middle, rtol=1e-3, atol=1e-4)
    on_one = go_on(kind, None, f"{folder}/two/{kind}")
    for found in (on_one, *(results["of_two"][kind] for results in ranks)):
        torch.testing.assert_close(found, end, rtol=1e-3, atol=1e-4)
        assert not torch.equal(found["first.0.weight"], middle["first.0.weight"])


def test_a_whole_state_fills_a_model_over_another_number_of_processes(ranks, folder):
    full = torch.load(folder / "two" / "full.pt")
    model = Net()
    QUANTIZERS["gaussian"](model)
    model.load_state_dict(full)
    for found in (whole_state(model), *(results["filled"] for results in ranks)):
        assert found.keys() == full.keys()
        assert all(torch.equal(found[name], value) for name, value in full.items())


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
