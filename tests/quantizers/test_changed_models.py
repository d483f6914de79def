"""What was true of a model at attaching is looked at again: modules, shapes, dtypes, devices, kinds of tensors."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

import diffq_fast
from diffq_fast import LSQ, DiffQuantizer, RateQuantizer, SizeTarget, UniformQuantizer

X = torch.randn(4, 16)
MAKERS = {
    "diffq": lambda model: DiffQuantizer(model, min_size=0, group_size=8, init_bits=3),
    "uniform": lambda model: UniformQuantizer(model, bits=3, min_size=0),
    "lsq": lambda model: LSQ(model, bits=3, min_size=0),
    "rate": lambda model: RateQuantizer(model, group_size=8, min_size=0),
    "learned ranges": lambda model: DiffQuantizer(model, min_size=0, group_size=8, learn_range=True),
}
LEARNED = ("_diffq", "_lsq", "_log_step", "_range")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 4)
        self.cell = nn.GRU(4, 4)

    def forward(self, x):
        return self.cell(self.head(self.body(x)))[0]


def attach(name="diffq", model=None):
    torch.manual_seed(0)
    model = Net() if model is None else model
    quantizer = MAKERS[name](model)
    quantizer.no_optimizer()
    return model, quantizer


def replace_by_data(model):
    model.head.weight.data = torch.zeros(5, 16)


CHANGES = {
    "replaced": ("head.weight", lambda model: setattr(model, "head", nn.Linear(16, 4))),
    "removed": ("body.0.weight", lambda model: model.body.__delitem__(0)),
    "resized": ("head.weight", lambda model: setattr(model.head, "weight", nn.Parameter(torch.zeros(5, 16)))),
    "resized by data": ("head.weight", replace_by_data),
    "pruned": ("body.0.weight", lambda model: prune.l1_unstructured(model.body[0], "weight", 0.5)),
    "parametrised": ("head.weight", lambda model: parametrizations.weight_norm(model.head)),
    "without bias": ("head.bias", lambda model: setattr(model.head, "bias", None)),
    "without a bias of a cell": ("cell.bias_hh_l0", lambda model: setattr(model.cell, "bias_hh_l0", None)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_changed_model_is_told_by_the_weight_and_can_be_attached_anew(name, change, tmp_path):
    model, quantizer = attach(name)
    weight, apply = CHANGES[change]
    model(X)
    apply(model)
    asked = [
        lambda: model.train()(X),
        lambda: model.eval()(X),
        quantizer.model_size,
        quantizer.true_model_size,
        quantizer.quantize,
        quantizer.get_quantized_state,
        lambda: diffq_fast.save(quantizer, tmp_path / "model.safetensors"),
    ]
    for ask in asked:
        with pytest.raises(RuntimeError, match=rf"{weight}.*Detach and attach anew"):
            ask()
    assert not list(tmp_path.iterdir())
    quantizer.detach()
    assert not [each for each, _ in model.named_parameters() if each.endswith(LEARNED)]
    if change != "without a bias of a cell":  # which torch's own cell cannot run without
        shape = (5, 16) if "resized" in change else (4, 16)
        again = MAKERS[name](model.train())
        assert again.selection.quantised
        again.no_optimizer()
        model.body(X)
        assert model.head.weight.shape == shape
        assert again.true_model_size() > 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 16), nn.Linear(16, 16)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x.abs().long()))


UNTIED = {
    "replaced": lambda model: setattr(model.head, "weight", nn.Parameter(torch.eye(16))),
    "assigned": lambda model: model.load_state_dict(
        {name: each.clone() for name, each in model.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("exclude", [(), ("head.weight",)])
@pytest.mark.parametrize("change", UNTIED)
@pytest.mark.parametrize("name", MAKERS)
def test_weights_that_are_no_longer_tied_are_told(name, change, exclude, tmp_path):
    model = Tied()
    quantizer = MAKERS[name](model) if not exclude else DiffQuantizer(model, min_size=0, exclude=exclude)
    quantizer.no_optimizer()
    model(X)
    UNTIED[change](model)
    asked = [
        lambda: model.train()(X),
        lambda: model.eval()(X),
        quantizer.true_model_size,
        lambda: diffq_fast.save(quantizer, tmp_path / "model.safetensors"),
    ]
    for ask in asked:
        with pytest.raises(RuntimeError, match=r"head.weight is no longer tied to embedding.weight.*attach anew"):
            ask()
    quantizer.detach()
    again = MAKERS[name](model)
    again.no_optimizer()
    model(X)
    assert [each.tied_to for each in again.weights if each.name.endswith("weight")] == [None, None]


@pytest.mark.parametrize("name", MAKERS)
def test_weights_that_were_tied_after_attaching_are_told(name):
    model = Tied()
    model.head.weight = nn.Parameter(torch.eye(16))
    quantizer = MAKERS[name](model)
    quantizer.no_optimizer()
    model(X)
    model.head.weight = model.embedding.weight
    for ask in (lambda: model(X), quantizer.model_size):
        with pytest.raises(RuntimeError, match=r"head.weight is tied to embedding.weight, and was not.*attach anew"):
            ask()


def test_tied_weights_stay_tied_through_moves_casts_and_copies():
    model, quantizer = attach(model=Tied())
    model(X)
    for change in (model.double, model.float, model.half, model.float, lambda: model.to("cpu")):
        change()
        model.eval()(X)
    twin = copy.deepcopy(quantizer)
    twin.model.train()(X)
    assert twin.true_model_size() == quantizer.true_model_size()


def test_a_weight_that_was_pruned_is_not_taken_away_by_detach():
    model, quantizer = attach()
    prune.l1_unstructured(model.head, "weight", 0.5)
    pruned = model.head.weight
    quantizer.detach()
    assert model.head.weight is pruned


def test_a_size_target_on_a_changed_model_says_so_at_its_penalty():
    model, quantizer = attach()
    target = SizeTarget(quantizer, mb=quantizer.true_model_size(), total_steps=10)
    model.head = nn.Linear(16, 4)
    with pytest.raises(RuntimeError, match=r"head.weight is no longer part of the model"):
        target.penalty()


def test_new_tensors_of_the_same_shapes_are_no_change():
    model, quantizer = attach()
    other = {name: value.clone() for name, value in attach()[0].state_dict().items()}
    model.load_state_dict(other, assign=True)
    model(X)
    zeros = {name: torch.zeros_like(value) for name, value in other.items() if not name.endswith("_diffq")}
    assert functional_call(model, zeros, (X,)).abs().sum() == 0
    twin = copy.deepcopy(quantizer)
    twin.model(X)
    assert twin.true_model_size() == quantizer.true_model_size()
    twin.model.head = nn.Linear(16, 4)
    model(X)
    with pytest.raises(RuntimeError, match=r"head.weight"):
        twin.model(X)


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "to", "part"])
@pytest.mark.parametrize("name", ["diffq", "lsq"])
def test_what_is_learned_stays_float32_when_the_model_is_cast(name, cast, swap):
    model, quantizer = attach(name)
    model(X).sum().backward()
    before = [each.detach().clone() for each in quantizer.learned_parameters()]
    grads = [each.grad.clone() for each in quantizer.learned_parameters()]
    dtype = {"half": torch.float16, "double": torch.float64}.get(cast, torch.bfloat16)
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        if cast == "part":
            model.body.bfloat16(), model.head.to(torch.bfloat16), model.cell.to("cpu", dtype=torch.bfloat16)
        else:
            model.to(dtype) if cast == "to" else getattr(model, cast)()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert model.head.weight.dtype == dtype
    for now, then, grad in zip(quantizer.learned_parameters(), before, grads, strict=True):
        assert now.dtype == now.grad.dtype == torch.float32
        assert torch.equal(now, then)
        assert torch.equal(now.grad, grad)
        now.grad = None
    model(X.to(dtype)).float().sum().backward()
    assert all(each.grad.dtype == torch.float32 for each in quantizer.learned_parameters())
    quantizer.detach()
    model.half()
    assert {each.dtype for each in model.parameters()} == {torch.float16}


def test_logits_learn_in_a_model_that_was_cast_after_attaching():
    """In bfloat16 they would stand still: a step of 0.001 is less than half of a digit there."""
    bits = []
    for late in (False, True):
        model = nn.Linear(64, 64)
        model if late else model.bfloat16()
        quantizer = DiffQuantizer(model, min_size=0.001, group_size=8)
        model.bfloat16()
        optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        quantizer.setup_optimizer(optimizer, lr=1e-3)
        for _ in range(300):
            optimizer.zero_grad()
            quantizer.model_size().backward()
            optimizer.step()
        bits.append(quantizer.bits_per_weight()["weight"])
    assert bits[0] == pytest.approx(bits[1], abs=1e-4)
    assert bits[1] < 7.5


def test_learned_values_that_were_cast_another_way_are_refused():
    model, quantizer = attach()
    for param in model.parameters():
        param.data = param.data.bfloat16()
    for ask in (lambda: model(X.bfloat16()), quantizer.model_size):
        with pytest.raises(RuntimeError, match=r"weight_diffq of body.0.weight must be float32.*got torch.bfloat16"):
            ask()


# -- weights that are elsewhere ----------------------------------------------------------------------------------------


def offload(model):
    """As accelerate does it: a hook object on each module, and parameters without values until it runs."""
    for module in model.modules():
        module._hf_hook = object()
        for key, param in module._parameters.items():
            module._parameters[key] = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)


def test_offloaded_weights_are_named():
    model, quantizer = attach()
    offload(model)
    for ask in (lambda: model.train()(X), lambda: model.eval()(X), quantizer.model_size, quantizer.true_model_size):
        with pytest.raises(RuntimeError, match=r"body.0.weight is offloaded"):
            ask()
    model = Net()
    offload(model)
    with pytest.raises(ValueError, match=r"DiffQuantizer: body.0.weight is offloaded.*bake"):
        DiffQuantizer(model, min_size=0)


def test_one_weight_on_the_meta_device_is_named():
    model, _ = attach()
    model.head.weight = nn.Parameter(model.head.weight.to("meta"))
    with pytest.raises(RuntimeError, match=r"head.weight is offloaded"):
        model(X)


# -- tensors of other kinds --------------------------------------------------------------------------------------------


class Wrapped(torch.Tensor):
    """A tensor that runs code of its own for each operator."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


