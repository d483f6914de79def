"""Rounded inputs on two and four processes, DistributedDataParallel and fully_shard, against one process."""

import functools
from contextlib import nullcontext

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from diffq_fast import ActivationQuantizer, DiffQuantizer, load, save
from diffq_fast.packed.contents import read_packed
from support.sharded_runs import OPTIONS, Net, batches, mean_over, own_rows, whole, whole_state

KINDS = {
    "fixed": {"bits": 8, "noise": None},
    "learned": {"bits": 7, "noise": None, "learn_bits": (2, 12)},
    "noisy": {"bits": 7, "learn_bits": (2, 12)},
}


def shard(model, mesh, **options):
    for block in (model.first, model.second):
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


class Run:
    """A model with rounded inputs, in one process or over those of ``mesh``.

    ``wrapped``: ddp, or fully_shard before or after the quantizer; ``at_once``: of the whole model as one unit.
    """

    def __init__(self, kind, mesh=None, wrapped=None, checkpointed=False, at_once=False, weights=False, **options):
        torch.manual_seed(0)
        self.mesh, self.model = mesh, Net(checkpointed)
        sharding = functools.partial(fully_shard if at_once else shard, mesh=mesh, **options)
        if wrapped == "before":
            sharding(self.model)
        self.quantizer = DiffQuantizer(self.model, group_size=4, **OPTIONS) if weights else None
        self.activations = ActivationQuantizer(self.model, **KINDS[kind])
        if wrapped == "after":
            sharding(self.model)
        self.called = self.model
        if wrapped == "ddp":
            self.called = DistributedDataParallel(self.model, process_group=mesh.get_group(), broadcast_buffers=False)
        groups = [{"params": [each for each in self.model.parameters() if not self.is_learned(each)]}]
        if weights:
            groups = self.quantizer.parameter_groups(lr=1e-2, bits_lr=0.05)
        self.optimizer = torch.optim.Adam(groups, lr=1e-2)
        self.activations.setup_optimizer(self.optimizer, lr=0.05)
        torch.manual_seed(1 if mesh is None else 1 + mesh.get_rank())

    def is_learned(self, param):
        return any(param is each for each in self.activations.learned_parameters())

    def step(self, batch):
        loss = self.called(own_rows(batch, self.mesh)).float().square().mean()
        (loss + 0.05 * self.activations.mean_bits()).backward()
        grads = [whole(each.grad) for each in self.activations.learned_parameters()]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean_over(loss, self.mesh), grads

    def ranges(self):
        return torch.stack([each.range for each in self.activations.inputs.values()])

    def trained(self):
        """A short training: losses, gradients of the first step, bits, ranges, state and eval outputs at the end."""
        steps = [self.step(batch) for batch in batches()]
        self.model.eval()
        with torch.no_grad():
            out = self.called(batches()[0])
        return {
            "losses": [loss for loss, _ in steps],
            "grads": steps[0][1],
            "bits": self.activations.bits().detach(),
            "exact": self.activations.bits(exact=True),
            "ranges": self.ranges(),
            "state": whole_state(self.model),
            "out": out,
        }


CASES = {
    **{f"{kind}/{wrapped}": (kind, {"wrapped": wrapped}) for kind in KINDS for wrapped in ("ddp", "before", "after")},
    "fixed/at_once": ("fixed", {"wrapped": "after", "at_once": True}),
    "learned/at_once": ("learned", {"wrapped": "after", "at_once": True}),
    "learned/checkpointed/before": ("learned", {"wrapped": "before", "checkpointed": True}),
    "learned/checkpointed/after": ("learned", {"wrapped": "after", "checkpointed": True}),
    "learned/checkpointed/ddp": ("learned", {"wrapped": "ddp", "checkpointed": True}),
}
SQUARE = [case for case in CASES if "ddp" not in case]


def apart(mesh):
    """DistributedDataParallel under no_sync, and a step after it: the ranges after each."""
    run = Run("fixed", mesh, "ddp")
    found = []
    for context in (run.called.no_sync(), nullcontext()):
        with context:
            run.called(own_rows(batches()[0], mesh)).square().mean().backward()
        found.append(run.ranges())
    return found


class Either(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, x, both):
        x = self.first(x)
        return self.second(x) if both else x


def unused(mesh):
    """The first process alone calls the second layer, in the first forward."""
    torch.manual_seed(0)
    model = Either()
    activations = ActivationQuantizer(model, noise=None)
    parallel = DistributedDataParallel(model, process_group=mesh.get_group(), find_unused_parameters=True)
    parallel(own_rows(batches()[0], mesh), mesh.get_local_rank() == 0).sum().backward()
    return torch.stack([each.range for each in activations.inputs.values()])


