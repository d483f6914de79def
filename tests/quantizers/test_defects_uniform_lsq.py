"""What diffq 0.2.4 gets wrong in UniformQuantizer, LSQ and the packers: one check for each defect.

Each check takes a package: it passes on diffq_fast, and fails on diffq itself, which proves that it can fail.
"""

import importlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import diffq_fast
from support.models import Tied


def lsq(package, model, **arguments):
    quantizer = package.LSQ(model, **{"min_size": 0, "bits": 4, **arguments})
    quantizer.no_optimizer()
    return quantizer


def uniform(package, model, **arguments):
    return package.UniformQuantizer(model, **{"min_size": 0, "bits": 4, **arguments})


def quantised(quantizer, layer):
    with quantizer.enter_quantize():
        return layer.weight.detach().clone()


def one_bit_lsq_is_refused_clearly(package):
    with pytest.raises(ValueError, match="bits"):
        package.LSQ(nn.Linear(4, 4), bits=1, min_size=0)


def an_all_zero_lsq_weight_trains_and_exports(package):
    model = nn.Linear(4, 4)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    quantizer = package.LSQ(model, bits=4, min_size=0)
    quantizer.setup_optimizer(optimizer)
    x = torch.ones(1, 4)
    for _ in range(3):
        output = model(x)
        assert output.isfinite().all()
        optimizer.zero_grad()
        output.sum().backward()
        optimizer.step()
    assert (model.weight != 0).all()
    quantizer.get_quantized_state()
    assert model.eval()(x).isfinite().all()


def an_lsq_scale_of_zero_gives_zeros(package):
    model = nn.Linear(4, 4)
    quantizer = lsq(package, model)
    with torch.no_grad():
        model.weight_lsq.zero_()
        model.weight[0, 0] = 0
    assert quantised(quantizer, model).eq(0).all()
    quantizer.get_quantized_state()


def lsq_of_15_bits_packs(package):
    model, other = nn.Linear(8, 8), nn.Linear(8, 8)
    nn.init.constant_(model.weight, 1.0)  # at the largest index: 32767 once it is shifted
    quantizer = lsq(package, model, bits=15)
    with torch.no_grad():
        model.weight_lsq.fill_(2**-14)
    package.restore_quantized_state(other, quantizer.get_quantized_state())
    assert torch.equal(other.weight, quantised(quantizer, model))


def packers_find_the_bits_of_the_largest_value(package):
    for name in ("bitpack", "torch_pack"):
        packer = importlib.import_module(f"{package.__name__}.{name}")
        values = torch.tensor([0, 32767, 5])
        assert torch.equal(packer.unpack(packer.pack(values), 3).long(), values)


def uniform_packs_by_torch_pack(package):
    model, other = nn.Linear(16, 16), nn.Linear(16, 16)
    quantizer = uniform(package, model)
    package.restore_quantized_state(other, quantizer.get_quantized_state(torch_pack=True))
    assert torch.equal(other.weight, quantised(quantizer, model))


def fractional_bits_survive_packing(package):
    model, other = nn.Linear(64, 64), nn.Linear(64, 64)
    quantizer = uniform(package, model, bits=9.6)
    package.restore_quantized_state(other, quantizer.get_quantized_state())
    assert torch.equal(other.weight, quantised(quantizer, model))


def fractional_bits_reach_the_maximum(package):
    model = nn.Linear(64, 64)
    assert quantised(uniform(package, model, bits=2.3), model).max() == model.weight.max()


def restoring_brings_the_lsq_scale(package):
    model, other = nn.Linear(16, 16), nn.Linear(16, 16)
    source, quantizer = lsq(package, model), lsq(package, other)
    with torch.no_grad():
        model.weight_lsq.mul_(1.7)
    quantizer.restore_quantized_state(source.get_quantized_state())
    assert torch.equal(quantised(quantizer, other), quantised(source, model))


def overlapping_uniform_quantizers_put_the_weights_back(package):
    model = nn.Linear(16, 16)
    weight = model.weight.detach().clone()
    uniform(package, model, bits=3)
    uniform(package, model, bits=5)
    model.eval()(torch.randn(1, 16))
    assert torch.equal(model.weight, weight)


def tied_lsq_weights_restore_and_detach(package):
    model, other = Tied(), Tied()
    quantizer = lsq(package, model)
    package.restore_quantized_state(other, quantizer.get_quantized_state())
    assert other.b.weight is other.a.weight
    quantizer.detach()


def tied_lsq_scales_enter_the_optimizer_once(package):
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters())
    package.LSQ(model, min_size=0).setup_optimizer(optimizer)
    params = optimizer.param_groups[-1]["params"]
    assert len(params) == len({id(param) for param in params}) == 3


def tied_uniform_weights_restore(package):
    model, other = Tied(), Tied()
    package.restore_quantized_state(other, uniform(package, model).get_quantized_state())


def a_model_without_large_parameters_evaluates(package):
    model = nn.Linear(4, 4)
    uniform(package, model, min_size=1)
    x = torch.randn(1, 4)
    assert torch.equal(model.eval()(x), model.train()(x))


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        self.inner(x)
        raise RuntimeError("in the middle")


