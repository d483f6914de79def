"""Operators on DTensors, over two processes, against the whole tensors in one."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import diffq_fast.functional as functional
from support.sharded_runs import whole

ops = torch.ops.diffq_fast
NO_STRATEGY = {"draw_key", "encode_levels"}  # and what returns lists


def arguments():
    """Of each operator; tensors whose first dimension two processes can split."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(8, 16, generator=generator)
    widths = torch.randint(2, 6, (16,), generator=generator).to(torch.uint8)
    ranges = torch.tensor([[-4.0, 4.0]])
    levels = torch.randint(0, 4, (128,), generator=generator).int()
    words = ops.pack(levels, widths, 8, functional.packed_word_count(widths, 128, 8))
    planes = ops.pack_planes(levels, 3, 32, 4)
    row_widths = torch.full((8, 2), 3, dtype=torch.uint8)
    rows = functional.pack_rows(levels.view(8, 16), row_widths, 8)
    in_memory = (*rows, torch.ones(16), torch.zeros(16), [16, 8, 8, False, 0])
    yield "widths_from_logits", (weight, 2.0, 15.0, "bits", 0.0)
    yield "count_widths", (widths,)
    yield "unpack_rows", (torch.tensor([1, 7, 0, 3]), *in_memory)
    yield "packed_linear", (weight, *in_memory)
    yield "weight_range", ([weight, weight * 2], 8, True)
    yield "weight_sizes", ([weight[0], weight[1]], [128, 128], 8, 2.0, 15.0, "bits", 0.0)
    yield "noise", (torch.tensor(11), 3, 0, 20, "uniform")
    yield "pack", (levels, widths, 8, len(words))
    yield "unpack", (words, widths, 8, 128)
    yield "quantize_pack", (weight, widths, ranges, 8, False, len(words))
    yield "unpack_dequantize", (words, widths, ranges, 8, False, [8, 16], torch.float32)
    yield "pack_planes", (levels, 3, 32, 4)
    yield "pack_planes_seen", (levels, 3, 32, 4)
    yield "unpack_planes", (planes, 128)
    yield "decode_levels", (functional.encode_levels(levels), 128)
    yield "pack_rows", (levels.view(8, 16), row_widths, rows[1], 8, len(rows[0]))


def split(value, mesh):
    """A DTensor of each tensor, split along its first dimension where two, and gloo, can."""
    if isinstance(value, list):
        return [split(each, mesh) for each in value]
    if not isinstance(value, torch.Tensor):
        return value
    even = value.dim() > 0 and len(value) % 2 == 0 and value.dtype != torch.int16
    return DTensor.from_local(
        value.chunk(2)[mesh.get_local_rank()] if even else value, mesh, [Shard(0) if even else Replicate()]
    )


def run(_path):
    import diffq_fast.integrations.distributed as strategies

    mesh = init_device_mesh("cpu", (2,))
    made = {}
    for name, given in arguments():
        results = getattr(ops, name)(*(split(value, mesh) for value in given))
        results = results if isinstance(results, tuple) else (results,)
        placements = [str(each.placements[0]) for each in results]
        made[name] = [whole(each) for each in results], placements
    return made, sorted(strategies.OPERATORS)


pytestmark = pytest.mark.processes(run=run, world=2)


def test_results_are_those_of_one_process(ranks):
    for made, _names in ranks:
        for name, given in arguments():
            results = getattr(ops, name)(*given)
            results = results if isinstance(results, tuple) else (results,)
            assert all(map(torch.equal, made[name][0], results)), name


def test_rows_and_elements_stay_split(ranks):
    split_results = {"widths_from_logits": "S(0)", "unpack_rows": "S(0)", "packed_linear": "S(0)"}
    for made, _names in ranks:
        assert {name: made[name][1][0] for name in split_results} == split_results
        assert made["count_widths"][1] == ["P(sum)"]


def test_each_operator_that_returns_tensors_has_a_strategy(ranks):
    returns_tensors = {
        schema.name.removeprefix("diffq_fast::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("diffq_fast::") and all(str(each.type) == "Tensor" for each in schema.returns)
    }
    assert set(ranks[0][1]) == returns_tensors - NO_STRATEGY == {name for name, _given in arguments()}
