"""What diffq 0.2.4 gets wrong in DiffQuantizer: one check for each defect, which passes here and fails on diffq.

Each check takes a package. How it fails on diffq is written above it, so that no other failure passes for it.
UniformQuantizer, LSQ and the packers have tests/quantizers/test_defects_uniform_lsq.py.
"""

import os
import re
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import diffq_fast
from quantizers.test_defects import (
    Calls,
    attach,
    check_an_exception_in_forward_puts_the_weights_back,
    check_channels_last_weights_group_in_logical_order,
    check_float16_parameters_keep_their_training_values,
    check_tied_parameters_detach,
    check_tied_parameters_enter_the_optimizer_once,
    check_tied_parameters_restore,
    conv_net,
    round_trip,
    set_bits,
)
from support.checkpointed import Net

BARE = "AssertionError: $"  # diffq's own, without a word
NO_LOGIT = "AttributeError: 'Linear' object has no attribute 'weight_diffq'"
LEFT = "AssertionError: the weight of the forward stayed"
CHANGED = "AssertionError: weight came back changed"
SILENT = "AssertionError: exported silently"
OTHER_DTYPE = "RuntimeError: mat1 and mat2 must have the same dtype"

CHECKS = {}  # name: (check, how it fails on diffq)


def fails_on_diffq(how, name=None, **arguments):
    """Add a check, under its own name or, where it is run with several arguments, under ``name``."""

    def add(check):
        CHECKS[name or check.__name__.removeprefix("check_")] = (partial(check, **arguments), how)
        return check

    return add


fails_on_diffq(NO_LOGIT)(check_tied_parameters_restore)
fails_on_diffq(NO_LOGIT)(check_tied_parameters_detach)
fails_on_diffq("AssertionError: 4 logits in the group")(check_tied_parameters_enter_the_optimizer_once)
fails_on_diffq("AssertionError: eval left the rounded value")(check_float16_parameters_keep_their_training_values)
fails_on_diffq("RuntimeError: view size is not compatible")(check_channels_last_weights_group_in_logical_order)
for training, error in product((True, False), (ValueError, KeyboardInterrupt)):
    case = f"{error.__name__}_in_{'training' if training else 'eval'}_puts_the_weights_back"
    fails_on_diffq(LEFT, case, training=training, error=error)(check_an_exception_in_forward_puts_the_weights_back)


