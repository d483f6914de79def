"""Tensor parallelism of two against one process, memory of a process, and what is refused of sharded models."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

from diffq_fast import LSQ, DiffQuantizer, RateQuantizer, UniformQuantizer, save
from support.sharded_runs import OPTIONS, PLAN, Mlp, whole, whole_state

KINDS = {
    "gaussian": lambda model: DiffQuantizer(model, group_size=4, init_bits=4, **OPTIONS),
    "uniform": lambda model: DiffQuantizer(model, group_size=0, init_bits=4, noise="uniform", **OPTIONS),
    "rate": lambda model: RateQuantizer(model, **OPTIONS),
    "lsq": lambda model: LSQ(model, bits=4, **OPTIONS),
    "qat": lambda model: UniformQuantizer(model, bits=4, qat=True, **OPTIONS),
}
CASES = [(kind, order) for kind in KINDS for order in ("before", "after")]
CASES.remove(("lsq", "after"))  # torch splits every parameter of a layer, and has no split for one of no dimension


def train(kind, mesh, order, path):
    torch.manual_seed(0)
    model = Mlp()
    if mesh is not None and order == "before":
        parallelize_module(model, mesh, PLAN)
    quantizer = KINDS[kind](model)
    if mesh is not None and order == "after":
        parallelize_module(model, mesh, PLAN)
    learned = {id(param) for param in quantizer.learned_parameters()}
    weights = [param for param in model.parameters() if id(param) not in learned]
    optimizer = torch.optim.Adam(weights, lr=1e-2, foreach=False)
    quantizer.setup_optimizer(optimizer, lr=0.05)
    torch.manual_seed(1 if mesh is None or not mesh.get_local_rank() else 99)
    generator, losses, sizes = torch.Generator().manual_seed(2), [], []
    for _ in range(3):
        loss = model(torch.randn(4, 6, generator=generator)).square().mean()
        size = quantizer.model_size()
        (loss + 30 * size).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(whole(loss)))
        sizes.append(float(size.detach()))
    model.eval()
    with torch.no_grad():
        out = whole(model(torch.ones(2, 6)))
    save(quantizer, path)
    return losses, sizes, out, whole_state(model)


def kept_bytes(mesh):
    """What a process keeps between two steps: parameters, learned ones, and the states of the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    if mesh is not None:
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    quantizer = DiffQuantizer(model, min_size=0, group_size=4)
    optimizer = torch.optim.Adam(quantizer.parameter_groups(lr=1e-3, bits_lr=1e-3))
    (model(torch.ones(2, 64)).sum() + quantizer.model_size()).backward()
    optimizer.step()
    kept = [*model.parameters(), *(param.grad for param in model.parameters())]
    kept += [each for state in optimizer.state.values() for each in state.values() if each.dim()]
    return sum(4 * getattr(each, "_local_tensor", each).numel() for each in kept)


# -- what is refused: each case is given a mesh of two processes -------------------------------------------------------


def two_layers():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def diffq(model, **options):
    return DiffQuantizer(model, min_size=0, **options)


def sharded(mesh, **options):
    model = two_layers()
    fully_shard(model, mesh=mesh)
    return model, diffq(model, **options)


def forward(model, quantizer):
    quantizer.no_optimizer()
    model(torch.ones(2, 8))


def one_layer(mesh):
    model = two_layers()
    fully_shard(model[0], mesh=mesh)
    diffq(model)


def scalar_scales(mesh):
    model = two_layers()
    LSQ(model, min_size=0)
    fully_shard(model, mesh=mesh)


def ignored_logits(mesh):
    model = two_layers()
    quantizer = diffq(model)
    fully_shard(model, mesh=mesh, ignored_params=set(quantizer.learned_parameters()))
    forward(model, quantizer)


def ignored_weight(mesh):
    model = two_layers()
    fully_shard(model, mesh=mesh, ignored_params={model[0].weight})
    diffq(model)


def early_optimizer(mesh):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    diffq(model).setup_optimizer(optimizer)
    fully_shard(model, mesh=mesh)
    model(torch.ones(2, 8))


def inner(mesh):
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8))
    diffq(model[0]).no_optimizer()
    fully_shard(model, mesh=mesh)
    model(torch.ones(2, 8))


def compiled(mesh):
    model, quantizer = sharded(mesh)
    quantizer.no_optimizer()
    torch.compile(model, backend="eager", fullgraph=True)(torch.ones(2, 8))