def compiled(mesh):
    """In one graph nothing is sent: the ranges after a step, and after a forward, which gets the first process's."""
    torch.manual_seed(0)
    model = mlp()
    activations = ActivationQuantizer(model, noise=None, learn_bits=True)
    graph = torch.compile(model, backend="aot_eager", fullgraph=True)
    parallel = DistributedDataParallel(graph, process_group=mesh.get_group())
    parallel(own_rows(batches()[0], mesh)).square().mean().backward()
    ranges = [each.range for each in activations.inputs.values()]
    own = torch.stack(ranges)
    model.eval()
    with torch.no_grad():
        parallel(batches()[0])
    grads = [each.grad.clone() for each in activations.learned_parameters()]
    return own, torch.stack(ranges), grads


def written(mesh, wrapped, path):
    """A trained model's file, and what another model takes over from it."""
    run = Run("learned", mesh, wrapped, weights=True)
    run.step(batches()[0])
    save(run.quantizer, path, logits=True)
    other = Run("learned", mesh, wrapped, weights=True)
    load(path, other.model)
    bits = [whole(each) for each in run.activations.learned_parameters()]
    taken = [whole(each) for each in other.activations.learned_parameters()]
    return bits, run.ranges(), taken, other.ranges()


def resumed(first, second, path):
    """One step over one mesh, a distributed checkpoint, and one over another one."""
    run = Run("learned", first, "before")
    run.step(batches()[0])
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=path)
    return gone_on(second, path)