def through_a_file(package, quantizer, model, weights_only=False):
    """Save the quantizer's model as its package does, read the file into ``model``; returns the file's bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        if package is diffq_fast:
            diffq_fast.save(quantizer, path)
            diffq_fast.load(path, model)
        else:
            torch.save(quantizer.get_quantized_state(), path)
            package.restore_quantized_state(model, torch.load(path, weights_only=weights_only))
        return os.path.getsize(path)


def quantised(quantizer, layer):
    with quantizer.enter_quantize():
        return layer.weight.detach().clone()


@fails_on_diffq(CHANGED)
def groups_of_15_bits_come_back(package):
    torch.use_deterministic_algorithms(True)  # fills memory that nothing wrote; otherwise it may hold the right levels
    try:
        round_trip(lambda: nn.Linear(64, 64), package=package)
    finally:
        torch.use_deterministic_algorithms(False)


@fails_on_diffq(r"RuntimeError: shape '\[16, 32\]' is invalid for input of size 0")
def one_group_comes_back(package):
    round_trip(lambda: nn.Linear(32, 16), (5,), package, group_size=0)


@fails_on_diffq(BARE)
def float_min_bits_come_back(package):
    round_trip(lambda: nn.Linear(32, 16), (3, 5, 9), package, min_bits=2.5)


@fails_on_diffq(CHANGED)
def widths_below_min_bits_come_back(package):
    round_trip(lambda: nn.Linear(32, 16), (4, 5, 9), package, min_bits=4, extra_bits=-2, init_bits=6)


def trained_conv_net(package):
    model = conv_net()
    quantizer = attach(model, package, min_size=0.0005)
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8) * 3 + 1)
    return model.eval(), quantizer


@fails_on_diffq("AssertionError: buffer 1.running_mean was not stored")
def batch_norm_statistics_come_back(package):
    model, quantizer = trained_conv_net(package)
    other = conv_net().eval()
    through_a_file(package, quantizer, other)
    assert torch.equal(other[3].weight, quantised(quantizer, model[3]))
    for name, buffer in model.named_buffers():
        assert torch.equal(other.get_buffer(name), buffer), f"buffer {name} was not stored"


@fails_on_diffq("AssertionError: the lost buffers are not named")
def a_restore_names_the_buffers_that_it_lacks(package):
    _, quantizer = trained_conv_net(package)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        package.restore_quantized_state(conv_net(), quantizer.get_quantized_state())
    assert any("1.running_mean" in str(warning.message) for warning in told), "the lost buffers are not named"


@fails_on_diffq("RuntimeError: Nothing to restore")
def a_model_without_large_parameters_evaluates(package):
    model = nn.Linear(4, 4)
    attach(model, package, min_size=1)
    x = torch.randn(1, 4)
    assert torch.equal(model.eval()(x), model.train()(x))


QUANTISATIONS = ("round", "quantize", "fake_quantize")


@fails_on_diffq("AssertionError: [1-9][0-9]* quantisations in the second forward")
def eval_quantises_once(package):
    model = nn.Linear(16, 16)
    attach(model, package)
    x = torch.randn(1, 16)
    counts = []
    model.eval()
    for _ in range(2):
        with Calls() as calls:
            model(x)
        counts.append(sum(calls.counts.get(name, 0) for name in QUANTISATIONS))
    assert counts[0] > 0
    assert counts[1] == 0, f"{counts[1]} quantisations in the second forward"


def gradients(package, mode, reentrant):
    torch.manual_seed(3)
    model = Net(mode, reentrant)
    if package is not None:
        attach(model, package, init_bits=3)
    torch.manual_seed(4)
    model(torch.randn(5, 16)).square().mean().backward()
    return {name: param.grad for name, param in model.named_parameters()}


@fails_on_diffq("AssertionError: the gradient of .* is wrong", "gradients_under_checkpoints_are_exact", reentrant=False)
@fails_on_diffq(
    "AssertionError: no gradient for .*_diffq", "gradients_under_reentrant_checkpoints_are_exact", reentrant=True
)
def gradients_under_checkpoints_are_exact(package, reentrant):
    for attached in (None, package):  # without a quantizer first: checkpoints as such are exact
        plain, found = (gradients(attached, mode, reentrant) for mode in ("plain", "blocks"))
        lost = [name for name in plain if found[name] is None]
        assert not lost, f"no gradient for {lost[0]}"
        for name, grad in plain.items():
            assert torch.allclose(found[name], grad, rtol=1e-5, atol=1e-6), f"the gradient of {name} is wrong"


@fails_on_diffq(OTHER_DTYPE, "a_pure_bfloat16_model_trains", dtype=torch.bfloat16)
@fails_on_diffq(OTHER_DTYPE, "a_pure_float16_model_trains", dtype=torch.float16)
def a_pure_half_precision_model_trains(package, dtype):
    model = nn.Linear(16, 16).to(dtype)
    attach(model, package, init_bits=4)
    output = model(torch.randn(2, 16, dtype=dtype))
    output.float().square().sum().backward()
    assert output.dtype == model.weight.grad.dtype == dtype
    assert model.weight_diffq.grad.abs().sum() > 0


@fails_on_diffq(BARE)
def a_ragged_last_group_trains(package):
    model = nn.Linear(7, 5)
    quantizer = attach(model, package, init_bits=4)
    model(torch.randn(2, 7)).sum().backward()
    assert model.weight_diffq.grad[-1] != 0
    assert (quantised(quantizer, model) - model.weight).abs().max() < (model.weight.max() - model.weight.min()) / 15


@fails_on_diffq("AssertionError: the refusal names no parameter")
def a_legacy_state_refuses_a_ragged_last_group_by_name(package):
    message = None
    try:
        attach(nn.Linear(7, 5), package).get_quantized_state()
    except (ValueError, AssertionError) as refusal:
        message = str(refusal)
    assert message is not None
    assert "weight" in message, "the refusal names no parameter"


@fails_on_diffq("ValueError: cannot convert float NaN to integer")
def nan_gradients_leave_logits_and_size_finite(package):
    model = nn.Linear(16, 16)
    quantizer = attach(model, package)
    logits = torch.optim.Adam([entry.logit for entry in quantizer._qparams], lr=1e-2)
    (model(torch.randn(4, 16)).sum() * float("nan")).backward()
    logits.step()  # as of a second optimizer, whose scaler saw no fault
    assert quantizer.model_size().isfinite()
    assert model.weight_diffq.isfinite().all(), "NaN logits"


@fails_on_diffq(SILENT, "nan_weights_are_refused", value=float("nan"))
@fails_on_diffq(SILENT, "infinite_weights_are_refused", value=float("inf"))
def broken_weights_are_refused(package, value):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    quantizer = attach(model, package)
    with torch.no_grad():
        model[1].weight[2, 3] = value
    refusal = None
    try:
        quantizer.get_quantized_state()
    except ValueError as error:
        refusal = str(error)
    assert refusal is not None, "exported silently"
    assert "1.weight" in refusal


@fails_on_diffq("UnpicklingError: Weights only load failed")
def a_saved_file_opens_without_running_code(package):
    model, other = nn.Linear(16, 16), nn.Linear(16, 16)
    quantizer = attach(model, package)
    through_a_file(package, quantizer, other, weights_only=True)
    assert torch.equal(other.weight, quantised(quantizer, model))


@fails_on_diffq("AssertionError: the widths are the old ones")
def restoring_brings_the_widths(package):
    model, other = nn.Linear(16, 16), nn.Linear(16, 16)
    source, quantizer = attach(model, package), attach(other, package)
    set_bits(source, 3, 5)
    expected = quantised(source, model)
    quantizer.restore_quantized_state(source.get_quantized_state())
    assert torch.equal(other.weight, expected)
    assert quantizer.true_model_size() == source.true_model_size(), "the widths are the old ones"
    assert torch.equal(quantised(quantizer, other), expected)


class NanResults(TorchDispatchMode):
    """Names the operators that gave NaN."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.isnan().any():
            self.names.append(func.overloadpacket.__name__)
        return result


