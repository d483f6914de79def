"""DistributedDataParallel on two processes: ranks draw their own noise and agree on weights and logits."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from diffq_fast import DiffQuantizer, SizeTarget
from diffq_fast.quantizers import noise
from support.checkpointed import ResidualNet


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_rank(rank: int, port: int, case: str, path: str) -> None:
    """One of the two processes.

    DistributedDataParallel keeps gloo's threads alive even after the process group is destroyed and all is collected.
    One that still works while Python ends is torn down in the middle of its C++ code, which aborts the process now
    and then ("terminate called without an active exception"). So the process ends at once, without that end.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    train(rank, case, path)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def train(rank: int, case: str, path: str) -> None:
    noise.BUCKET_BYTES = 1024  # several buckets, as a large model has
    torch.manual_seed(0)
    model = ResidualNet("checkpointed" if case == "checkpointed" else "plain")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    noisy_dtype = "auto" if case == "autocast" else None
    options = {"group_size": 8, "init_bits": 5, "noisy_dtype": noisy_dtype, "learn_range": case == "ranges"}
    quantizer = DiffQuantizer(model, min_size=0, **options)
    quantizer.setup_optimizer(optimizer, lr=0.1)
    if case == "compiled":
        model.compile(backend="aot_eager")
    # Dynamo wants no bucket below the first, which is 1 MB.
    parallel = DistributedDataParallel(model, bucket_cap_mb=25 if case == "compiled" else 0.001)
    ready: list[str] = []
    for name, param in model.named_parameters():
        param.register_post_accumulate_grad_hook(lambda _, name=name: ready.append(name))
    target = None
    if case in ("target", "rounded", "ranges"):
        schedule = {"total_steps": 4, "freeze_at": 0.75, "straight_through": case != "target"}
        target = SizeTarget(quantizer, bits_per_weight=6, **schedule)
    torch.manual_seed(rank + 1)
    for step in range(4):
        x = torch.randn(4, 16)
        if case == "no_sync" and step % 2 == 0:
            with parallel.no_sync():
                (parallel(x).square().mean() + quantizer.model_size()).backward()
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            out = parallel(x)
        (out.float().square().mean() + quantizer.model_size()).backward()
        optimizer.step()
        if target is not None:
            target.step()  # freezes at the third step, so that the fourth has frozen bits
        optimizer.zero_grad()
    key = noise.functional.draw_key(torch.zeros(1))
    torch.save(({n: p.detach() for n, p in model.named_parameters()}, ready, key), f"{path}/{rank}.pt")


@pytest.mark.parametrize(
    "case", ["plain", "checkpointed", "no_sync", "compiled", "autocast", "target", "rounded", "ranges"]
)
def test_ranks_agree_after_training(case, tmp_path):
    mp.spawn(run_rank, (free_port(), case, str(tmp_path)), nprocs=2)
    (first, ready, key0), (second, _, key1) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.manual_seed(0)
    start = dict(ResidualNet("plain").named_parameters())
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name, value in start.items():
        assert not torch.equal(value, first[name]), name
    assert first["blocks.0.inner.weight_diffq"].std() > 0
    assert key0 != key1
    if case in ("plain", "checkpointed", "autocast", "ranges"):
        # The last block's gradients are ready before the first block's: DDP can overlap.
        assert ready.index("blocks.2.inner.weight") < ready.index("blocks.0.inner.weight")
