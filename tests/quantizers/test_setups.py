"""Real training set-ups: mixed precision, parametrisations, EMA, other devices, moving, functional calls."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from diffq_fast import DiffQuantizer
from support.models import mlp


def attach(model, **arguments):
    quantizer = DiffQuantizer(model, **{"min_size": 0, "group_size": 8, **arguments})
    quantizer.no_optimizer()
    return quantizer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_grad_scaler_and_a_second_optimizer_survives_a_nan(dtype):
    """The scaler skips the weights' step; the logits have an optimizer of their own that it does not know."""
    torch.manual_seed(0)
    model = mlp()
    quantizer = attach(model)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "_diffq" not in n], lr=0.1)
    logits = torch.optim.Adam(quantizer.learned_parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        with torch.autocast("cpu", dtype=dtype):
            loss = model(torch.randn(4, 64)).float().square().mean()
        loss = loss * float("nan") if step == 1 else loss
        optimizer.zero_grad()
        logits.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        logits.step()
        scaler.update()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert quantizer.model_size().isfinite()
        assert any("non-finite" in str(w.message) for w in told) == (step == 1)
    assert all(param.isfinite().all() for param in model.parameters())


def test_autocast_output_has_the_lower_dtype_and_float32_gradients():
    model = mlp()
    attach(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.randn(4, 64))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert model[0].weight.grad.dtype == model[0].weight_diffq.grad.dtype == torch.float32


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4))
    quantizer = attach(model, init_bits=4)
    assert any("parametrizations.weight.original" in name for name in quantizer.bits())
    x = torch.randn(3, 16)
    assert not torch.equal(model(x), model(x))
    model(x).sum().backward()
    logits = [p for n, p in model.named_parameters() if n.startswith("0.param") and n.endswith("_diffq")]
    assert logits
    assert any(logit.grad.abs().sum() > 0 for logit in logits)
    model.eval()
    expected = model(x)
    quantizer.bake()
    torch.testing.assert_close(model(x), expected)


def test_old_style_weight_norm():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(16, 16)), nn.Linear(16, 4))
    quantizer = attach(model, init_bits=4)
    x = torch.randn(3, 16)
    assert "0.weight_v" in quantizer.bits()
    assert not torch.equal(model(x), model(x))
    model(x).sum().backward()
    assert model[0].weight_v_diffq.grad.abs().sum() > 0
    assert torch.equal(model.eval()(x), model(x))


def test_an_averaged_copy_follows_its_own_weights():
    torch.manual_seed(0)
    model = mlp()
    attach(model, init_bits=4)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(3, 64)
    average.eval()
    outputs = []
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
        outputs.append(average(x))
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], average(x))
    weight = average.module[0].weight
    assert torch.equal(weight, dict(average.module.named_parameters())["0.weight"])


def test_moving_to_another_dtype_and_back_is_seen_by_eval():
    torch.manual_seed(0)
    model = mlp().eval()
    attach(model, init_bits=6)
    x = torch.randn(3, 64)
    before = model(x)
    assert model.double()(x.double()).dtype == torch.float64
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    after = model.float()(x)
    torch.testing.assert_close(after, before, rtol=0.1, atol=0.1)
    assert not torch.equal(after, before)  # bfloat16 rounded the weights


def test_a_float64_model_trains():
    model = mlp().double()
    attach(model)
    model(torch.randn(2, 64, dtype=torch.float64)).sum().backward()
    assert model[0].weight.grad.dtype == torch.float64


def test_a_meta_model_can_be_attached_and_filled():
    with torch.device("meta"):
        model = mlp()
    quantizer = attach(model)
    assert model(torch.randn(2, 64, device="meta")).device.type == "meta"
    source = mlp()
    attach(source)
    model.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(2, 64)
    assert torch.equal(model.eval()(x), source.eval()(x))
    assert quantizer.true_model_size() > 0


def test_functional_call_uses_the_given_parameters():
    torch.manual_seed(0)
    model = mlp()
    attach(model)
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters() if "_diffq" not in name}
    assert torch.func.functional_call(model, zeros, (torch.randn(2, 64),)).abs().sum() == 0
    assert model(torch.randn(2, 64)).abs().sum() > 0


def test_gradient_penalty():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    attach(model, init_bits=5)
    x = torch.randn(4, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[0].weight_diffq.grad.abs().sum() > 0


def test_embedding_conv_and_transposed_conv_weights():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"embed": nn.Embedding(12, 16), "conv": nn.Conv1d(16, 8, 3), "up": nn.ConvTranspose1d(8, 4, 3)}
    )
    model.forward = lambda x: model["up"](model["conv"](model["embed"](x).transpose(1, 2)))
    quantizer = attach(model, init_bits=4)
    x = torch.randint(0, 12, (2, 9))
    model(x).sum().backward()
    for entry in quantizer._qparams:
        assert entry.logit.grad.abs().sum() > 0, entry.full_name
    assert torch.equal(model.eval()(x), model(x))


def test_gru_with_one_direction_follows_an_optimizer_step_in_eval():
    torch.manual_seed(0)
    model = nn.GRU(8, 8)
    attach(model, init_bits=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(3, 2, 8)
    before = model.eval()(x)[0].detach()
    model.train()(x)[0].square().sum().backward()
    optimizer.step()
    after = model.eval()(x)[0].detach()
    assert not torch.equal(before, after)
    for name, flat in zip(model._flat_weights_names, model._flat_weights, strict=True):
        assert flat is getattr(model, name)


def test_a_copy_made_inside_a_forward_holds_no_noise():
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            self.__dict__["twin"] = {name: value.clone() for name, value in self.state_dict().items()}
            return self.inner(x)

    model = Copies()
    attach(model, init_bits=3)
    model(torch.randn(2, 8))
    assert torch.equal(model.twin["inner.weight"], model.inner.weight)


def test_deepcopy_of_a_quantised_model_unquantises_on_its_own():
    model = nn.Linear(8, 8)
    quantizer = attach(model, init_bits=3)
    weight = model.weight.detach().clone()
    quantizer.quantize()
    twin = copy.deepcopy(quantizer)
    twin.unquantize()
    assert torch.equal(twin.model.weight, weight)
    assert not torch.equal(model.weight, weight)
