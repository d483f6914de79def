"""Programs that use Demucs 4.1 as its own training and separation do, unmodified, over diffq or over its alias.

Run as ``python demucs_programs.py COMMAND alias|diffq FOLDER``; tests/peers/test_programs.py does, each in a process.
"""

import importlib.util
import json
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

from support.paths import GOLDEN

SHAPE = (1, 2, 4000)  # batch, audio channels, samples


def small_models():
    """A real HDemucs and a real HTDemucs of some ten thousand parameters each."""
    from demucs.hdemucs import HDemucs
    from demucs.htdemucs import HTDemucs

    common = {"nfft": 256, "samplerate": 8000, "segment": Fraction(1, 2)}
    torch.manual_seed(0)
    yield HDemucs(
        ["drums", "rest"], channels=4, depth=4, norm_starts=2, dconv_attn=2, dconv_lstm=2, time_stride=2, **common
    )
    yield HTDemucs(["drums", "rest"], channels=8, depth=2, t_layers=2, t_heads=2, bottom_channels=16, **common)


def settings(**changed):
    """What Demucs reads from its configuration."""
    return SimpleNamespace(**{"diffq": 1e-4, "qat": None, "min_size": 0.001, "group_size": 8, **changed})


def train(model, quantizer, optimizer, steps=3):
    """Demucs' training step: the loss and the size penalty."""
    torch.manual_seed(1)
    mix, sources = torch.randn(SHAPE), torch.randn(1, 2, 2, SHAPE[-1])
    model.train()
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.l1_loss(model(mix), sources) + 1e-4 * quantizer.model_size()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


def parameters(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if not name.endswith("_diffq")}


def write(folder):
    """Train, serialise as Demucs does, and note what the eval forward saw."""
    from demucs.states import get_quantizer, serialize_model
    from omegaconf import OmegaConf

    for model in small_models():
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        quantizer = get_quantizer(model, settings(), optimizer)
        before = parameters(model)
        train(model, quantizer, optimizer)
        moved = [name for name, value in parameters(model).items() if not torch.equal(before[name], value)]
        assert len(moved) > 0.9 * len(before), before.keys() - set(moved)
        name = type(model).__name__
        package = serialize_model(model, OmegaConf.create({"epochs": 3}), quantizer)
        torch.save(package, folder / f"{name}.th")
        with quantizer.enter_quantize():
            expected = {"parameters": parameters(model)}
        expected["output"] = model.eval()(torch.ones(SHAPE)).detach()
        torch.save(expected, folder / f"{name}.expected")


def read(folder):
    """What was written, loaded by demucs.states.load_model."""
    from demucs.states import load_model

    for name in ("HDemucs", "HTDemucs"):
        expected = torch.load(folder / f"{name}.expected")
        model = load_model(folder / f"{name}.th")
        for key, value in parameters(model).items():
            assert torch.equal(value, expected["parameters"][key]), key
        output = model.eval()(torch.ones(SHAPE))
        torch.testing.assert_close(output, expected["output"], rtol=1e-5, atol=1e-6)


def resume(folder):
    """demucs.states.set_state with a quantizer: it hands over the model and the bare list of entries."""
    from demucs.states import get_quantizer, get_state, set_state

    for model, other in zip(small_models(), small_models(), strict=True):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        quantizer = get_quantizer(model, settings(), optimizer)
        train(model, quantizer, optimizer)
        state = get_state(model, quantizer)
        assert state["__quantized"] is True
        reader = get_quantizer(other, settings(), torch.optim.Adam(other.parameters()))
        set_state(other, state, reader)
        with quantizer.enter_quantize():
            expected = parameters(model)
        quantised = {name for name, _ in model.named_parameters() if name + "_diffq" in dict(model.named_parameters())}
        for name, value in parameters(other).items():
            assert name not in quantised or torch.equal(value, expected[name]), name
        assert torch.equal(torch.tensor(reader.true_model_size()), torch.tensor(quantizer.true_model_size()))
        fresh = type(model)(*model._init_args_kwargs[0], **model._init_args_kwargs[1])
        set_state(fresh, state)
        for name, value in parameters(fresh).items():
            assert torch.equal(value, expected[name]), name


