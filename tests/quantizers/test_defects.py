"""What diffq 0.2.4 gets wrong, one test for each defect that concerns DiffQuantizer.

Activation checkpointing has tests/quantizers/test_checkpointing.py; sizes on disk have tests/packed/test_cost.py;
reading without running code has tests/legacy/test_state.py. tests/quantizers/test_defects_bite.py runs the checks that
take a package on diffq too.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import diffq_fast
from diffq_fast import DiffQuantizer, restore_quantized_state
from support.models import Tied


class Calls(TorchDispatchMode):
    """Counts calls of operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def attach(model, package=diffq_fast, **arguments):
    quantizer = package.DiffQuantizer(model, **{"min_size": 0, "group_size": 8, **arguments})
    quantizer.no_optimizer()
    return quantizer


def set_bits(quantizer, *bits):
    """Give consecutive groups of every weight the numbers of bits ``bits``, over and over."""
    for entry in quantizer._qparams:
        count = entry.logit.numel()
        values = torch.tensor(bits, dtype=torch.float64).repeat(-(-count // len(bits)))[:count]
        margin = torch.tensor(1e-3)
        values = values.clamp(quantizer.min_bits + margin, quantizer.max_bits - margin)
        with torch.no_grad():
            entry.logit.copy_(
                diffq_fast.functional.logits_from_bits(values, quantizer.min_bits, quantizer.max_bits, quantizer.param)
            )


def round_trip(make, bits=(2, 5, 9, 15), package=diffq_fast, **arguments):
    """Read the state of a model into another one, which must show the same quantised weights; returns the state."""
    torch.manual_seed(0)
    model, other = make(), make()
    quantizer = attach(model, package, **arguments)
    set_bits(quantizer, *bits)
    state = quantizer.get_quantized_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package.restore_quantized_state(other, state)
    with quantizer.enter_quantize():
        for name, param in other.named_parameters():
            assert torch.equal(model.state_dict()[name], param), f"{name} came back changed"
    return state


@pytest.mark.filterwarnings("ignore:legacy state")
def test_groups_of_15_bits_come_back():
    state = round_trip(lambda: nn.Linear(64, 64))
    assert len(state["quantized"][0][0]) == 15


def test_writing_a_legacy_state_with_15_bits_says_that_diffq_cannot_read_it():
    quantizer = attach(nn.Linear(64, 64))
    set_bits(quantizer, 15)
    with pytest.warns(UserWarning, match="15"):
        quantizer.get_quantized_state()


@pytest.mark.filterwarnings("ignore:legacy state")
@pytest.mark.parametrize(
    "arguments",
    [{"group_size": 0}, {"min_bits": 2.5}, {"min_bits": 4, "extra_bits": -2, "init_bits": 6}, {"extra_bits": 1.5}],
)
def test_one_group_float_min_bits_and_widths_below_min_bits_come_back(arguments):
    round_trip(lambda: nn.Linear(32, 16), **arguments)


def check_tied_parameters_enter_the_optimizer_once(package):
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters())
    package.DiffQuantizer(model, min_size=0, group_size=8).setup_optimizer(optimizer)
    logits = optimizer.param_groups[-1]["params"]
    assert len(logits) == len({id(logit) for logit in logits}) == 3, f"{len(logits)} logits in the group"


def check_tied_parameters_restore(package):
    other = Tied()
    package.restore_quantized_state(other, attach(Tied(), package).get_quantized_state())
    assert other.b.weight is other.a.weight


def check_tied_parameters_detach(package):
    model = Tied()
    attach(model, package).detach()
    assert [name for name, _ in model.named_parameters()] == ["a.weight", "a.bias", "b.bias"]


def test_tied_parameters_restore_detach_and_enter_the_optimizer_once():
    check_tied_parameters_enter_the_optimizer_once(diffq_fast)
    check_tied_parameters_restore(diffq_fast)
    check_tied_parameters_detach(diffq_fast)


def test_tied_weights_share_width_and_noise():
    model = Tied()
    quantizer = attach(model)
    seen = {}
    for name in ("a", "b"):
        getattr(model, name).register_forward_hook(lambda m, a, o, name=name: seen.update({name: m.weight.clone()}))
    model(torch.randn(2, 32))
    assert torch.equal(seen["a"], seen["b"])
    assert not torch.equal(seen["a"], model.a.weight)
    assert quantizer._qparams[2].other is quantizer._qparams[0]


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_buffers_are_in_the_packed_file_and_named_by_a_legacy_restore(tmp_path):
    model = conv_net()
    quantizer = attach(model, min_size=0.0005)
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8) * 3 + 1)
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    other = conv_net()
    diffq_fast.load(tmp_path / "model.safetensors", other)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), other.eval()(x))
    with pytest.warns(UserWarning, match=r"no buffers.*1\.running_mean, 1\.running_var, 1\.num_batches_tracked"):
        restore_quantized_state(conv_net(), quantizer.get_quantized_state())


