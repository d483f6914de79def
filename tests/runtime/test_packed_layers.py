"""Models whose layers keep their weights packed: the same outputs as unpacked, in less memory, in every road of use."""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import diffq_fast
from diffq_fast.reference.packed_rows import round_activations
from diffq_fast.runtime.layers import PACKED_CLASSES, PackedLinear
from diffq_fast.runtime.weight import PackedWeight
from support.packed_layers import QUANTIZERS, TOKENS, Images, Network, both, close, saved, weights_of


@pytest.fixture(params=["fixed", "coded"])
def coding(request):
    return request.param


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_packed_model_has_the_unpacked_one_s_weights_and_outputs(tmp_path, quantizer, coding):
    plain, packed = both(saved(tmp_path / "file", quantizer, coding))
    assert len(weights_of(packed)) == 19
    for name, parameter in plain.named_parameters():
        module, _, attribute = name.rpartition(".")
        assert torch.equal(getattr(packed.get_submodule(module), attribute), parameter), name
    with torch.no_grad():
        assert close(packed(TOKENS), plain(TOKENS), 32)
        assert close(packed(TOKENS[:1, :1]), plain(TOKENS[:1, :1]), 32)


def test_convolutions_of_images(tmp_path, coding):
    plain, packed = both(saved(tmp_path / "file", coding=coding, network=Images), Images)
    images = torch.randn(2, 3, 9, 9)
    assert len(weights_of(packed)) == 4
    assert torch.equal(packed(images), plain(images))


