"""Rounded inputs in a packed file: saved, looked at, loaded to the same outputs, refused by name where damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast import ActivationQuantizer, DiffQuantizer, RateQuantizer, UniformQuantizer
from diffq_fast.packed.activations import renamed_inputs
from diffq_fast.packed.contents import packed_bytes, read_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.save_load import packed_contents
from diffq_fast.quantizers.stored_input import StoredInput
from support.packed_forgery import Forgery

SCHEMES = {
    "diffq": lambda model: DiffQuantizer(model, min_size=0, group_size=4),
    "uniform": lambda model: UniformQuantizer(model, bits=5, min_size=0, qat=True),
    "rate": lambda model: RateQuantizer(model, min_size=0),
}


def convolutional():
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


def images():
    return torch.randn(6, 3, 8)


def trained(scheme="diffq", **options):
    """A model after two steps, its quantizers, and its optimizer."""
    model = convolutional()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    activations = ActivationQuantizer(model, **{"bits": 4, "momentum": 0.5, **options})
    quantizer = SCHEMES[scheme](model)
    quantizer.setup_optimizer(optimizer)
    activations.setup_optimizer(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    return model, quantizer, activations, optimizer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("learn_bits", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_plain_model_loads_to_the_same_outputs(scheme, learn_bits, path):
    model, quantizer, activations, _ = trained(scheme, learn_bits=learn_bits)
    diffq_fast.save(quantizer, path)
    plain = diffq_fast.load(path, convolutional(), activations="stored").eval()
    x = images()
    model.eval()
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))
        without = diffq_fast.load(path, convolutional()).eval()
        assert not torch.equal(without(x), model(x))
        activations.detach()
        assert torch.equal(without(x), model(x))
    loaded = ActivationQuantizer.on(plain)
    assert torch.equal(loaded.bits(), activations.bits(exact=True))
    loaded.detach()
    with torch.no_grad():
        assert torch.equal(without(x), plain(x))


def test_packed_layers_round_as_the_file_says(path):
    model, quantizer, _, _ = trained()
    diffq_fast.save(quantizer, path)
    packed = diffq_fast.load(path, convolutional(), packed=True, activations="stored").eval()
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(packed(x), model.eval()(x))
        assert "packed" in str(packed)
        float_inputs = diffq_fast.load(path, convolutional(), packed=True).eval()
        assert (packed(x) - float_inputs(x)).abs().max() > 1e-3


def test_files_without_activations_are_the_same_bytes(path, tmp_path):
    torch.manual_seed(0)
    _, quantizer, activations, _ = trained()
    diffq_fast.save(quantizer, path)
    stored = Forgery(path)
    assert json.loads(stored.metadata["activations"]).keys() == {"0", "3"}
    assert {name.rpartition(".")[0] for name in stored.tensors} == {"0.weight", "0.bias", "3.weight", "3.bias"}
    activations.detach()
    diffq_fast.save(quantizer, tmp_path / "without")
    without = Forgery(tmp_path / "without")
    assert "activations" not in without.metadata
    assert without.data == stored.data
    assert without.layout == stored.layout
    assert packed_bytes(packed_contents(quantizer)) == (tmp_path / "without").stat().st_size


def test_the_file_has_bits_and_ranges_and_inspect_shows_them(path):
    _, quantizer, activations, _ = trained(bits=6)
    ranges = {name: each.range.item() for name, each in activations.inputs.items()}
    diffq_fast.save(quantizer, path)
    assert json.loads(Forgery(path).metadata["activations"]) == {
        name: {"bits": 6, "range": value} for name, value in ranges.items()
    }
    report = diffq_fast.inspect(path)
    for name, value in ranges.items():
        step = (torch.tensor(value) / 31).item()
        assert report.activations[name] == {"bits": 6, "range": value, "step": step}
        assert f"input of {name}: 6 bits, range {value:.6g}, step {step:.6g}" in report.table()
    assert json.loads(report.to_json())["activations"] == report.activations
    assert read_packed(path).activations["0"].step == report.activations["0"]["step"]


@pytest.mark.parametrize("bits", [2, 5, 8, 15])
def test_the_formula_of_the_format_gives_the_inputs_to_the_bit(bits, path):
    """``docs/packed_format.md``, section 12, in numpy."""
    _, quantizer, _, _ = trained(bits=bits)
    diffq_fast.save(quantizer, path)
    fields = json.loads(Forgery(path).metadata["activations"])["0"]
    reach = np.float32(fields["range"])
    step = reach / np.float32(2 ** (fields["bits"] - 1) - 1)
    x = 3 * images()
    expected = step * np.round(np.clip(x.numpy(), -reach, reach) / step)
    plain = diffq_fast.load(path, convolutional(), activations="stored").eval()
    with torch.no_grad():
        assert np.array_equal(ActivationQuantizer.on(plain).inputs["0"](x).numpy(), expected)


def test_inputs_that_no_training_forward_has_seen_are_left_out(path):
    model = convolutional()
    activations = ActivationQuantizer(model)
    quantizer = UniformQuantizer(model, min_size=0)
    diffq_fast.save(quantizer, path)
    assert read_packed(path).activations == {}
    activations.inputs["3"].range.fill_(2.0)
    diffq_fast.save(quantizer, path)
    assert read_packed(path).activations.keys() == {"3"}


@pytest.mark.parametrize("logits", [False, True])
def test_a_model_with_a_quantizer_takes_ranges_and_bits_over(path, logits):
    _, quantizer, activations, _ = trained(learn_bits=True, bits=5)
    with torch.no_grad():
        activations.inputs["0"].logit.fill_(0.3)
    diffq_fast.save(quantizer, path, logits=logits)
    model = convolutional()
    other = ActivationQuantizer(model, bits=9, learn_bits=True)
    SCHEMES["diffq"](model)
    diffq_fast.load(path, model)
    for name, each in activations.inputs.items():
        assert torch.equal(other.inputs[name].range, each.range)
        assert torch.equal(other.inputs[name].logit, each.logit) == logits
    assert torch.equal(other.bits(exact=True), activations.bits(exact=True))


def test_a_file_without_activations_leaves_the_model_to_its_own(path):
    _, quantizer, activations, _ = trained()
    activations.detach()
    diffq_fast.save(quantizer, path)
    fresh = convolutional()
    own = ActivationQuantizer(fresh, bits=3)
    own.inputs["0"].range.fill_(7.0)
    diffq_fast.load(path, fresh)
    assert own.inputs["0"].range == 7
    assert torch.equal(fresh[3].weight, diffq_fast.load(path)["3.weight"])


@pytest.mark.parametrize(
    ("prepare", "options", "words"),
    [
        (lambda model: ActivationQuantizer(model, bits=7), {}, "the input of 0 has 4 bits, here are 7; the input of 3"),
        (
            lambda model: ActivationQuantizer(model, bits=7, learn_bits=(6, 15)),
            {},
            "the input of 0 has 4 bits, which are not learned between 6 and 15",
        ),
        (lambda model: ActivationQuantizer(model, bits=4, exclude="0"), {}, "0: its input is rounded in the file only"),
        (lambda model: ActivationQuantizer(model), {"activations": "stored"}, "an ActivationQuantizer is on the model"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(prepare, options, words, path):
    _, quantizer, _, _ = trained()
    diffq_fast.save(quantizer, path)
    model = convolutional()
    prepare(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        diffq_fast.load(path, model, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_inputs_of_one_side_are_passed_over_without_strict(path):
    _, quantizer, activations, _ = trained()
    diffq_fast.save(quantizer, path)
    model = convolutional()
    other = ActivationQuantizer(model, bits=4, exclude="0")
    diffq_fast.load(path, model, strict=False)
    assert torch.equal(other.inputs["3"].range, activations.inputs["3"].range)


def test_stored_activations_are_asked_for_where_there_are_some(path):
    quantizer = UniformQuantizer(convolutional(), min_size=0)
    diffq_fast.save(quantizer, path)
    with pytest.raises(ValueError, match="the file has none; it was saved without an ActivationQuantizer"):
        diffq_fast.load(path, convolutional(), activations="stored")
    with pytest.raises(TypeError, match="activations='stored' rounds the inputs of a model's layers; give one"):
        diffq_fast.load(path, activations="stored")
    with pytest.raises(ValueError, match="activations must be one of 'float', 'int8', 'stored', got 'int4'"):
        diffq_fast.load(path, convolutional(), activations="int4")


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"0": 4}, "'0': expected bits, range and, of learned bits, logit"),
        ({"0": {"bits": 4}}, "'0': expected bits, range"),
        ({"0": {"bits": 4, "range": 1.0, "step": 1.0}}, "'0': expected bits, range"),
        ({"0": {"bits": 1, "range": 1.0}}, "bits must be a whole number from 2 to 15, found 1"),
        ({"0": {"bits": True, "range": 1.0}}, "bits must be a whole number from 2 to 15, found True"),
        ({"0": {"bits": 4.0, "range": 1.0}}, "bits must be a whole number from 2 to 15, found 4.0"),
        ({"0": {"bits": 4, "range": 0}}, "range must be a positive number of float32, found 0"),
        ({"0": {"bits": 4, "range": -1.0}}, "range must be a positive number of float32, found -1"),
        ({"0": {"bits": 4, "range": 0.1}}, "range must be a positive number of float32, found 0.1"),
        ({"0": {"bits": 4, "range": 1e300}}, "range must be a positive number of float32, found 1e"),
        ({"0": {"bits": 4, "range": 10**400}}, "range must be a positive number of float32, found 1000"),
        ({"0": {"bits": 4, "range": "1"}}, "range must be a positive number of float32, found 1"),
        ({"0": {"bits": 4, "range": 1.0, "logit": None}}, "logit must be a number of float32, found None"),
        ([], "expected a JSON dict, found list"),
    ],
)
def test_a_text_that_states_nonsense_is_refused_by_name(stated, words, path):
    _, quantizer, _, _ = trained()
    diffq_fast.save(quantizer, path)
    forgery = Forgery(path)
    forgery.metadata["activations"] = json.dumps(stated)
    forgery.write(path)
    for read in (read_packed, diffq_fast.inspect):
        with pytest.raises(PackedFileError, match=f"activations: .*{words}"):
            read(path)


def test_a_file_that_names_another_models_layers_is_refused(path):
    _, quantizer, _, _ = trained()
    diffq_fast.save(quantizer, path)
    forgery = Forgery(path)
    forgery.metadata["activations"] = json.dumps({"encoder": {"bits": 4, "range": 1.0}})
    forgery.write(path)
    with pytest.raises(ValueError, match="the model has no layer 'encoder'"):
        diffq_fast.load(path, convolutional(), activations="stored")


def test_inputs_are_renamed_as_the_weights_of_their_layers_are():
    one, two = StoredInput(4, 1.0), StoredInput(8, 2.0, 0.5)
    inputs = {"": one, "body.a": one, "body.b": two}
    assert renamed_inputs(inputs, lambda name: name) == inputs
    inside = renamed_inputs(inputs, lambda name: name[5:] if name.startswith("body.") else None)
    assert inside == {"a": one, "b": two}
    assert renamed_inputs({"body": two}, lambda name: name.removeprefix("body.")) == {"": two}