def test_model_without_a_large_parameter_evaluates_trains_and_saves(tmp_path):
    model = nn.Linear(4, 4)
    quantizer = attach(model, min_size=1)
    x = torch.randn(2, 4)
    assert torch.equal(model.eval()(x), model.train()(x))
    assert quantizer.true_model_size() == float(quantizer.model_size()) == 20 * 4 / 2**20
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    assert torch.equal(diffq_fast.load(tmp_path / "model.safetensors")["weight"], model.weight)


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.error = None

    def forward(self, x):
        x = self.inner(x)
        if self.error is not None:
            raise self.error
        return x


def check_an_exception_in_forward_puts_the_weights_back(package, training, error):
    torch.manual_seed(0)
    model = Raises()
    attach(model, package, init_bits=3)
    weight, x = model.inner.weight.detach().clone(), torch.randn(2, 8)
    model.train(training)
    expected = model(x)
    model.error = error()
    with pytest.raises(error):
        model(x)
    if error is ValueError:
        assert model.inner.weight is model.inner._parameters["weight"]
    assert torch.equal(model.state_dict()["inner.weight"], weight), "the weight of the forward stayed"
    model.error = None
    again = model(x)
    assert torch.equal(model.inner.weight, weight)
    assert model.inner.weight is model.inner._parameters["weight"]
    assert torch.equal(again, expected) != training  # fresh noise in training, the same quantised weights in eval


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_forward_puts_the_weights_back(training, error):
    check_an_exception_in_forward_puts_the_weights_back(diffq_fast, training, error)


def test_eval_quantises_once_per_version_of_the_weights():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    quantizer = attach(model)
    model.eval()
    x = torch.randn(2, 16)

    def quantise_calls(action):
        with Calls() as calls:
            action()
        return calls.counts.get("fake_quantize", 0)

    assert quantise_calls(lambda: model(x)) == 4
    assert quantise_calls(lambda: [model(x) for _ in range(3)]) == 0
    with torch.no_grad():
        model[0].weight.add_(1)
    assert quantise_calls(lambda: model(x)) == 1
    with torch.no_grad():
        model[1].weight_diffq.sub_(3)
    assert quantise_calls(lambda: model(x)) == 1
    before = model(x)
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})
    assert quantise_calls(lambda: model(x)) == 4
    assert not torch.equal(model(x), before)
    assert quantizer._eval.kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pure_half_precision_model_trains(dtype):
    torch.manual_seed(0)
    model = nn.Linear(16, 16).to(dtype)
    attach(model, init_bits=4)
    model.to(dtype)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(module.weight))
    model(torch.randn(2, 16, dtype=dtype)).float().square().sum().backward()
    assert seen[0].dtype == model.weight.grad.dtype == dtype
    assert model.weight_diffq.dtype == model.weight_diffq.grad.dtype == torch.float32
    assert model.weight_diffq.grad.float().abs().sum() > 0
    model.eval()(torch.randn(2, 16, dtype=dtype))