class Recurrent(nn.Module):
    """Layers that hand all their weights to one function of torch's."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(24, 32, 2, bidirectional=True, batch_first=True, proj_size=16)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.rnn = nn.RNN(32, 32, batch_first=True)

    def forward(self, steps):
        return self.rnn(self.gru(self.lstm(steps)[0])[0])[0]


def test_recurrent_layers_unpack_each_weight_once_in_a_forward(tmp_path, monkeypatch):
    plain, packed = both(saved(tmp_path / "file", network=Recurrent), Recurrent)
    plain.requires_grad_(False)  # as packed weights: torch may add up in another order where weights need gradients
    unpacked, unpack = [], PackedWeight.unpack
    monkeypatch.setattr(PackedWeight, "unpack", lambda weight: unpacked.append(id(weight)) or unpack(weight))
    for shape in ((1, 1, 24), (3, 20, 24), (20, 24)):
        steps = torch.randn(shape)
        assert torch.equal(packed(steps), plain(steps))
        assert sorted(unpacked) == sorted(id(weight) for weight in weights_of(packed))
        unpacked.clear()
    assert "_flat_weights" not in packed.lstm.__dict__
    with pytest.raises(RuntimeError, match=r"input\.size"):
        packed.lstm(torch.randn(3, 20, 23))
    assert "_flat_weights" not in packed.lstm.__dict__


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("count", [1, 8, 9, 40, 128, 129])
def test_a_call_past_torch_s_dispatcher_gives_what_the_operator_does(tmp_path, count, activations):
    packed = diffq_fast.load(saved(tmp_path / "file"), Network(), packed=True, activations=activations)
    vectors, weight = torch.randn(count, 32), packed.linear.packed_weight
    with torch.no_grad():
        found = packed.linear(vectors)
        rows = weight._rows().arguments()
        expected = torch.ops.diffq_fast.packed_linear(vectors, *rows, activations == "int8", packed.linear.bias)
    assert torch.equal(found, expected)
    with torch.enable_grad():
        assert torch.allclose(packed.linear(vectors), found, rtol=0, atol=1e-5)


def test_modes_and_tracers_see_the_operator(tmp_path):
    _, packed = both(saved(tmp_path / "file"))
    seen = []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        with Looking():
            packed.linear(torch.randn(3, 32))
        graph = make_fx(packed.linear)(torch.randn(3, 32)).graph
        traced = torch.jit.trace(packed.linear, torch.randn(3, 32))
    assert "diffq_fast.packed_linear.default" in seen
    assert any("packed_linear" in str(node.target) for node in graph.nodes)
    assert "packed_linear" in str(traced.graph)


def test_every_class_is_tried():
    tried = {type(module) for network in (Network(), Images()) for module in network.modules()}
    of_torch = {each for each in PACKED_CLASSES if each.__module__.startswith("torch.")}  # integrations add theirs
    assert of_torch
    assert of_torch <= tried


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_lower_precision(tmp_path, dtype):
    plain, packed = both(saved(tmp_path / "file", dtype=dtype), dtype=dtype)
    assert torch.equal(packed.linear.weight, plain.linear.weight)
    assert packed.linear.weight.dtype == dtype
    with torch.no_grad():
        assert torch.allclose(packed(TOKENS), plain(TOKENS), atol=0.05, rtol=0.05)


def test_a_lower_stored_precision_is_what_the_model_sees(tmp_path):
    plain, packed = both(saved(tmp_path / "file", dtype=torch.bfloat16))
    assert packed.linear.weight.dtype == torch.float32
    assert torch.equal(packed.linear.weight, plain.linear.weight)


def test_casts_change_the_result_and_not_the_scales(tmp_path):
    _, packed = both(saved(tmp_path / "file"))
    scales = packed.linear.packed_weight.scales.clone()
    packed.bfloat16()
    assert packed(TOKENS).dtype == packed.linear.weight.dtype == torch.bfloat16
    packed.float()
    assert torch.equal(packed.linear.packed_weight.scales, scales)
    assert packed(TOKENS).dtype == torch.float32
    packed.double()
    assert packed.linear(torch.randn(2, 32, dtype=torch.float64)).dtype == torch.float64


def test_memory_is_close_to_the_file_s(tmp_path):
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(512, 1024, bias=False)

    for quantizer in ("groups of 8", "one group", "a scale"):
        path = saved(tmp_path / "file", quantizer, network=Large)
        packed = diffq_fast.load(path, Large(), packed=True)
        assert sum(weight.bytes for weight in weights_of(packed)) <= 1.3 * os.path.getsize(path)
        assert not list(packed.parameters())


def test_a_tied_weight_is_one(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 32)
            self.head = nn.Linear(32, 50, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    plain, packed = both(saved(tmp_path / "file", network=Tied), Tied)
    assert packed.head.packed_weight is packed.embedding.packed_weight
    assert torch.allclose(packed(TOKENS), plain(TOKENS), atol=1e-5)


def test_a_weight_that_no_layer_can_keep_packed_is_unpacked(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.randn(32, 32))
            self.linear = nn.Linear(32, 32)

        def forward(self, x):
            return self.linear(x @ self.own)

    plain, packed = both(saved(tmp_path / "file", network=Own), Own)
    assert torch.equal(packed.own, plain.own)
    assert isinstance(packed.linear, PackedLinear)
    assert isinstance(packed.linear, nn.Linear)


def test_a_weight_shared_with_such_a_place_is_unpacked_everywhere(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 32)
            self.own = self.linear.weight

    plain, packed = both(saved(tmp_path / "file", network=Shared), Shared)
    assert packed.own is packed.linear.weight
    assert torch.equal(packed.own, plain.own)


def test_copies_pickles_and_state_dicts(tmp_path, coding):
    _, packed = both(saved(tmp_path / "file", coding=coding))
    expected = packed(TOKENS)
    stream = io.BytesIO()
    torch.save(packed, stream)
    stream.seek(0)
    copies = [copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), torch.load(stream, weights_only=False)]
    for other in copies:
        assert torch.equal(other(TOKENS), expected)
        assert "_flat_weights" not in other.lstm.__dict__
    changed = copies[0]
    changed.linear.packed_weight.scales.mul_(2)
    assert not torch.equal(changed(TOKENS), expected)
    changed.load_state_dict(packed.state_dict())
    assert torch.equal(changed(TOKENS), expected)


def test_gradients_reach_the_inputs(tmp_path):
    plain, packed = both(saved(tmp_path / "file"))
    grads = []
    for model in (plain, packed):
        vectors = torch.linspace(-1, 1, 64).view(2, 32).requires_grad_()
        model.linear(vectors).square().sum().backward()
        grads.append(vectors.grad)
    assert torch.allclose(*grads, rtol=1e-5, atol=1e-6)


def test_compiled_and_exported(tmp_path):
    _, packed = both(saved(tmp_path / "file"))
    layer, vectors = packed.linear, torch.randn(3, 32)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(vectors), layer(vectors))
        program = torch.export.export(layer, (vectors,))
        assert torch.equal(program.module()(vectors), layer(vectors))


def test_several_threads_at_once(tmp_path):
    _, packed = both(saved(tmp_path / "file"))
    with torch.no_grad():
        expected, results = packed(TOKENS), []

        def run():
            with torch.no_grad():
                results.extend(packed(TOKENS) for _ in range(5))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 20
    assert all(torch.equal(result, expected) for result in results)


def test_the_norm_of_looked_up_rows_is_bounded(tmp_path):
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 32, max_norm=1.5)

        def forward(self, tokens):
            return self.embedding(tokens)

    plain, packed = both(saved(tmp_path / "file", network=Bounded), Bounded)
    assert torch.allclose(packed(TOKENS), plain(TOKENS), atol=1e-6)
    assert float(packed(TOKENS).norm(dim=-1).max()) < 1.5001


def test_a_model_with_a_quantizer_is_refused(tmp_path):
    path, model = saved(tmp_path / "file"), Network()
    quantizer = QUANTIZERS["groups of 8"](model)
    with pytest.raises(
        ValueError, match=r"load: packed=True is for a model without a quantizer, found a DiffQuantizer"
    ):
        diffq_fast.load(path, model, packed=True)
    quantizer.detach()
    assert weights_of(diffq_fast.load(path, model, packed=True))


def test_without_a_model_there_is_nothing_to_keep_packed(tmp_path):
    with pytest.raises(TypeError, match=r"load: packed=True .* give one"):
        diffq_fast.load(saved(tmp_path / "file"), packed=True)


def test_a_model_that_does_not_fit_is_unchanged(tmp_path):
    path, model = saved(tmp_path / "file"), Network()
    model.head = nn.Linear(27, 51)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="does not fit the model"):
        diffq_fast.load(path, model, packed=True)
    assert not weights_of(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{"packed": True}, {"strict": False}, {"packed": True, "strict": False}])
def test_loading_again_into_a_packed_model_is_refused_by_names(tmp_path, options):
    path = saved(tmp_path / "file")
    _, packed = both(path)
    with pytest.raises(ValueError, match=r"weights packed already \(attention.in_proj_weight, .*; load into"):
        diffq_fast.load(path, packed, **options)


class Shared(nn.Module):
    """One layer at two places."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = self.first

    def forward(self, vectors):
        return self.second(torch.relu(self.first(vectors)))