class Labelled(nn.Parameter):
    """A parameter that only carries an attribute."""

    label = "a"


def flattened(model):
    """The class name of FSDP1's wrapper, without processes."""
    model.__class__ = type("FullyShardedDataParallel", (type(model),), {})


@pytest.mark.parametrize("make", MAKERS.values())
def test_tensor_subclasses_are_refused_by_name(make):
    model = nn.Linear(16, 16)
    wrapped = torch.Tensor._make_wrapper_subclass(Wrapped, (16, 16), dtype=torch.float32)
    model._parameters["weight"] = wrapped
    with pytest.raises(TypeError, match=r"weight is a .*Wrapped, a tensor subclass"):
        make(model)
    model = nn.Linear(16, 16)
    make(model)
    model._parameters["weight"] = wrapped
    with pytest.raises(TypeError, match=r"weight is a .*Wrapped, a tensor subclass"):
        model(X)


@pytest.mark.parametrize("make", MAKERS.values())
def test_fsdp1_is_refused_before_and_after_attaching(make):
    model = Net()
    flattened(model.body)
    with pytest.raises(TypeError, match=r"body is sharded by FullyShardedDataParallel.*fully_shard"):
        make(model)
    model = Net()
    quantizer = make(model)
    quantizer.no_optimizer()
    flattened(model)
    for ask in (lambda: model(X), quantizer.model_size):
        with pytest.raises(TypeError, match=r"has been sharded by FullyShardedDataParallel.*fully_shard"):
            ask()


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("attached_first", [True, False])
@pytest.mark.parametrize("original", [True, False])
@pytest.mark.filterwarnings("ignore:.*NO_SHARD", "ignore:.*FSDP", "ignore::FutureWarning")
def test_a_quantizer_on_the_model_inside_of_fsdp1_is_refused(original, attached_first, one_process):
    """By what torch's own wrapper leaves of that model."""
    model = Net()
    if attached_first:
        DiffQuantizer(model, min_size=0)
    wrapped = FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match=r"is sharded by FullyShardedDataParallel.*fully_shard"):
        wrapped(X) if attached_first else DiffQuantizer(model, min_size=0)