def check_channels_last_weights_group_in_logical_order(package):
    def run(memory_format):
        torch.manual_seed(0)
        model = nn.Conv2d(8, 8, 3).to(memory_format=memory_format)
        quantizer = attach(model, package, init_bits=4)
        x = torch.randn(2, 8, 6, 6)
        torch.manual_seed(1)
        model(x).square().sum().backward()
        with quantizer.enter_quantize():
            quantised = model.weight.detach().clone()
        return model.weight_diffq.grad, model.weight.grad, quantised

    for found, expected in zip(run(torch.channels_last), run(torch.contiguous_format), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_channels_last_weights_group_in_logical_order():
    check_channels_last_weights_group_in_logical_order(diffq_fast)


def test_a_ragged_last_group_trains_and_packs_and_a_legacy_state_refuses_it(tmp_path):
    model = nn.Linear(7, 5)
    quantizer = attach(model)
    model(torch.randn(2, 7)).sum().backward()
    assert model.weight_diffq.shape == (5,)
    assert model.weight_diffq.grad[-1] != 0
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    with quantizer.enter_quantize():
        assert torch.equal(diffq_fast.load(tmp_path / "model.safetensors")["weight"], model.weight)
    with pytest.raises(ValueError, match=r"weight has 35 elements, which groups of 8 do not divide"):
        quantizer.get_quantized_state()


def test_nan_gradients_leave_logits_and_size_finite_and_are_told_once():
    torch.manual_seed(0)
    model = nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.setup_optimizer(torch.optim.Adam([torch.zeros(1)]), lr=1e-2)
    logits = torch.optim.Adam(quantizer.learned_parameters(), lr=1e-2)
    loss = model(torch.randn(4, 16)).sum() * float("nan")
    loss.backward()
    assert model.weight.grad.isnan().any()
    assert model.weight_diffq.grad.isfinite().all()
    logits.step()
    optimizer.zero_grad()
    with pytest.warns(UserWarning, match=r"non-finite gradients reached the logits of weight \(32\), bias \(2\)"):
        size = quantizer.model_size()
    assert size.isfinite()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer.model_size()
        quantizer.true_model_size()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused_by_exports_and_passed_on_in_training(value, tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    quantizer = attach(model)
    with torch.no_grad():
        model[1].weight[2, 3] = value
    for export in (
        lambda: diffq_fast.save(quantizer, tmp_path / "model.safetensors"),
        quantizer.get_quantized_state,
        quantizer.export_weights,
    ):
        with pytest.raises(ValueError, match=r"1\.weight has NaN or infinite elements"):
            export()
    assert not list(tmp_path.iterdir())
    assert not model(torch.randn(2, 8)).isfinite().all()


def check_float16_parameters_keep_their_training_values(package):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1))
    quantizer = attach(model, package, min_size=0.0009, float16=True)
    with torch.no_grad():
        model[1].bias.fill_(0.1)
    before, half = model[1].bias.detach().clone(), model[1].bias.detach().half().float()
    assert not torch.equal(before, half)
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(module.bias.detach().clone()))
    model.eval()(torch.randn(2, 16))
    assert torch.equal(seen[0], half)
    assert torch.equal(model[1].bias, before), "eval left the rounded value"
    quantizer.quantize()
    assert torch.equal(model[1].bias, half)
    quantizer.unquantize()
    assert torch.equal(model[1].bias, before)


def test_float16_parameters_keep_their_training_values():
    check_float16_parameters_keep_their_training_values(diffq_fast)


def test_a_constant_weight_is_exact(tmp_path):
    model = nn.Linear(8, 8, bias=False)
    nn.init.constant_(model.weight, 0.3)
    quantizer = attach(model)
    x = torch.randn(2, 8)
    out = model(x)
    out.sum().backward()
    assert model.weight.grad.isfinite().all()
    assert torch.equal(out, model.eval()(x))
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    assert torch.equal(diffq_fast.load(tmp_path / "model.safetensors")["weight"], model.weight)


def test_a_training_step_asks_the_device_for_nothing():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.setup_optimizer(optimizer)
    x = torch.randn(2, 16)
    with Calls() as calls:
        loss = model(x).square().mean() + quantizer.model_size()
        loss.backward()
        optimizer.step()
    assert calls.counts["add_noise"] == 1
    assert calls.counts["add_noise_backward"] == 1
    waits = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "_unique2", "masked_select"}
    assert not waits & calls.counts.keys()


def test_the_docstring_names_the_default_noise():
    assert DiffQuantizer(nn.Linear(2, 2)).noise == "gaussian"
    assert '``"gaussian"`` (N(0, 1)/2)' in DiffQuantizer.__doc__