def split_twice(mesh):
    """Along both dimensions of a mesh, without fully_shard."""
    model, square = nn.Sequential(nn.Linear(8, 8)), init_device_mesh("cpu", (2, 2))
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), square, [Shard(0), Shard(1)]))
    diffq(model, exclude=("bias",))


ATTEMPTS = {
    "rng": lambda mesh: forward(*sharded(mesh, rng="torch")),
    "noisy_dtype": lambda mesh: forward(*sharded(mesh, noisy_dtype="auto")),
    "float16": lambda mesh: forward(*sharded(mesh, float16=True)),
    "in place": lambda mesh: sharded(mesh)[1].quantize(),
    "bake": lambda mesh: sharded(mesh)[1].bake(),
    "stored state": lambda mesh: sharded(mesh)[1].restore_quantized_state({}),
    "LSQ": scalar_scales,
    "one_layer": one_layer,
    "ignored_logits": ignored_logits,
    "ignored_weight": ignored_weight,
    "early_optimizer": early_optimizer,
    "inner": inner,
    "compiled": compiled,
    "split_twice": split_twice,
}


def refusals(mesh):
    """What is raised, by name of the case; the same on every process."""
    found = {}
    for name, attempt in ATTEMPTS.items():
        try:
            attempt(mesh)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = "nothing"
    return found


def run(path):
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    two, four, pair = square["shard"], init_device_mesh("cpu", (4,)), square.get_local_rank("replicate")
    trained = {case: train(case[0], two, case[1], f"{path}/{case[0]}{case[1]}{pair}.safetensors") for case in CASES}
    sizes = {case: Path(f"{path}/{case[0]}{case[1]}{pair}.safetensors").stat().st_size for case in trained}
    kept = {1: kept_bytes(None), 2: kept_bytes(two), 4: kept_bytes(four)}
    return {"trained": trained, "files": sizes, "bytes": kept, "refused": refusals(two)}


pytestmark = pytest.mark.processes(run=run)


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_tensor_parallel_equals_one_process(ranks, kind, order, tmp_path):
    losses, sizes, out, state = train(kind, None, order, tmp_path / "one.safetensors")
    for results in ranks:
        found = results["trained"][kind, order]
        assert found[0] == pytest.approx(losses, rel=1e-4)
        assert found[1] == pytest.approx(sizes, rel=1e-5)
        torch.testing.assert_close(found[2], out, rtol=1e-3, atol=1e-4)
        for name, value in state.items():
            torch.testing.assert_close(found[3][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        assert results["files"][kind, order] == (tmp_path / "one.safetensors").stat().st_size


def test_what_a_process_keeps_falls_with_their_number(ranks):
    for results in ranks:
        kept = results["bytes"]
        assert kept[1] == 2 * kept[2] == 4 * kept[4]


REFUSED = {
    "rng": "RuntimeError: DiffQuantizer: the model is sharded, and rng='torch'",
    "noisy_dtype": "RuntimeError: DiffQuantizer: the model is sharded, and noisy_dtype='auto'",
    "float16": "RuntimeError: DiffQuantizer: the model is sharded, and float16=True",
    "in place": "RuntimeError: DiffQuantizer: a sharded model cannot be quantised in place",
    "bake": "RuntimeError: DiffQuantizer: a sharded model cannot be quantised in place",
    "stored state": "RuntimeError: DiffQuantizer: a sharded model cannot be filled from a stored state",
    "LSQ": "ValueError: fully_shard doesn't support scalar parameters",
    "one_layer": "RuntimeError: DiffQuantizer: 1.weight is not sharded, while 0.weight is: call fully_shard on the",
    "ignored_logits": "RuntimeError: DiffQuantizer: 0.weight is sharded, and what is learned for it is not",
    "ignored_weight": "RuntimeError: DiffQuantizer: 0.weight is held by fully_shard, but stands there whole",
    "early_optimizer": "RuntimeError: DiffQuantizer: the model was sharded after setup_optimizer",
    "inner": "RuntimeError: DiffQuantizer: 0.weight is held by fully_shard, but stands there whole",
    "compiled": "Unsupported: Attempted to call function marked as skipped",  # torch's own hooks
    "split_twice": "RuntimeError: DiffQuantizer: 0.weight is placed as (S(0), S(1))",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_work_is_refused(ranks, case):
    for results in ranks:
        assert REFUSED[case] in results["refused"][case]