def test_a_parameter_that_carries_attributes_is_welcome():
    model = nn.Linear(16, 16)
    model.weight = Labelled(model.weight.detach())
    attach(model=model)
    model(X).sum().backward()
    assert model.weight.grad.abs().sum() > 0


# -- torch.func --------------------------------------------------------------------------------------------------------


def loss(model, params, x):
    return functional_call(model, params, (x,)).square().sum()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["diffq", "uniform", "lsq"])
def test_transforms_of_weights_name_bake_and_work_on_what_it_leaves(name, training):
    model, quantizer = attach(name, nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)))
    model.train(training)
    params = {key: value.detach() for key, value in model.named_parameters()}
    stacked = {key: torch.stack([value, 2 * value]) for key, value in params.items()}
    transforms = [
        lambda: torch.func.grad(lambda params: loss(model, params, X))(params),
        lambda: torch.func.jacrev(lambda params: loss(model, params, X))(params),
        lambda: torch.func.hessian(lambda params: loss(model, params, X))(params),
        lambda: torch.vmap(lambda params: loss(model, params, X), randomness="same")(stacked),
    ]
    for transform in transforms:
        with pytest.raises(RuntimeError, match=r"0.weight is transformed by torch.func.*bake"):
            transform()
        assert model[0].weight is model[0]._parameters["weight"]
    quantizer.bake()
    params = {key: value.detach() for key, value in model.named_parameters()}
    found = torch.func.grad(lambda params: loss(model, params, X))(params)
    loss(model, dict(model.named_parameters()), X).backward()
    for key, value in model.named_parameters():
        torch.testing.assert_close(found[key], value.grad)