def exception_in_eval(package, attach):
    model = Raises().eval()
    weight = model.inner.weight.detach().clone()
    attach(package, model)
    with pytest.raises(RuntimeError, match="in the middle"):
        model(torch.randn(1, 8))
    assert torch.equal(model.inner.weight, weight)


def an_exception_puts_uniform_weights_back(package):
    exception_in_eval(package, uniform)


def an_exception_puts_lsq_weights_back(package):
    exception_in_eval(package, lsq)


def an_exception_in_training_puts_lsq_weights_back(package):
    model = Raises()
    weight = model.inner.weight
    lsq(package, model)
    with pytest.raises(RuntimeError, match="in the middle"):
        model(torch.randn(1, 8))
    assert model.inner.weight is weight


class Rounds(TorchDispatchMode):
    """Counts roundings and quantisations."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.overloadpacket.__name__ in ("round", "quantize", "fake_quantize")
        return func(*args, **(kwargs or {}))


def quantised_once(package, attach):
    model = nn.Linear(16, 16)
    attach(package, model)
    x = torch.randn(1, 16)
    model.eval()
    with Rounds() as first:
        model(x)
    with Rounds() as second:
        model(x)
    assert first.calls > 0
    assert second.calls == 0


def uniform_eval_quantises_once(package):
    quantised_once(package, uniform)


def lsq_eval_quantises_once(package):
    quantised_once(package, lsq)


def checkpoints_are_exact(package, attach):
    def gradients(inside):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        attach(package, model)
        whole = type(model).forward
        body = model[1:]
        model.forward = lambda x: checkpoint(body, model[0](x), use_reentrant=False) if inside else whole(model, x)
        model(torch.randn(3, 16)).square().sum().backward()
        return torch.cat([param.grad.flatten() for param in model.parameters()])

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-5, atol=1e-6)


def lsq_under_checkpoints_is_exact(package):
    checkpoints_are_exact(package, lambda package, model: lsq(package, model, bits=2))


def qat_under_checkpoints_is_exact(package):
    checkpoints_are_exact(package, lambda package, model: uniform(package, model, bits=2, qat=True))


def uniform_takes_channels_last(package):
    model = nn.Conv2d(8, 8, 3)
    other = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    other.load_state_dict(model.state_dict())
    expected = quantised(uniform(package, model), model)
    quantizer = uniform(package, other)
    assert torch.equal(quantised(quantizer, other), expected)
    target = nn.Conv2d(8, 8, 3)
    package.restore_quantized_state(target, quantizer.get_quantized_state())
    assert torch.equal(target.weight, expected)


def half_precision_parameters_keep_their_values(package):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1))
    with torch.no_grad():
        model[1].bias.fill_(0.1)
    bias = model[1].bias.detach().clone()
    uniform(package, model, min_size=0.001, float16=True)
    model.eval()(torch.randn(1, 64))
    assert torch.equal(model[1].bias, bias)


def broken_weights_are_refused(package):
    for attach in (uniform, lsq):
        model = nn.Linear(4, 4)
        quantizer = attach(package, model)
        with torch.no_grad():
            model.weight[0, 0] = float("nan")
        with pytest.raises(ValueError, match="weight"):
            quantizer.get_quantized_state()


def uniform_has_the_exact_size(package):
    quantizer = uniform(package, nn.Linear(4, 4))
    assert float(quantizer.model_size(exact=True)) == quantizer.true_model_size()


CHECKS = [
    one_bit_lsq_is_refused_clearly,
    an_all_zero_lsq_weight_trains_and_exports,
    an_lsq_scale_of_zero_gives_zeros,
    lsq_of_15_bits_packs,
    packers_find_the_bits_of_the_largest_value,
    uniform_packs_by_torch_pack,
    fractional_bits_survive_packing,
    fractional_bits_reach_the_maximum,
    restoring_brings_the_lsq_scale,
    overlapping_uniform_quantizers_put_the_weights_back,
    tied_lsq_weights_restore_and_detach,
    tied_lsq_scales_enter_the_optimizer_once,
    tied_uniform_weights_restore,
    a_model_without_large_parameters_evaluates,
    an_exception_puts_uniform_weights_back,
    an_exception_puts_lsq_weights_back,
    an_exception_in_training_puts_lsq_weights_back,
    uniform_eval_quantises_once,
    lsq_eval_quantises_once,
    lsq_under_checkpoints_is_exact,
    qat_under_checkpoints_is_exact,
    uniform_takes_channels_last,
    half_precision_parameters_keep_their_values,
    broken_weights_are_refused,
    uniform_has_the_exact_size,
]
WORKS_IN_DIFFQ = {tied_uniform_weights_restore, uniform_takes_channels_last}  # only DiffQuantizer has these defects


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_here(check):
    torch.manual_seed(0)
    check(diffq_fast)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_diffq_fails(check):
    import diffq

    torch.manual_seed(0)
    if check in WORKS_IN_DIFFQ:
        check(diffq)
        return
    with pytest.raises((Exception, pytest.fail.Exception)):
        check(diffq)
