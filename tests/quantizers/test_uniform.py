"""UniformQuantizer, and the two functions that quantise one tensor."""

import copy

import pytest
import torch
from diffq_fast.uniform import uniform_quantize, uniform_unquantize
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffq_fast import UniformQuantizer, restore_quantized_state
from support.models import Tied


def seen_weights(model, x):
    """The output, and the weight that each linear layer saw in this forward."""
    seen = {}
    handles = [
        layer.register_forward_hook(lambda m, a, o, name=name: seen.update({name: m.weight.detach().clone()}))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, seen


@pytest.mark.parametrize(("bits", "count"), [(1, 2), (3, 8), (8, 256), (1.5, 2), (9.6, 776), (12, 4096), (15, 32768)])
def test_eval_sees_this_many_levels_and_training_the_float_weights(bits, count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64))
    UniformQuantizer(model, bits=bits, min_size=0)
    weight, x = model[0].weight.detach().clone(), torch.randn(2, 64)
    _, seen = seen_weights(model, x)
    assert torch.equal(seen["0"], weight)
    _, seen = seen_weights(model.eval(), x)
    step = (weight.max() - weight.min()) / (count - 1)
    assert ((seen["0"] - weight).abs() <= step / 2 + 1e-6).all()
    assert torch.equal(seen["0"].aminmax()[0], weight.min())
    positions = (seen["0"].double() - weight.min()) / step
    assert (positions - positions.round()).abs().max() < 0.02
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize("bits", [2, 9.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qat_sees_the_quantised_weight_and_passes_the_gradient_on(bits, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16)).to(dtype)
    UniformQuantizer(model, bits=bits, min_size=0, qat=True)
    weight, x = model[0].weight.detach().clone(), torch.randn(4, 16, dtype=dtype)
    output, seen = seen_weights(model, x)
    output.square().sum().backward()
    _, in_eval = seen_weights(model.eval(), x)
    assert seen["0"].dtype == dtype
    torch.testing.assert_close(seen["0"], in_eval["0"], rtol=0, atol=1e-7)
    assert not torch.equal(seen["0"], weight)
    assert torch.equal(model[0].weight, weight)
    plain = nn.Linear(16, 16).to(dtype)
    with torch.no_grad():
        plain.weight.copy_(in_eval["0"])
        plain.bias.copy_(uniform_unquantize(*uniform_quantize(model[0].bias, bits), bits).to(dtype))
    plain(x).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, plain.weight.grad)


def test_several_quantizers_divide_one_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    weights = [layer.weight.detach().clone() for layer in model]
    UniformQuantizer(model, bits=2, min_size=0, exclude=["1.*"])
    UniformQuantizer(model, bits=5, min_size=0, exclude=["0.*"])
    for _ in range(2):
        _, seen = seen_weights(model.eval(), torch.randn(2, 16))
        assert (len(seen["0"].unique()), len(seen["1"].unique())) == (4, 32)
        assert [torch.equal(layer.weight, weight) for layer, weight in zip(model, weights, strict=True)] == [True] * 2


def test_methods_of_an_optimizer_are_accepted_and_do_nothing():
    model = nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = UniformQuantizer(model, min_size=0)
    quantizer.setup_optimizer(optimizer, lr=1, betas=(0, 1))
    quantizer.no_optimizer()
    quantizer.check_unused()
    quantizer.clear_optimizer(optimizer)
    assert len(optimizer.param_groups) == 1
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_qat_in_a_checkpoint_has_the_gradients_of_the_plain_run(reentrant):
    def gradients(inside):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        model.run = lambda x: nn.Sequential.forward(model, x)
        model.forward = lambda x: (
            checkpoint(model[1:], model[0](x), use_reentrant=reentrant) if inside else model.run(x)
        )
        UniformQuantizer(model, bits=2, min_size=0, qat=True)
        model(torch.randn(3, 16)).square().sum().backward()
        return [param.grad for param in model.parameters()]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [3, 9.6])
