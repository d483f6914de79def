"""LSQ: weights that are integers times a learned scale."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffq_fast import LSQ, restore_quantized_state
from support.models import Tied


def attach(model, **arguments):
    quantizer = LSQ(model, **{"min_size": 0, "bits": 4, **arguments})
    quantizer.no_optimizer()
    return quantizer


def seen_weight(layer, model, x):
    seen = []
    handle = layer.register_forward_hook(lambda m, a, o: seen.append(m.weight.detach().clone()))
    output = model(x)
    handle.remove()
    return output, seen[0]


def defined(weight, scale, bits):
    """The training weight by its definition, from leaves whose gradients are wanted."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    k = 1 / (weight.numel() * high) ** 0.5
    damped = (scale - scale * k).detach() + scale * k
    index = (weight / damped).clamp(low, high)
    return (index + (index.round() - index).detach()) * damped


@pytest.mark.parametrize("bits", [2, 3, 8, 15])
def test_forward_and_gradients_are_the_definition(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24, bias=False))
    attach(model, bits=bits)
    x = torch.randn(3, 16)
    output, seen = seen_weight(model[0], model, x)
    output.square().sum().backward()
    weight, scale = (model[0]._parameters[name].detach().clone().requires_grad_() for name in ("weight", "weight_lsq"))
    expected = defined(weight, scale, bits)
    nn.functional.linear(x, expected).square().sum().backward()
    assert torch.equal(seen, expected)
    torch.testing.assert_close(model[0].weight.grad, weight.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model[0].weight_lsq.grad, scale.grad, rtol=1e-6, atol=1e-6)
    assert scale.grad != 0


def test_elements_beyond_the_last_index_have_no_gradient():
    model = nn.Linear(4, 4, bias=False)
    attach(model, bits=2)
    with torch.no_grad():
        model.weight_lsq.fill_(0.1)
        model.weight.zero_()
        model.weight[0, 0] = 5.0
        model.weight[0, 1] = -5.0
    model(torch.ones(1, 4)).sum().backward()
    assert model.weight.grad[0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_scale_starts_at_twice_the_mean_magnitude(bits):
    model = nn.Linear(16, 16)
    attach(model, bits=bits)
    assert model.weight_lsq.shape == ()
    expected = 2 * model.weight.detach().abs().mean() / (2 ** (bits - 1)) ** 0.5
    assert torch.equal(model.weight_lsq, expected)


def test_eval_sees_indices_times_the_scale():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    quantizer = attach(model, bits=3)
    x = torch.randn(2, 16)
    _, seen = seen_weight(model[0], model.eval(), x)
    indices = seen / model[0].weight_lsq
    assert indices.min() >= -4
    assert indices.max() <= 3
    torch.testing.assert_close(indices, indices.round(), rtol=0, atol=1e-5)
    with quantizer.enter_quantize():
        assert torch.equal(model[0].weight, seen)


def test_eval_follows_weight_and_scale():
    model = nn.Sequential(nn.Linear(16, 16))
    attach(model)
    x = torch.randn(2, 16)
    before = model.eval()(x)
    assert torch.equal(model(x), before)
    with torch.no_grad():
        model[0].weight_lsq.mul_(1.5)
    changed = model(x)
    assert not torch.equal(changed, before)
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert not torch.equal(model(x), changed)


def test_scales_enter_the_optimizer_with_its_own_rate_and_decay():
    model = nn.Linear(16, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, weight_decay=0.5)
    quantizer = LSQ(model, min_size=0)
    with pytest.raises(RuntimeError, match="LSQ: call setup_optimizer"):
        model(torch.randn(1, 16))
    quantizer.setup_optimizer(optimizer, betas=(0.5, 0.9))
    group = optimizer.param_groups[-1]
    assert [id(param) for param in group["params"]] == [id(model.weight_lsq), id(model.bias_lsq)]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.3, 0.5, (0.5, 0.9))
    with pytest.raises(RuntimeError, match="an optimizer was set up already"):
        quantizer.setup_optimizer(optimizer)
    with pytest.raises(TypeError):
        quantizer.setup_optimizer(optimizer, 0.1)
    quantizer.clear_optimizer(optimizer)
    assert optimizer.param_groups[-1]["params"] == []


def test_an_optimizer_that_holds_the_scales_is_refused():
    model = nn.Linear(16, 16)
    quantizer = LSQ(model, min_size=0)
    with pytest.raises(RuntimeError, match="create the optimizer before the quantizer"):
        quantizer.setup_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match=r"LSQ: the model already has a parameter weight_lsq"):
        LSQ(model)
    LSQ(model, suffix="_other")


