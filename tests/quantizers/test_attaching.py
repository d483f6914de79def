"""What attaching costs, and what it refuses or tells at once instead of at the end of a training."""

from __future__ import annotations

import gc
import math
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import diffq_fast
from diffq_fast import LSQ, ActivationQuantizer, DiffQuantizer, RateQuantizer, UniformQuantizer
from support.models import mlp


def experts(number):
    """Two small weights in each."""
    made = [nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(number)]
    return nn.ModuleList(nn.ModuleList(made[start : start + 16]) for start in range(0, number, 16))


def calls_of(function):
    """Calls of Python and C functions."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("quantizer", [DiffQuantizer, UniformQuantizer, LSQ, RateQuantizer])
def test_attaching_takes_a_few_calls_for_each_weight(quantizer):
    some, more = experts(32), experts(128)
    quantizer(nn.Linear(2, 2), min_size=0)  # what is made once
    calls = [calls_of(lambda model=model: quantizer(model, min_size=0.0001)) for model in (some, more)]
    assert calls[1] < 4.2 * calls[0]
    assert calls[1] < 300 * 256


def test_attaching_to_inputs_takes_a_few_calls_for_each_layer():
    calls = [calls_of(lambda model=model: ActivationQuantizer(model)) for model in (experts(32), experts(128))]
    assert calls[1] < 4.2 * calls[0]


# -- told at once ------------------------------------------------------------------------------------------------------


def told(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(each.message) for each in caught]


def test_what_save_will_refuse_is_told_when_a_quantizer_is_attached(tmp_path):
    model = mlp().double()
    model.register_buffer("graph", torch.eye(4).to_sparse())
    model.register_buffer("scratch", torch.eye(4).to_sparse(), persistent=False)
    (text,) = told(lambda: UniformQuantizer(model, min_size=0.001))
    assert all(words in text for words in ("0.weight is torch.float64", "graph is not dense", "diffq_fast.save"))
    assert not any(words in text for words in ("scratch", "bias"))
    quantizer = UniformQuantizer(mlp().double(), min_size=0)
    with pytest.raises(TypeError, match="float64"):
        diffq_fast.save(quantizer, tmp_path / "file")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_can_be_saved_is_attached_in_silence(dtype):
    model = mlp().to(dtype)
    model.register_buffer("table", torch.eye(4))
    assert told(lambda: DiffQuantizer(model, min_size=0)) == []


@pytest.mark.parametrize("make", [DiffQuantizer, UniformQuantizer, LSQ, RateQuantizer])
def test_a_cast_to_what_save_will_refuse_is_told_once_at_the_next_forward(make):
    model = mlp()
    quantizer = make(model, min_size=0)
    quantizer.no_optimizer()
    model.double()
    batch = torch.zeros(1, model[0].in_features, dtype=torch.float64)
    (text,) = told(lambda: [model(batch), quantizer.true_model_size(), model.eval()(batch), quantizer.model_size()])
    assert "0.weight is torch.float64" in text


@pytest.mark.parametrize("make", [DiffQuantizer, RateQuantizer])
@pytest.mark.parametrize("group_size", [1.5, 8.0, "8", 2**63, 2**70, -1])
def test_a_group_size_that_is_none_is_refused(make, group_size):
    fault = ValueError if isinstance(group_size, int) else TypeError
    also = "None or " if make is RateQuantizer else ""  # one group for each row
    with pytest.raises(fault, match=f"{make.__name__}: group_size must be {also}(a whole|0 .*) .*got {group_size!r}"):
        make(mlp(), group_size=group_size)


@pytest.mark.parametrize("value", [None, "4", math.nan])
@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (DiffQuantizer, "min_bits"),
        (DiffQuantizer, "max_bits"),
        (DiffQuantizer, "init_bits"),
        (DiffQuantizer, "extra_bits"),
        (DiffQuantizer, "min_size"),
        (UniformQuantizer, "bits"),
        (LSQ, "bits"),
        (RateQuantizer, "init_step"),
        (RateQuantizer, "sample_share"),
    ],
)
def test_an_argument_that_is_no_number_is_refused(make, argument, value):
    with pytest.raises((TypeError, ValueError), match=f"{make.__name__}: {argument} must be a number, got {value!r}"):
        make(mlp(), **{argument: value})


@pytest.mark.parametrize("make", [DiffQuantizer, UniformQuantizer, LSQ, RateQuantizer])
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*table is not dense")
def test_a_sparse_weight_is_refused_and_may_be_excluded(make):
    for sparse in (Tensor.to_sparse, Tensor.to_sparse_csr):
        model = nn.Sequential(nn.Linear(16, 16))
        model.table = nn.Parameter(sparse(torch.eye(16)))
        with pytest.raises(TypeError, match=f"{make.__name__}: table must be dense, got torch.sparse_c.*exclude"):
            make(model, min_size=0)
        quantizer = make(model, min_size=0, exclude=["table"])
        assert [weight.name for weight in quantizer.weights] == ["0.weight", "0.bias"]


@pytest.mark.parametrize("make", [DiffQuantizer, UniformQuantizer, LSQ, RateQuantizer])
def test_a_true_size_on_the_meta_device_names_the_weight(make):
    quantizer = make(mlp().to("meta"), min_size=0)
    with pytest.raises(ValueError, match=f"{make.__name__}: 0.weight must hold values .* meta"):
        quantizer.true_model_size()


def test_sizes_are_on_the_device_of_the_weights_also_where_nothing_is_quantised():
    for make in (DiffQuantizer, UniformQuantizer, LSQ, RateQuantizer):
        for min_size in (0, 100):
            quantizer = make(mlp().to("meta"), min_size=min_size)
            assert quantizer.model_size().device.type == "meta"
            assert quantizer.model_size(exact=True).device.type == "meta"


# -- NaN logits --------------------------------------------------------------------------------------------------------


def test_nan_logits_are_told_as_such(tmp_path):
    model = mlp()
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.no_optimizer()
    with torch.no_grad():
        model[2].weight_diffq[3] = float("nan")
    model.eval()
    attempts = [
        lambda: model(torch.ones(1, 64)),
        lambda: diffq_fast.save(quantizer, tmp_path / "file"),
        quantizer.get_quantized_state,
        quantizer.true_model_size,
        lambda: quantizer.model_size(exact=True),
        quantizer.freeze_bits,
        quantizer.quantize,
        quantizer.check_exportable,
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"the logits of 2\.weight have NaN elements"):
            attempt()
    assert not (tmp_path / "file").exists()


# -- TorchScript and ONNX ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [DiffQuantizer, UniformQuantizer, LSQ, RateQuantizer])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*jit.*")
def test_a_live_model_is_not_traced_or_scripted_and_its_baked_copy_is(make):
    model, inputs = mlp().eval(), torch.ones(1, 64)
    quantizer = make(model, min_size=0)
    attempts = [
        lambda: torch.jit.trace(model, inputs),
        lambda: torch.jit.script(model),
        lambda: torch.jit.script(nn.Sequential(model)),
        lambda: torch.onnx.export(model, (inputs,), "never_written", dynamo=False),
    ]
    cached = torch.is_autocast_cache_enabled()
    for attempt in attempts:
        with pytest.raises(RuntimeError, match=r"bake\(\)"):
            attempt()
    torch.set_autocast_cache_enabled(cached)  # an export that fails leaves it switched off
    expected = model(inputs)
    quantizer.bake()
    assert torch.equal(torch.jit.script(model)(inputs), expected)
    assert torch.equal(torch.jit.trace(model, inputs)(inputs), expected)


def test_an_onnx_export_of_a_compiled_graph_is_refused(monkeypatch):
    model = mlp().eval()
    UniformQuantizer(model, min_size=0)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(RuntimeError, match=r"exported to ONNX .*bake\(\)"):
        torch.export.export(model, (torch.ones(1, 64),))


# -- schedulers made before setup_optimizer ----------------------------------------------------------------------------

TAKES_A_GROUP = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    "ChainedScheduler": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
}
COUNTS_GROUPS = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch),
    "MultiplicativeLR": lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.5),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.LambdaLR(optimizer, lambda epoch: 1)], [2]
    ),
    "warm-up, then decay": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], [2]
    ),
    "warm-up, then cosine": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 9)], [2]
    ),
}


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def trains(optimizer, scheduler):
    arguments = [1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []
    for _ in range(5):
        optimizer.step()
        scheduler.step(*arguments)
    assert len(scheduler.get_last_lr()) == len(optimizer.param_groups) == 2


@pytest.mark.parametrize("name", TAKES_A_GROUP)
def test_a_scheduler_made_before_that_takes_a_new_group_goes_on(name):
    model = mlp()
    optimizer = optimizer_of(model)
    scheduler = TAKES_A_GROUP[name](optimizer)
    DiffQuantizer(model, min_size=0).setup_optimizer(optimizer)
    trains(optimizer, scheduler)


@pytest.mark.parametrize("name", COUNTS_GROUPS)
def test_a_scheduler_made_before_that_counts_groups_is_refused_at_setup_optimizer(name):
    """And nothing has changed then; one that is made afterwards trains."""
    model = mlp()
    optimizer, another = optimizer_of(model), optimizer_of(model)
    scheduler = COUNTS_GROUPS[name](optimizer)
    quantizer = DiffQuantizer(model, min_size=0)
    before = [dict(group) for group in optimizer.param_groups], scheduler.get_last_lr(), scheduler.last_epoch
    with pytest.raises(RuntimeError, match=r"setup_optimizer: the optimizer's .*LR was made .* after setup_optimizer"):
        quantizer.setup_optimizer(optimizer)
    assert before == ([*optimizer.param_groups], scheduler.get_last_lr(), scheduler.last_epoch)
    quantizer.setup_optimizer(another)
    trains(another, COUNTS_GROUPS[name](another))


@pytest.mark.parametrize("quantizer", [DiffQuantizer, UniformQuantizer, LSQ, RateQuantizer])
def test_a_model_of_packed_weights_is_refused(quantizer, tmp_path):
    diffq_fast.save(DiffQuantizer(mlp(), min_size=0), tmp_path / "file")
    model = diffq_fast.load(tmp_path / "file", mlp(), packed=True)
    with pytest.raises(TypeError, match=rf"{quantizer.__name__}: 0\.packed_weight is a weight that stays packed"):
        quantizer(model, min_size=0)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("make", [DiffQuantizer, RateQuantizer, UniformQuantizer, LSQ, ActivationQuantizer])
def test_the_garbage_collector_rests_while_a_quantizer_is_attached(make, enabled):
    seen = []

    class Layer(nn.Linear):
        def register_forward_pre_hook(self, *args, **kwargs):
            seen.append(gc.isenabled())
            return super().register_forward_pre_hook(*args, **kwargs)

    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        make(nn.Sequential(Layer(64, 64)))
        assert seen
        assert not any(seen)
        assert gc.isenabled() is enabled
        with pytest.raises(ValueError, match=r"bits|group_size"):
            make(nn.Sequential(Layer(64, 64)), **({"group_size": -1} if hasattr(make, "bit_budget") else {"bits": 99}))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