def test_qat_and_eval_compile_into_one_graph(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    UniformQuantizer(model, bits=bits, min_size=0, qat=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 16)
    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(compiled(x), model(x))
    model.train()
    compiled(x).sum().backward()
    found = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(found, [param.grad for param in model.parameters()])


def test_plain_training_compiles_without_copies_of_the_weights():
    model = nn.Linear(16, 16)
    UniformQuantizer(model, min_size=0)
    x = torch.randn(2, 16)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


def test_tied_weights_and_copies():
    torch.manual_seed(0)
    model = Tied()
    quantizer = UniformQuantizer(model, bits=3, min_size=0, qat=True)
    assert len(quantizer.get_quantized_state()["quantized"]) == 3
    _, seen = seen_weights(model, torch.randn(2, 32))
    assert torch.equal(seen["a"], seen["b"])
    twin = copy.deepcopy(model)
    x = torch.randn(2, 32)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    with torch.no_grad():
        twin.a.weight.zero_()
    assert not torch.equal(twin(x), model(x))


def test_explicit_quantize_stays_through_eval_until_unquantize_or_training():
    model = nn.Linear(16, 16)
    quantizer = UniformQuantizer(model, bits=2, min_size=0)
    weight, x = model.weight.detach().clone(), torch.randn(2, 16)
    expected = model.eval()(x)
    assert quantizer.quantize()
    assert not quantizer.quantize()
    assert torch.equal(model(x), expected)
    assert len(model.weight.unique()) == 4
    quantizer.unquantize()
    assert torch.equal(model.weight, weight)
    quantizer.quantize()
    model.train()(x)
    assert torch.equal(model.weight, weight)


def test_bake_leaves_a_plain_quantised_model():
    model = nn.Linear(16, 16)
    quantizer = UniformQuantizer(model, bits=2, min_size=0)
    x = torch.randn(2, 16)
    expected = model.eval()(x)
    quantizer.bake()
    assert torch.equal(model.train()(x), expected)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_size_and_repr():
    model = nn.Linear(10, 10, bias=False)
    quantizer = UniformQuantizer(model, bits=9.6, min_size=0, qat=True)
    assert float(quantizer.model_size()) == quantizer.true_model_size() == float(quantizer.model_size(exact=True))
    assert float(quantizer.model_size()) * 2**23 == 9.6 * 100 + 64
    assert repr(quantizer) == f"UniformQuantizer(model={model!r},bits=9.6,min_size=0,qat=True)"


@pytest.mark.parametrize("bits", [0, 0.5, 16, -1, float("nan")])
def test_bits_outside_the_range_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits must be (between 1 and 15|a number), got"):
        UniformQuantizer(nn.Linear(2, 2), bits=bits)


def test_a_state_of_other_bits_or_another_quantizer_is_refused():
    state = UniformQuantizer(nn.Linear(16, 16), bits=4, min_size=0).get_quantized_state()
    with pytest.raises(ValueError, match=r"made with bits=4, this UniformQuantizer has bits=5; make it with bits=4"):
        UniformQuantizer(nn.Linear(16, 16), bits=5, min_size=0).restore_quantized_state(state)
    default = UniformQuantizer(nn.Linear(16, 16), min_size=0).get_quantized_state()
    with pytest.raises(ValueError, match=r"made with bits=8"):
        UniformQuantizer(nn.Linear(16, 16), bits=5, min_size=0).restore_quantized_state(default)
    from diffq_fast import LSQ

    with pytest.raises(ValueError, match="the state is of a UniformQuantizer, this is a LSQ"):
        LSQ(nn.Linear(16, 16), min_size=0).restore_quantized_state(state)


# -- the functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 7.3, 8, 8.5, 15])
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (0, 3)])
def test_uniform_quantize_round_trip(bits, shape):
    torch.manual_seed(0)
    p = torch.randn(shape)
    levels, (lo, hi) = uniform_quantize(p, torch.tensor(bits))
    assert levels.dtype == (torch.uint8 if bits <= 8 else torch.int16)
    assert levels.shape == p.shape
    found = uniform_unquantize(levels, (lo, hi), torch.tensor(bits))
    assert ((found - p).abs() <= (hi - lo) / (int(2**bits) - 1) / 2 + 1e-6).all()
    if p.numel():
        assert (lo, hi) == (float(p.min()), float(p.max()))
        assert int(levels.min()) == 0


def test_uniform_quantize_takes_bits_for_each_row():
    p = torch.randn(3, 100)
    bits = torch.tensor([[1.0], [2.0], [3.0]])
    levels, _ = uniform_quantize(p, bits)
    assert (levels.max(1).values <= torch.tensor([1, 3, 7])).all()
    found = uniform_unquantize(levels, uniform_quantize(p, bits)[1], bits)
    assert (found - p).abs()[2].max() < (found - p).abs()[0].max()


def test_uniform_quantize_of_a_constant_and_of_half_precision():
    levels, bounds = uniform_quantize(torch.full((3,), 0.3, dtype=torch.float16))
    assert levels.tolist() == [0, 0, 0]
    assert torch.equal(uniform_unquantize(levels, bounds).half(), torch.full((3,), 0.3, dtype=torch.float16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_uniform_quantize_refuses_what_is_not_finite(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        uniform_quantize(torch.tensor([0.0, value]))


@pytest.mark.parametrize("bits", [0, 16, torch.tensor([2.0, 20.0])])
def test_uniform_functions_refuse_bits_outside_the_range(bits):
    with pytest.raises(ValueError, match="bits must be between 1 and 15"):
        uniform_quantize(torch.zeros(2), bits)
    with pytest.raises(ValueError, match="bits must be between 1 and 15"):
        uniform_unquantize(torch.zeros(2), (0.0, 1.0), bits)


def test_whole_and_fractional_bits_agree_where_they_meet():
    from diffq_fast import functional
    from diffq_fast.reference.even_levels import dequantize_evenly, level_count, quantize_evenly

    torch.manual_seed(0)
    for bits in range(1, 16):
        weight = torch.randn(5000)
        found = functional.weight_range([weight])
        width = torch.tensor([bits], dtype=torch.uint8)
        levels = functional.quantize([weight], [width], found, group_size=0)
        count = level_count(bits)
        assert torch.equal(quantize_evenly(weight, count, *found[0]), levels[0])
        expected = functional.dequantize(levels, [width], found, group_size=0)[0]
        assert torch.equal(dequantize_evenly(levels[0], count, *found[0], torch.float32), expected)


def test_restore_gives_the_weights_of_eval():
    torch.manual_seed(0)
    model, other = nn.Linear(32, 32), nn.Linear(32, 32)
    quantizer = UniformQuantizer(model, bits=9.6, min_size=0)
    restore_quantized_state(other, quantizer.get_quantized_state())
    with quantizer.enter_quantize():
        assert torch.equal(other.weight, model.weight)