def qat(folder):
    """Demucs' quantisation-aware training with UniformQuantizer."""
    from demucs.states import get_quantizer, get_state, set_state

    for model in small_models():
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        quantizer = get_quantizer(model, settings(diffq=0, qat=6), optimizer)
        assert type(quantizer).__name__ == "UniformQuantizer"
        train(model, quantizer, optimizer)
        fresh = type(model)(*model._init_args_kwargs[0], **model._init_args_kwargs[1])
        set_state(fresh, get_state(model, quantizer))
        x = torch.ones(SHAPE)
        torch.testing.assert_close(fresh.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-6)


def flatten(value, tensors):
    """The node of the tree ``structure`` for a value; its tensors are put aside."""
    if isinstance(value, torch.Tensor):
        key = f"t{len(tensors)}"
        tensors[key] = value.contiguous()
        return {"_tensor": key}
    if isinstance(value, dict):
        return {"_dict": [[key, flatten(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return {"_tuple" if isinstance(value, tuple) else "_list": [flatten(each, tensors) for each in value]}
    return {"_class": f"{value.__module__}.{value.__name__}"} if isinstance(value, type) else value


def plain(value):
    """JSON of an argument; Demucs writes a Fraction as a dict."""
    if isinstance(value, Fraction):
        return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}
    return list(map(plain, value)) if isinstance(value, list | tuple) else value


def hub(folder):
    """demucs.hf.load_safetensors_model, on a file of diffq's and on one of ours."""
    from demucs.hf import load_safetensors_model

    model = load_safetensors_model(GOLDEN / "demucs_hf.safetensors")
    for name, value in load_file(GOLDEN / "demucs_hf.restored.safetensors").items():
        assert torch.equal(model.state_dict()[name], value), name
    write(folder)
    for path in sorted(folder.glob("*.th")):
        package = torch.load(path, weights_only=False)
        tensors = {}
        metadata = {
            "klass": f"{package['klass'].__module__}.{package['klass'].__name__}",
            "args": json.dumps(plain(package["args"])),
            "kwargs": json.dumps({key: plain(value) for key, value in package["kwargs"].items()}),
            "structure": json.dumps(flatten(package["state"], tensors)),
        }
        assert '"diffq.diffq.DiffQuantizer"' in metadata["structure"]
        save_file(tensors, folder / f"{path.stem}.safetensors", metadata)
        model = load_safetensors_model(folder / f"{path.stem}.safetensors")
        expected = torch.load(folder / f"{path.stem}.expected")["parameters"]
        for name, value in parameters(model).items():
            assert torch.equal(value, expected[name]), name


def import_pattern(folder):
    """How audio-separator and older copies of Demucs import diffq, at the top of their modules."""
    from diffq import DiffQuantizer, UniformQuantizer, restore_quantized_state

    model, other = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    quantizer = DiffQuantizer(model, min_size=0.01, group_size=8)
    quantizer.setup_optimizer(torch.optim.Adam([torch.zeros(1, requires_grad=True)]))
    restore_quantized_state(other, quantizer.get_quantized_state())
    with quantizer.enter_quantize():
        assert torch.equal(other.weight, model.weight)
    assert UniformQuantizer(other, bits=8, min_size=0.01).true_model_size() > 0


def separator(folder):
    """The copy of Demucs' module ``states`` that audio-separator ships, read from its file (the rest needs ONNX)."""
    where = importlib.util.find_spec("audio_separator").submodule_search_locations[0]
    path = Path(where) / "separator" / "uvr_lib_v5" / "demucs" / "states.py"
    spec = importlib.util.spec_from_file_location("separator_states", path)
    states = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(states)
    write(folder)
    for path in sorted(folder.glob("*.th")):
        expected = torch.load(path.with_suffix(".expected"))["parameters"]
        for name, value in parameters(states.load_model(path)).items():
            assert torch.equal(value, expected[name]), name


COMMANDS = {each.__name__: each for each in (write, read, resume, qat, hub, import_pattern, separator)}

if __name__ == "__main__":
    command, package, folder = sys.argv[1:]
    if package == "alias":
        import diffq_fast

        diffq_fast.install_as_diffq()
    COMMANDS[command](Path(folder))
