"""``rng="torch"`` gives what diffq 0.2.4 gives under the same seed: the installed peer, run as a black box."""

import random
from functools import partial

import pytest
import torch
from torch import nn

from diffq_fast import DiffQuantizer

pytestmark = pytest.mark.peer


def configurations(count):
    choose = random.Random(7)
    for _ in range(count):
        group_size = choose.choice([1, 2, 4, 8, 16])
        min_bits = choose.choice([2, 2, 3, 2.5])
        yield {
            "group_size": group_size,
            "min_bits": min_bits,
            "max_bits": choose.choice([8, 12, 15, 9.5]),
            "init_bits": choose.choice([4, 5, 6.3]),
            "param": choose.choice(["bits", "noise"]),
            "noise": choose.choice(["uniform", "gaussian"]),
        }


def network(kind):
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 16))
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))


def run(quantizer_class, kind, arguments, steps):
    """Losses, first forward, and state after some optimizer steps."""
    torch.manual_seed(11)
    model = network(kind)
    x = torch.randn(4, 4, 8, 8) if kind == "conv" else torch.randn(4, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    quantizer = quantizer_class(model, min_size=0, **arguments)
    quantizer.setup_optimizer(optimizer, lr=1e-2)
    torch.manual_seed(12)
    outputs = []
    for _ in range(steps):
        output = model(x)
        outputs.append(output.detach())
        loss = output.square().mean() + 3 * quantizer.model_size()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    outputs.append(model.eval()(x).detach())
    return outputs, dict(model.named_parameters())


@pytest.mark.parametrize("arguments", list(configurations(50)), ids=lambda value: "-".join(map(str, value.values())))
def test_forward_gradients_and_steps_equal_the_peer(arguments):
    from diffq import DiffQuantizer as Peer

    for kind in ("linear", "conv"):
        ours = partial(DiffQuantizer, rng="torch")
        outputs, _ = run(ours, kind, arguments, steps=1)
        expected, _ = run(Peer, kind, arguments, steps=1)
        assert torch.equal(outputs[0], expected[0])
        outputs, params = run(ours, kind, arguments, steps=5)
        expected, peers = run(Peer, kind, arguments, steps=5)
        for found, wanted in zip(outputs[:-1], expected[:-1], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        for name, peer in peers.items():
            torch.testing.assert_close(params[name], peer, rtol=1e-6, atol=1e-6)


def test_sizes_equal_the_peer():
    from diffq import DiffQuantizer as Peer

    sizes = []
    for quantizer_class in (DiffQuantizer, Peer):
        torch.manual_seed(0)
        quantizer = quantizer_class(nn.Linear(256, 256), min_size=0, group_size=8)
        sizes.append((quantizer.true_model_size(), quantizer.packed_model_size(), quantizer.compressed_model_size()))
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] == sizes[1][1]
    assert sizes[0][2] == pytest.approx(sizes[1][2], rel=5e-3)