def test_training_moves_weights_and_scales_and_lowers_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    LSQ(model, bits=3, min_size=0).setup_optimizer(optimizer)
    x = torch.randn(256, 8)
    target = x[:, :1] * x[:, 1:2]
    scales = [model[0].weight_lsq.item(), model[2].weight_lsq.item()]
    losses = []
    for _ in range(150):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert scales != [model[0].weight_lsq.item(), model[2].weight_lsq.item()]


class Regions(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.embed, self.inner, self.head = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.head.weight = self.embed.weight
        self.mode = mode

    def forward(self, x):
        x = self.embed(x)
        body = nn.Sequential(self.inner, nn.ReLU())
        x = body(x) if self.mode is None else checkpoint(body, x, use_reentrant=self.mode)
        return self.head(x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_have_the_gradients_of_the_plain_run(reentrant):
    def gradients(mode):
        torch.manual_seed(0)
        model = Regions(mode)
        attach(model, bits=3)
        model(torch.randn(3, 16)).square().sum().backward()
        return {name: param.grad for name, param in model.named_parameters()}

    plain, found = gradients(None), gradients(reentrant)
    for name, grad in plain.items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-6)


def test_train_and_eval_compile_into_one_graph():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    attach(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 16)
    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(compiled(x), model(x))
    model.train()
    compiled(x).square().sum().backward()
    found = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(found, [param.grad for param in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_their_dtype(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    attach(model)
    model.to(dtype)
    x = torch.randn(2, 16, dtype=dtype)
    output, seen = seen_weight(model[0], model, x)
    output.float().square().sum().backward()
    assert seen.dtype == model[0].weight.grad.dtype == dtype
    assert model[0].weight_lsq.grad.dtype == torch.float32  # what is learned stays float32
    assert model[0].weight_lsq.grad.isfinite()
    _, in_eval = seen_weight(model[0], model.eval(), x)
    torch.testing.assert_close(in_eval, seen)


def test_tied_weights_share_scale_and_copies_are_independent():
    torch.manual_seed(0)
    model = Tied()
    quantizer = attach(model)
    assert quantizer._qparams[2].other is quantizer._qparams[0]
    assert quantizer._qparams[2].scale is model.a.weight_lsq
    assert not hasattr(model.b, "weight_lsq")
    twin = copy.deepcopy(model)
    x = torch.randn(2, 32)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin.a.weight_lsq.mul_(3)
    assert not torch.equal(twin(x), model(x))
    state = quantizer.get_quantized_state()
    assert len(state["quantized"]) == 3
    other = Tied()
    restore_quantized_state(other, state)
    assert other.b.weight is other.a.weight
    quantizer.detach()
    assert [name for name, _ in model.named_parameters()] == ["a.weight", "a.bias", "b.bias"]


def test_lstm_weights_are_quantised():
    torch.manual_seed(0)
    model = nn.LSTM(8, 8)
    quantizer = attach(model, bits=2)
    x = torch.randn(3, 1, 8)
    plain = nn.LSTM(8, 8)
    with quantizer.enter_quantize():
        plain.load_state_dict({name: value for name, value in model.state_dict().items() if "_lsq" not in name})
    assert torch.equal(model.eval()(x)[0], plain(x)[0])
    model.train()(x)[0].sum().backward()
    assert model.weight_hh_l0_lsq.grad != 0


def test_restore_on_a_live_quantizer_brings_the_scale():
    torch.manual_seed(0)
    model, other = nn.Linear(16, 16), nn.Linear(16, 16)
    source, quantizer = attach(model), attach(other)
    with torch.no_grad():
        model.weight_lsq.mul_(1.7)
    quantizer.restore_quantized_state(source.get_quantized_state())
    assert torch.equal(other.weight_lsq, model.weight_lsq)
    x = torch.randn(2, 16)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_size_and_repr():
    model = nn.Linear(10, 10, bias=False)
    quantizer = LSQ(model, bits=3, min_size=0)
    assert float(quantizer.model_size()) * 2**23 == 332
    assert quantizer.true_model_size() == float(quantizer.model_size(exact=True))
    assert repr(quantizer) == f"LSQ(model={model!r},bits=3,min_size=0)"


@pytest.mark.parametrize("bits", [0, 4.5, 16])
def test_bits_that_cannot_be_are_refused(bits):
    with pytest.raises(ValueError, match="LSQ: bits must be a whole number from 2 to 15"):
        LSQ(nn.Linear(2, 2), bits=bits)


def test_a_broken_scale_is_refused_by_exports():
    model = nn.Linear(4, 4)
    quantizer = attach(model)
    with torch.no_grad():
        model.weight_lsq.fill_(float("nan"))
    with pytest.raises(ValueError, match="the scale of weight is NaN or infinite"):
        quantizer.get_quantized_state()
    with pytest.raises(ValueError, match="the scale of weight is NaN or infinite"):
        quantizer.export_weights()
