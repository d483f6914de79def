"""How many collectives each quantizer adds to a sharded model: as many as it has blocks, however many weights."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode

from diffq_fast import LSQ, ActivationQuantizer, DiffQuantizer, RateQuantizer, UniformQuantizer
from diffq_fast.quantizers import gathering

BLOCKS, LAYERS = 2, 3
QUANTIZERS = {
    "plain": lambda model: None,
    "diffq": lambda model: DiffQuantizer(model, min_size=0),
    "frozen": lambda model: DiffQuantizer(model, min_size=0),
    "rate": lambda model: RateQuantizer(model, min_size=0),
    "rate_to_weights": lambda model: RateQuantizer(model, min_size=0, rate_to_weights=True),
    "lsq": lambda model: LSQ(model, min_size=0),
    "qat": lambda model: UniformQuantizer(model, min_size=0, qat=True),
    "activations": lambda model: ActivationQuantizer(model, bits=8),
    "learned_activations": lambda model: ActivationQuantizer(model, learn_bits=True),
}
ASKED = ("model_size", "true_model_size", "bits_per_weight")


def counted(call):
    with CommDebugMode() as mode:
        call()
    return sum(mode.get_comm_counts().values())


def count(kind, mesh):
    """The collectives of a training forward with its backward, of an eval forward, and of what is asked for."""
    torch.manual_seed(0)
    layers = [[nn.Linear(8, 8) for _ in range(LAYERS)] for _ in range(BLOCKS)]
    model = nn.Sequential(*(nn.Sequential(*block) for block in layers))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    quantizer = QUANTIZERS[kind](model)
    if hasattr(quantizer, "no_optimizer"):
        quantizer.no_optimizer()
    inputs = torch.ones(2, 8, requires_grad=True)
    model(inputs).square().mean().backward()
    if kind == "frozen":
        quantizer.freeze_bits()
    step = counted(lambda: model(inputs).square().mean().backward())
    asked = {name: counted(getattr(quantizer, name)) for name in ASKED if hasattr(quantizer, name)}
    model.eval()
    with torch.no_grad():
        model(inputs)
        return {"step": step, **asked, "eval": counted(lambda: model(inputs))}


def in_buckets(mesh):
    """A size with few bytes and with many in a bucket, its gradients, and the collectives of the first."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(LAYERS)))
    fully_shard(model, mesh=mesh)
    quantizer = RateQuantizer(model, min_size=0, rate_to_weights=True)
    found = []
    for most in (300, gathering.BUCKET_BYTES):  # a layer has 288 bytes
        gathering.BUCKET_BYTES = most
        size = quantizer.model_size()
        grads = torch.autograd.grad(size, list(model.parameters()))
        found.append([size.detach(), *(grad.full_tensor() for grad in grads)])
    gathering.BUCKET_BYTES = 300
    return found, counted(quantizer.model_size)


def run(_path):
    mesh = init_device_mesh("cpu", (2,))
    return {**{kind: count(kind, mesh) for kind in QUANTIZERS}, "buckets": in_buckets(mesh)}


pytestmark = pytest.mark.processes(run=run, world=2)

# Of a step: the key; each block's logits, and their gradients. Of an eval forward: logits and weights again.
MORE = {
    "diffq": {"step": 1 + 2 * BLOCKS, "eval": 2 * BLOCKS, "model_size": 1, "true_model_size": 2, "bits_per_weight": 1},
    "rate": {"step": 1 + 2 * BLOCKS, "eval": 2 * BLOCKS, "model_size": 2, "true_model_size": 2, "bits_per_weight": 2},
    "lsq": {"step": BLOCKS, "eval": BLOCKS, "model_size": 0, "true_model_size": 0},
    "qat": {"step": BLOCKS, "eval": BLOCKS, "model_size": 0, "true_model_size": 0},
    "activations": {"step": 1, "eval": 0},
    "learned_activations": {"step": 2, "eval": 0},
}
MORE["frozen"], MORE["rate_to_weights"] = MORE["diffq"], MORE["rate"]


@pytest.mark.parametrize("kind", MORE)
def test_collectives_go_with_the_blocks_and_not_with_the_weights(ranks, kind):
    for results in ranks:
        plain, found = results["plain"], results[kind]
        assert {name: number - plain.get(name, 0) for name, number in found.items()} == MORE[kind]


def test_beyond_the_bytes_of_a_bucket_there_are_more_collectives_with_the_same_result(ranks):
    for results in ranks:
        (few, many), number = results["buckets"]
        assert all(map(torch.equal, few, many))
        assert any(bool(grad.any()) for grad in few[1:])
        assert number == 1 + LAYERS  # log-steps; weight and bias of each layer


def test_a_bucket_has_at_least_one_tensor_and_no_more_bytes_than_it_may(monkeypatch):
    monkeypatch.setattr(gathering, "BUCKET_BYTES", 16)
    tensors = [torch.zeros(count) for count in (0, 2, 2, 1, 9, 0, 4)]
    assert list(gathering.buckets(tensors)) == [range(3), range(3, 4), range(4, 5), range(5, 7)]
    assert list(gathering.buckets([])) == []