def test_one_layer_at_two_places_stays_one(tmp_path):
    plain, packed = both(saved(tmp_path / "file", network=Shared), Shared)
    vectors = torch.randn(3, 32)
    assert packed.first is packed.second
    assert isinstance(packed.first, PackedLinear)
    assert close(packed(vectors), plain(vectors), 64)


def normalised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older form, whose hook makes the weight
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(32, 32)))


def pruned():
    layer = nn.Linear(32, 32)
    with torch.no_grad():
        prune.custom_from_mask(layer, "weight", torch.eye(32))
    return nn.Sequential(layer)


def with_an_adapter():
    layer = nn.Linear(32, 32)
    layer.adapter = nn.Parameter(torch.ones(32, 32))
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("network", "unpacked"),
    [
        (normalised, {"weight_g", "weight_v"}),
        (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(32, 32))), {"weight_orig"}),
        (pruned, {"weight_orig"}),
        (with_an_adapter, {"adapter"}),
    ],
)
def test_parameters_that_are_not_a_layer_s_own_stay_parameters(tmp_path, network, unpacked):
    plain, packed = both(saved(tmp_path / "file", network=network), network)
    vectors = torch.randn(3, 32)
    assert unpacked == dict(packed[0].named_parameters()).keys() - {"bias"}
    assert close(packed(vectors), plain(vectors), 32)


