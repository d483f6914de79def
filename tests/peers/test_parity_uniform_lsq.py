"""UniformQuantizer and LSQ give what diffq 0.2.4 gives: the installed peer, run as a black box."""

import diffq_fast.uniform
import pytest
import torch
from torch import nn

import diffq_fast

pytestmark = pytest.mark.peer


def network(kind):
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 16))
    if kind == "tiny":  # few elements: the scale in LSQ's forward differs from the parameter in the last bit
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))


def run(package, name, kind, arguments, steps=5):
    """Outputs of training steps and of a last eval forward, all parameters, and the size."""
    torch.manual_seed(11)
    model = network(kind)
    x = {"conv": torch.randn(4, 4, 8, 8), "tiny": torch.randn(4, 3)}.get(kind, torch.randn(4, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    quantizer = getattr(package, name)(model, min_size=0, **arguments)
    if name == "LSQ":
        quantizer.setup_optimizer(optimizer, lr=1e-2)
    outputs = []
    for _ in range(steps):
        output = model(x)
        outputs.append(output.detach())
        optimizer.zero_grad()
        output.square().mean().backward()
        optimizer.step()
    outputs.append(model.eval()(x).detach())
    return outputs, dict(model.named_parameters()), quantizer.true_model_size()


@pytest.mark.parametrize("kind", ["linear", "conv", "tiny"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("LSQ", {"bits": bits}) for bits in (2, 3, 4, 8, 12)]
    + [("UniformQuantizer", {"bits": bits, "qat": qat}) for bits in (1, 3, 8, 13) for qat in (True, False)],
    ids=str,
)
def test_forward_gradients_and_steps_equal_the_peer(kind, name, arguments):
    import diffq

    found, params, size = run(diffq_fast, name, kind, arguments, steps=1)
    expected, _, expected_size = run(diffq, name, kind, arguments, steps=1)
    assert torch.equal(found[0], expected[0])
    assert size == expected_size
    found, params, _ = run(diffq_fast, name, kind, arguments)
    expected, peers, _ = run(diffq, name, kind, arguments)
    for output, wanted in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-6, atol=1e-6)
    assert list(params) == list(peers)
    for key, peer in peers.items():
        torch.testing.assert_close(params[key], peer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "tiny"])
@pytest.mark.parametrize("bits", [2, 3, 8, 15])
@pytest.mark.parametrize("name", ["LSQ", "UniformQuantizer"])
def test_eval_equals_the_peer_bit_for_bit(name, kind, bits):
    import diffq

    for seed in range(10):
        outputs = []
        for package in (diffq_fast, diffq):
            torch.manual_seed(seed)
            model = network(kind)
            getattr(package, name)(model, bits=bits, min_size=0)
            outputs.append(model.eval()(torch.randn(4, model[0].in_features)))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 11, 15])
def test_functions_equal_the_peer(bits):
    from diffq.uniform import uniform_quantize, uniform_unquantize

    torch.manual_seed(0)
    p, bits = torch.randn(33, 7), torch.tensor(float(bits))
    levels, bounds = diffq_fast.uniform.uniform_quantize(p, bits)
    expected, expected_bounds = uniform_quantize(p, bits)
    assert levels.dtype == expected.dtype
    assert torch.equal(levels, expected)
    assert bounds == expected_bounds
    found = diffq_fast.uniform.uniform_unquantize(levels, bounds, bits)
    assert torch.equal(found, uniform_unquantize(expected, expected_bounds, bits))