@pytest.mark.parametrize("name", ["diffq", "uniform", "lsq"])
def test_transforms_of_inputs_work(name):
    model, _ = attach(name, nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)))
    model.eval()
    expected = torch.autograd.functional.hessian(lambda x: model(x).square().sum(), X[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.func.hessian(lambda x: model(x).square().sum())(X[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.vmap(model)(X), model(X))
    for row, x in zip(torch.vmap(torch.func.grad(lambda x: model(x).sum()))(X), X, strict=True):
        x = x.clone().requires_grad_()
        torch.testing.assert_close(row, torch.autograd.grad(model(x).sum(), x)[0])


def test_noise_is_drawn_once_for_a_transform_of_inputs():
    model, _ = attach(model=nn.Linear(16, 4))
    torch.manual_seed(1)
    found = torch.vmap(model)(X)
    torch.manual_seed(1)
    torch.testing.assert_close(found, model(X))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["diffq", "uniform", "lsq", "rate"])
def test_tangents_of_weights_name_bake_and_those_of_inputs_pass(name, training):
    model, _ = attach(name, nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)))
    model.train(training)
    weight = model[0].weight.detach()
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(model.eval()(forward_ad.make_dual(X, X))).tangent is not None
        dual = {"0.weight": forward_ad.make_dual(weight, weight)}
        with pytest.raises(RuntimeError, match=r"0.weight has a tangent.*bake"):
            functional_call(model.train(training), dual, (X,))