def test_tangents_are_carried_through(tmp_path):
    plain, packed = both(saved(tmp_path / "file"))
    vector = torch.randn(32)
    assert torch.equal(torch.func.jacfwd(packed.linear)(vector), plain.linear.weight)
    with forward_ad.dual_level(), torch.no_grad():
        dual = packed.linear(forward_ad.make_dual(vector, torch.eye(32)[5]))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, plain.linear.weight[:, 5])


@pytest.mark.parametrize("value", [torch.zeros(27, 32), nn.Parameter(torch.zeros(27, 32))])
def test_a_packed_weight_cannot_be_set(tmp_path, value):
    _, packed = both(saved(tmp_path / "file"))
    with pytest.raises(AttributeError, match="PackedLinear: weight is packed and cannot be replaced; put a new layer"):
        packed.linear.weight = value
    with pytest.raises(AttributeError, match="PackedLinear: weight is packed and cannot be replaced"):
        torch.func.functional_call(packed.linear, {"weight": value}, torch.randn(3, 32))


def test_a_packed_weight_is_not_changed_through_its_data(tmp_path):
    _, packed = both(saved(tmp_path / "file"))
    weight = packed.linear.weight
    with pytest.raises(AttributeError, match="this a copy that the layer does not read; load the model without packed"):
        packed.linear.weight.data += 1
    with pytest.raises(AttributeError, match="or to merge adapters"):
        weight.data = torch.zeros(())
    assert torch.equal(weight.data, packed.linear.weight)
    for made in (weight.data, weight + 1, weight.clone(), weight[0]):
        assert type(made) is torch.Tensor
    for copied in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert torch.equal(copied, weight)


def test_the_result_has_the_dtype_that_torch_s_layer_gives(tmp_path):
    plain, packed = both(saved(tmp_path / "file"))
    vectors = torch.randn(3, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed.linear(vectors).dtype == plain.linear(vectors).dtype == torch.bfloat16
    double = packed.linear(vectors.double())
    assert torch.allclose(double, plain.double().linear(vectors.double()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_rows_are_looked_up_by_indices_that_torch_takes(tmp_path, dtype):
    _, packed = both(saved(tmp_path / "file"))
    with pytest.raises(TypeError, match=f"indices must be int64 or int32, got {dtype}"):
        packed.embedding(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("rows", [1, 5, 30])
@pytest.mark.parametrize("quantizer", ["groups of 8", "one group", "steps"])
def test_int8_activations_round_what_linear_layers_are_given(tmp_path, quantizer, rows):
    path = saved(tmp_path / "file", quantizer)
    plain = diffq_fast.load(path, Network())
    packed = diffq_fast.load(path, Network(), packed=True, activations="int8")
    inputs = torch.randn(rows, 32)
    with torch.no_grad():
        product = packed.linear(inputs)
        assert close(product, plain.linear(round_activations(inputs)), 32)
        assert not close(product, plain.linear(inputs), 32)
        for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert torch.equal(copied.linear(inputs), product)
    assert close(packed.linear(inputs.clone().requires_grad_()).detach(), plain.linear(inputs).detach(), 32)


def test_int8_activations_are_for_packed_layers(tmp_path):
    path = saved(tmp_path / "file")
    with pytest.raises(ValueError, match="load: activations='int8' is for layers that keep their weights packed"):
        diffq_fast.load(path, Network(), activations="int8")
    with pytest.raises(ValueError, match="load: activations must be one of 'float', 'int8', 'stored', got 'int4'"):
        diffq_fast.load(path, Network(), packed=True, activations="int4")