@fails_on_diffq(r"AssertionError: NaN from \['div'")
def a_constant_weight_is_never_divided_by_its_range(package):
    model, other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    nn.init.constant_(model.weight, 0.3)
    quantizer = attach(model, package)
    with NanResults() as results:
        package.restore_quantized_state(other, quantizer.get_quantized_state())
    assert torch.equal(other.weight, model.weight)
    assert not results.names, f"NaN from {results.names}"


@fails_on_diffq("AssertionError: [1-9][0-9]* waits for the device")
def a_training_step_asks_the_device_for_nothing(package):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = package.DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.setup_optimizer(optimizer)
    x = torch.randn(2, 16)
    with Calls() as calls:
        (model(x).square().mean() + quantizer.model_size()).backward()
        optimizer.step()
    count = calls.counts.get("_local_scalar_dense", 0)
    assert count == 0, f"{count} waits for the device"


@fails_on_diffq("AssertionError: 3[0-9]{4} bytes, more than the 12288 of float32")
def a_small_layer_of_many_widths_stays_small(package):
    model, other = nn.Linear(64, 48, bias=False), nn.Linear(64, 48, bias=False)
    quantizer = attach(model, package)
    set_bits(quantizer, *range(2, 15))
    size = through_a_file(package, quantizer, other)
    assert torch.equal(other.weight, quantised(quantizer, model))
    float_size = 4 * model.weight.numel()
    assert size < float_size, f"{size} bytes, more than the {float_size} of float32"
    assert size <= 1.03 * 2**20 * quantizer.true_model_size() + 1024


@fails_on_diffq("AssertionError: 2[0-9]{4} bytes for one group")  # the group itself, padded, is 3,584 of them
def one_wide_group_leaves_the_table_of_widths_small(package):
    sizes = []
    for widest in (4, 14):
        model, other = nn.Linear(1024, 512, bias=False), nn.Linear(1024, 512, bias=False)
        quantizer = attach(model, package)
        set_bits(quantizer, *[4] * (2**16 - 1), widest)
        sizes.append(through_a_file(package, quantizer, other))
    growth = sizes[1] - sizes[0]
    assert growth < 1024, f"{growth} bytes for one group"


@fails_on_diffq("AssertionError: the docstring names only")
def the_docstring_names_the_default_noise(package):
    quantizer = package.DiffQuantizer
    text = f"{quantizer.__doc__}\n{quantizer.__init__.__doc__}".lower()
    named = [noise for noise in ("gaussian", "uniform") if noise in text]
    assert quantizer(nn.Linear(2, 2)).noise in named, f"the docstring names only {named}"


@pytest.mark.filterwarnings("ignore:legacy state", "ignore:DiffQuantizer. non-finite")
@pytest.mark.parametrize("name", CHECKS)
def test_here(name):
    torch.manual_seed(0)
    CHECKS[name][0](diffq_fast)


def failure(check, package):
    """How the check fails, in one line; diffq's own lines stay out of pytest's report."""
    try:
        check(package)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "passes"


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKS)
def test_diffq_fails(name):
    import diffq

    check, expected = CHECKS[name]
    torch.manual_seed(0)
    assert re.match(expected, failure(check, diffq))