def gone_on(mesh, path):
    run = Run("learned", mesh, None if mesh is None else "after")
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state = {"model": model, "optimizer": optimizer}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(run.model, run.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    run.step(batches()[1])
    return whole_state(run.model), run.ranges()


def in_bfloat16(mesh, wrapped):
    """Mixed precision of FSDP: dtypes of what is learned, its gradients, and the bits that a layer rounds to."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    run = Run("learned", mesh, wrapped, mp_policy=policy)
    _, grads = run.step(batches()[0])
    return {each.dtype for each in run.activations.learned_parameters()}, grads


PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel()}
COLUMNS = {"0": ColwiseParallel()}  # RowwiseParallel itself fails: it asks each part of a layer for a weight


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))


def parallel_before(mesh):
    ActivationQuantizer(parallelize_module(mlp(), mesh["shard"], PLAN))


def parallel_after(mesh):
    model = mlp()
    ActivationQuantizer(model)
    parallelize_module(model, mesh["shard"], COLUMNS)
    model(torch.ones(2, 6))


def parallel_later(mesh):
    model = mlp()
    ActivationQuantizer(model)
    model(torch.ones(2, 6))
    parallelize_module(model, mesh["shard"], COLUMNS)
    model(torch.ones(2, 6))


def both(mesh):
    model = parallelize_module(mlp(), mesh["shard"], PLAN)
    ActivationQuantizer(fully_shard(model, mesh=mesh["replicate"]))


def gathered(mesh):
    model = fully_shard(mlp(), mesh=mesh["shard"])
    model(torch.ones(2, 6))
    ActivationQuantizer(model)


def early_optimizer(mesh):
    model = mlp()
    activations = ActivationQuantizer(model, learn_bits=True)
    activations.setup_optimizer(torch.optim.SGD(model[0].parameters(recurse=False), lr=0.1))
    fully_shard(model, mesh=mesh["shard"])
    model(torch.ones(2, 6))


def one_layer(mesh):
    model = mlp()
    ActivationQuantizer(model, learn_bits=True)
    fully_shard(model[0], mesh=mesh["shard"])
    model(torch.ones(2, 6))


REFUSED = {
    one_layer: "the learned bits of 2 are not sharded, while the model is",
    parallel_before: "0.weight is split by tensor parallelism",
    parallel_after: "0.weight is split by tensor parallelism",
    parallel_later: "is a DTensor of tensor parallelism",
    both: "0.weight is split by tensor parallelism",
    gathered: "0 is held by fully_shard, but stands there whole",
    early_optimizer: "the model was sharded after setup_optimizer",
}


def refusal(attempt, mesh):
    with pytest.raises(RuntimeError) as raised:
        attempt(mesh)
    return str(raised.value)


def run(path):
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    two, four, pair = square["shard"], init_device_mesh("cpu", (4,)), square.get_local_rank("replicate")
    results = {("two", case): Run(kind, two, **options).trained() for case, (kind, options) in CASES.items()}
    for case in SQUARE:
        kind, options = CASES[case]
        results["square", case] = Run(kind, square, **options).trained()
    return {
        "trained": results,
        "apart": apart(two),
        "compiled": compiled(two),
        "unused": unused(two),
        "files": {each: written(two, each, f"{path}/{each}{pair}.safetensors") for each in ("before", "after")},
        "bfloat16": {wrapped: in_bfloat16(two, wrapped) for wrapped in ("before", "after")},
        "resumed": resumed(square, four, f"{path}/checkpoint"),
        "refused": {attempt.__name__: refusal(attempt, square) for attempt in REFUSED},
    }


pytestmark = pytest.mark.processes(run=run)


@functools.cache
def alone(kind):
    return Run(kind).trained()


ROUNDED = [("two", case) for case in CASES if "noisy" not in case] + [
    ("square", case) for case in SQUARE if "noisy" not in case
]


@pytest.mark.parametrize(("size", "case"), ROUNDED)
def test_rounded_inputs_equal_those_of_one_process(ranks, size, case):
    one = alone(CASES[case][0])
    for results in ranks:
        found = results["trained"][size, case]
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-4)
        torch.testing.assert_close(found["ranges"], one["ranges"], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["grads"], one["grads"], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found["bits"], one["bits"], rtol=1e-4, atol=0)
        assert torch.equal(found["exact"], one["exact"])
        torch.testing.assert_close(found["out"], one["out"], rtol=1e-3, atol=1e-4)
        for name, value in one["state"].items():
            torch.testing.assert_close(found["state"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "case"), [("two", case) for case in CASES] + [("square", case) for case in SQUARE])
def test_all_processes_have_the_same_ranges_and_bits(ranks, size, case):
    first = ranks[0]["trained"][size, case]
    members = ranks if size == "square" else ranks[:2]  # the mesh of two is there twice
    assert bool((first["ranges"] > 0).all())
    for results in members:
        found = results["trained"][size, case]
        assert torch.equal(found["ranges"], first["ranges"])
        assert torch.equal(found["bits"], first["bits"])
        for name, value in first["state"].items():
            assert torch.equal(found["state"][name], value), name


def test_ranges_stay_apart_where_gradients_do(ranks):
    (own, agreed), (others, agreed_there) = (results["apart"] for results in ranks[:2])
    assert not torch.equal(own, others)
    assert torch.equal(agreed, agreed_there)
    assert bool((agreed >= torch.maximum(own, others) * 0.99).all())


def test_a_layer_that_one_process_alone_calls_has_one_range(ranks):
    first, second = (results["unused"] for results in ranks[:2])
    assert torch.equal(first, second)
    assert bool((first > 0).all())


def test_compiled_graphs_have_the_ranges_of_the_first_process(ranks):
    (own, sent, grads), (others, sent_there, grads_there) = (results["compiled"] for results in ranks[:2])
    assert not torch.equal(own, others)
    assert torch.equal(sent, own)
    assert torch.equal(sent_there, own)
    assert all(map(torch.equal, grads, grads_there))


@pytest.mark.parametrize("wrapped", ["before", "after"])
def test_a_file_keeps_ranges_and_bits(ranks, folder, wrapped):
    for rank, results in enumerate(ranks):
        bits, ranges, taken, taken_ranges = results["files"][wrapped]
        stored = read_packed(f"{folder}/{wrapped}{rank // 2}.safetensors").activations
        assert [each.logit for each in stored.values()] == [float(each) for each in bits] == [float(e) for e in taken]
        assert [each.range for each in stored.values()] == ranges.tolist() == taken_ranges.tolist()


def test_training_goes_on_over_another_number_of_processes(ranks, folder):
    run = Run("learned")
    for batch in batches(2):
        run.step(batch)
    state, ranges = gone_on(None, f"{folder}/checkpoint")
    for found, its_ranges in [(state, ranges), *(results["resumed"] for results in ranks)]:
        torch.testing.assert_close(its_ranges, run.ranges(), rtol=1e-5, atol=0)
        for name, value in whole_state(run.model).items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_mixed_precision_leaves_learned_bits_in_float32(ranks):
    for results in ranks:
        for dtypes, grads in results["bfloat16"].values():
            assert dtypes == {torch.float32}
            assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads)


@pytest.mark.parametrize("attempt", REFUSED, ids=lambda attempt: attempt.__name__)
def test_what_does_not_work_is_refused(ranks, attempt):
    for results in ranks:
        assert REFUSED[attempt] in results["refused"][attempt.__name__]
