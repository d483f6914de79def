"""A quantizer is one file: a toy trains, saves, loads and resumes, and nothing in the package knows its class."""

import copy
import pickle
import subprocess

import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast.quantizers.registry import Scheme, register, scheme_named, scheme_of, schemes
from support.paths import ROOT
from support.toy_quantizer import SignQuantizer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 4))


def trained(steps=20):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    quantizer = SignQuantizer(model, min_size=0.0003, exclude=["*bias"])
    quantizer.setup_optimizer(optimizer, lr=1e-2)
    inputs = torch.randn(64, 16)
    target = inputs[:, :4].sign()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append((model(inputs) - target).square().mean())
        losses[-1].backward()
        optimizer.step()
    return model, quantizer, inputs, losses


def test_a_toy_quantizer_trains_saves_and_loads(tmp_path):
    model, quantizer, inputs, losses = trained()
    assert losses[-1] < 0.8 * losses[0]
    assert {weight.name for weight in quantizer.weights} == {"0.weight", "3.weight"}
    assert all(weight.learned.grad.abs() > 0 for weight in quantizer.weights)
    expected = model.eval()(inputs)
    diffq_fast.save(quantizer, tmp_path / "file")
    plain = diffq_fast.load(tmp_path / "file", network())
    assert torch.equal(plain.eval()(inputs), expected)
    values = plain[0].weight.unique()
    assert len(values) == 2
    report = diffq_fast.inspect(tmp_path / "file")
    assert report.quantizer["class"] == "SignQuantizer"
    assert quantizer.true_model_size() == pytest.approx((2 * 640 + 64 + 32 * (32 + 64 + 4)) / 8 / 2**20)


@pytest.mark.parametrize("logits", [False, True])
def test_its_training_goes_on_from_a_file(tmp_path, logits):
    model, quantizer, inputs, _ = trained()
    diffq_fast.save(quantizer, tmp_path / "file", logits=logits)
    resumed = network()
    again = SignQuantizer(resumed, min_size=0.0003, exclude=["*bias"])
    diffq_fast.load(tmp_path / "file", resumed)
    for one, other in zip(again.weights, quantizer.weights, strict=True):
        assert torch.equal(one.learned, other.learned)
    assert torch.equal(resumed.eval()(inputs), model.eval()(inputs))
    assert diffq_fast.inspect(tmp_path / "file").bytes_by_purpose["learned values"] == (8 if logits else 0)


def test_a_second_class_of_one_name_is_refused():
    other = type("SignQuantizer", (SignQuantizer,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match=r"register: .*toy_quantizer\.SignQuantizer has the name .*elsewhere\."):
        register(Scheme(other))
    register(scheme_named("SignQuantizer"))
    assert scheme_named("SignQuantizer").quantizer is SignQuantizer


def test_what_is_learned_needs_a_rule():
    class Ruleless(SignQuantizer):
        def rule(self):
            return None

    model = network()
    names = list(model.state_dict())
    with pytest.raises(TypeError, match=r"Ruleless: learn\(\) was called but rule\(\) gives None"):
        Ruleless(model, min_size=0.0003)
    assert not model._forward_pre_hooks
    assert list(model.state_dict()) == names


def test_its_file_is_refused_by_another_quantizer_and_the_other_way_round(tmp_path):
    _, quantizer, _, _ = trained(1)
    diffq_fast.save(quantizer, tmp_path / "file")
    other = network()
    diffq_fast.DiffQuantizer(other, min_size=0.0003, exclude=["*bias"], group_size=8)
    who = r"a file of SignQuantizer for a model with DiffQuantizer, does not fit the model"
    what = r"the file \(SignQuantizer\) has 2 bits and a scale, this DiffQuantizer has"
    with pytest.raises(ValueError, match=rf"{who}.*{what}"):
        diffq_fast.load(tmp_path / "file", other, strict=False)


def test_it_is_copied_and_pickled(tmp_path):
    model, quantizer, inputs, _ = trained(2)
    expected = model.eval()(inputs)
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(twin.model.eval()(inputs), expected)


def test_diffqs_states_do_not_hold_it():
    _, quantizer, _, _ = trained(1)
    with pytest.raises(ValueError, match="SignQuantizer: diffq's states do not hold it; save a packed file"):
        quantizer.get_quantized_state()


def test_schemes_are_found_by_name_and_by_class():
    assert {"DiffQuantizer", "UniformQuantizer", "LSQ", "SignQuantizer"} <= set(schemes())
    assert scheme_named("SignQuantizer").quantizer is SignQuantizer
    assert scheme_named("none") is None
    assert scheme_of(SignQuantizer).stored_name == "support.toy_quantizer.SignQuantizer"
    assert scheme_of("diffq.lsq.LSQ").quantizer is diffq_fast.LSQ


@pytest.mark.parametrize("name", ["DiffQuantizer", "UniformQuantizer", "LSQ"])
def test_no_module_but_its_own_names_the_class_of_a_quantizer(name):
    """Outside of its own file, messages and docstrings aside, a class is named where it is public or diffq's."""
    command = ["git", "grep", "-lE", rf"import .*\b{name}\b|isinstance\(.*\b{name}\b", "--", "diffq_fast"]
    found = set(subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.split())
    public = {"diffq_fast/__init__.py", "diffq_fast/compat/diffq.py", "diffq_fast/compat/uniform.py"}
    exporting = {"diffq_fast/compat/lsq.py", "diffq_fast/compat/ts_export.py"}  # TorchScript: DiffQ alone, as in diffq
    assert found <= public | exporting
