"""A small model trained by fully_shard and tensor parallelism together, or in one process."""

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

from diffq_fast import DiffQuantizer, save
from support.sharded_runs import PLAN, QUANTIZERS, Mlp, batches, mean_over, own_rows, whole, whole_state

SPLIT = ("bias", "up.*", "down.*")
MADE = {
    **QUANTIZERS,
    "enter alone": lambda model: DiffQuantizer(model, group_size=4, init_bits=4, min_size=0, exclude=SPLIT),
}


class Run:
    """A model and its quantizer, made by two steps of sharding: the quantizer is attached first, between them or last.

    ``mesh``: data (for HSDP two dimensions) and tensor; None: one process. ``by_layers``: fully_shard each
    layer, not the model alone.
    """

    def __init__(self, kind, mesh=None, order="last", checkpointed=False, by_layers=True, **options):
        torch.manual_seed(0)
        self.model, self.data = Mlp(checkpointed), None if mesh is None else mesh[mesh.mesh_dim_names[:-1]]
        if order == "first":
            self.quantizer = MADE[kind](self.model)
        if mesh is not None:
            parallelize_module(self.model, mesh["tensor"], PLAN)
        if order == "between":
            self.quantizer = MADE[kind](self.model)
        if mesh is not None:
            for layer in (self.model.enter, self.model.up, self.model.down) if by_layers else ():
                fully_shard(layer, mesh=self.data, **options)
            fully_shard(self.model, mesh=self.data, **options)
        if order == "last":
            self.quantizer = MADE[kind](self.model)
        groups = self.quantizer.parameter_groups(lr=1e-2, bits_lr=0.05)
        self.optimizer = torch.optim.Adam(groups, foreach=False)
        torch.manual_seed(1 if mesh is None or not any(mesh.get_coordinate()) else 99)

    def step(self, batch, penalty, after=lambda: None):
        loss = self.model(own_rows(batch, self.data)).float().square().mean()
        (loss + penalty()).backward()
        grads = {name: whole(param.grad) for name, param in self.model.named_parameters()}
        self.optimizer.step()
        after()
        self.optimizer.zero_grad()
        return mean_over(whole(loss), self.data), grads

    def sized(self, batch):
        return self.step(batch, lambda: 30 * self.quantizer.model_size())

    def trained(self, frozen=None, path=None):
        """A short training: losses, sizes, the noise that was seen, gradients of the first step, the end's state."""
        seen = {name: [] for name in ("enter", "up", "down")}
        for name, noted in seen.items():
            layer = getattr(self.model, name)
            layer.register_forward_pre_hook(lambda layer, args, noted=noted: noted.append(whole(layer.weight)))
        steps, sizes = [], []
        for number, batch in enumerate(batches()):
            if number == 2 and frozen is not None:
                self.quantizer.freeze_bits(straight_through=frozen)
            steps.append(self.sized(batch))
            sizes.append(float(self.quantizer.model_size().detach()))
        self.model.eval()
        with torch.no_grad():
            out = whole(self.model(batches()[0]))
        if path is not None:
            save(self.quantizer, path)
        return {
            "losses": [loss for loss, _ in steps],
            "sizes": sizes,
            "exact": self.quantizer.true_model_size(),
            "seen": {name: noted[0] for name, noted in seen.items()},
            "grads": steps[0][1],
            "out": out,
            "state": whole_state(self.model),
        }


def assert_equal_runs(found, one, rank):
    """What a rank found is what one process found: the noise bit for bit, all else to rounding."""
    for name, weight in one["seen"].items():
        assert torch.equal(found["seen"][name], weight), (rank, name)  # the noise, bit for bit
    assert found["losses"] == pytest.approx(one["losses"], rel=1e-4), rank
    assert found["sizes"] == pytest.approx(one["sizes"], rel=1e-5), rank
    assert found["exact"] == pytest.approx(one["exact"], rel=1e-6), rank
    torch.testing.assert_close(found["grads"], one["grads"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["state"], one["state"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["out"], one["out"], rtol=1e-3, atol=1e-4)
