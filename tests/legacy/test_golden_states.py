"""Real states written by diffq 0.2.4 come back exactly, and ours are the same bytes."""

import json

import pytest
import torch
from safetensors.torch import load_file

import diffq_fast
from diffq_fast import restore_quantized_state
from diffq_fast.legacy.state import load_legacy
from support.models import GOLDEN_MODELS
from support.paths import GOLDEN

CASES = json.loads((GOLDEN / "cases.json").read_text())
NAMES = sorted(GOLDEN_MODELS)


def attach(model, name):
    return getattr(diffq_fast, CASES[name]["quantizer"])(model, **CASES[name]["kwargs"])


def quantized_model(name):
    """The golden float model with its logits (or scales), and its quantizer."""
    model = GOLDEN_MODELS[name]()
    quantizer = attach(model, name)
    missing, unexpected = model.load_state_dict(load_file(GOLDEN / f"{name}.float.safetensors"), strict=False)
    assert not unexpected
    assert set(missing) <= {"b.weight"}
    return model, quantizer


def assert_restored(model, name):
    restored = load_file(GOLDEN / f"{name}.restored.safetensors")
    state = model.state_dict()
    for key, expected in restored.items():
        assert torch.equal(state[key], expected), key


def assert_same_state(found, expected):
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_same_state(left, right)
    else:
        assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_package_level_restore_gives_the_weights_that_diffq_gives(name):
    model = GOLDEN_MODELS[name]()
    names = list(model.state_dict())
    restore_quantized_state(model, load_legacy(GOLDEN / f"{name}.th"))
    assert_restored(model, name)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", NAMES)
def test_state_is_what_diffq_wrote(name):
    _, quantizer = quantized_model(name)
    written = load_legacy(GOLDEN / f"{name}.th")
    state = quantizer.get_quantized_state(**CASES[name]["state_kwargs"])
    assert list(state) == ["quantized", "float16", "others", "meta"]
    assert_same_state(state["quantized"], written.quantized)
    assert_same_state(state["float16"], written.float16)
    assert_same_state(state["others"], written.others)
    assert state["meta"]["init_kwargs"] == written.init_kwargs
    assert (state["meta"]["packed"], state["meta"]["torch_pack"]) == (written.packed, written.torch_pack)


@pytest.mark.parametrize("name", NAMES)
def test_quantised_forward_values_are_what_diffq_restores(name):
    model, quantizer = quantized_model(name)
    with quantizer.enter_quantize():
        assert_restored(model, name)
    for key, value in load_file(GOLDEN / f"{name}.float.safetensors").items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_what_diffq_says(name):
    _, quantizer = quantized_model(name)
    assert float(quantizer.model_size()) == pytest.approx(CASES[name]["model_size"], rel=1e-6)
    assert quantizer.true_model_size() == pytest.approx(CASES[name]["true_model_size"], rel=1e-7)
    assert quantizer.model_size().requires_grad == (CASES[name]["quantizer"] == "DiffQuantizer")


@pytest.mark.parametrize("name", NAMES)
def test_restore_on_a_live_quantizer_restores_widths_and_scales_too(name):
    _, source = quantized_model(name)
    model = GOLDEN_MODELS[name]()
    quantizer = attach(model, name)
    quantizer.restore_quantized_state(source.get_quantized_state(**CASES[name]["state_kwargs"]))
    for entry, other in zip(quantizer._qparams, source._qparams, strict=True):
        if CASES[name]["quantizer"] == "DiffQuantizer":
            assert torch.equal(quantizer.widths_of(entry), source.widths_of(other))
        elif CASES[name]["quantizer"] == "LSQ":
            assert torch.equal(entry.scale, other.scale)
    assert_restored(model, name)


def test_restore_takes_the_bare_list_that_demucs_gives():
    model, quantizer = quantized_model("diffq_linear_g8")
    state = load_legacy(GOLDEN / "diffq_linear_g8.th")
    quantizer.restore_quantized_state(model, state.quantized)
    assert_restored(model, "diffq_linear_g8")
