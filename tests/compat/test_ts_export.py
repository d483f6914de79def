"""TorchScript files with packed weights, and torch.export programs."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from diffq_fast.ts_export import export, export_program
from torch import nn

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer
from support.models import Tied

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit):DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm:UserWarning"),  # torch.export of any LSTM
]


class Audio(nn.Module):
    """Convolution, batch norm, a bidirectional LSTM and a numbered layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x):
        return self.head(self.lstm(self.norm(self.conv(x)).permute(0, 2, 1))[0])


def quantized(make, **arguments):
    """An eval model with its weights at widths 2 … 15, and the quantizer."""
    torch.manual_seed(0)
    model = make().eval()
    quantizer = DiffQuantizer(model, **{"min_size": 0, "group_size": 8, **arguments})
    quantizer.no_optimizer()
    with torch.no_grad():
        for entry in quantizer.selection.originals:
            entry.logit.add_(2 * torch.randn_like(entry.logit))
    return model, quantizer


CASES = {
    "linear": (lambda: nn.Linear(32, 16), (2, 32), {}),
    "audio": (Audio, (2, 4, 9), {}),
    "tied": (Tied, (2, 32), {}),
    "one group": (lambda: nn.Sequential(nn.Linear(7, 5)), (2, 7), {"group_size": 0}),
    "ragged": (lambda: nn.Linear(7, 5), (2, 7), {}),
    "range per group": (lambda: nn.Linear(32, 16), (2, 32), {"range_scope": "group"}),
    "nothing quantised": (lambda: nn.Linear(4, 4), (2, 4), {"min_size": 1}),
    "some left alone": (Audio, (2, 4, 9), {"exclude": ["lstm.*", "*bias"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_script_and_file_give_what_eval_gives(name, tmp_path):
    make, shape, arguments = CASES[name]
    model, quantizer = quantized(make, **arguments)
    x = torch.randn(shape)
    expected = model(x)
    with quantizer.enter_quantize():
        weights = {key: value.clone() for key, value in model.state_dict().items() if not key.endswith("_diffq")}
    script = export(quantizer, tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    for each in (script, loaded):
        for _ in range(2):
            torch.testing.assert_close(each(x), expected)
        found = each.model.state_dict()
        assert found.keys() == weights.keys()
        for key, weight in weights.items():
            assert torch.equal(found[key], weight), key


def test_bfloat16_weights_keep_their_dtype():
    model, quantizer = quantized(lambda: nn.Linear(32, 16).to(torch.bfloat16))
    x = torch.randn(2, 32, dtype=torch.bfloat16)
    expected = model(x)
    script = export(quantizer)
    assert torch.equal(script(x), expected)
    assert script.model.weight.dtype == torch.bfloat16


def test_first_forward_may_be_in_inference_mode(tmp_path):
    model, quantizer = quantized(Audio)
    x = torch.randn(2, 4, 9)
    expected = model(x)
    export(quantizer, tmp_path / "model.ts")
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), expected)


def test_file_is_as_small_as_the_packed_weights(tmp_path):
    _, quantizer = quantized(lambda: nn.Linear(512, 256))
    size = quantizer.true_model_size() * 2**20
    export(quantizer, tmp_path / "model.ts")
    assert size < os.path.getsize(tmp_path / "model.ts") < 1.02 * size + 16384


def test_file_runs_without_this_package(tmp_path):
    model, quantizer = quantized(Audio)
    x = torch.randn(2, 4, 9)
    torch.save((x, model(x).detach()), tmp_path / "data.pt")
    export(quantizer, tmp_path / "model.ts")
    program = (
        "import sys; sys.modules['diffq_fast'] = None\n"
        "import torch\n"
        "x, expected = torch.load('data.pt')\n"
        "torch.testing.assert_close(torch.jit.load('model.ts')(x), expected)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=tmp_path)


def test_a_model_that_torchscript_cannot_compile_keeps_its_weights(tmp_path):
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) * len(globals())

    model, quantizer = quantized(lambda: Odd(8, 8))
    weight = model.weight.detach().clone()
    with pytest.raises(RuntimeError):
        export(quantizer, tmp_path / "model.ts")
    assert torch.equal(model.weight, weight)
    assert not list(tmp_path.iterdir())


def test_deprecation_is_said():
    _, quantizer = quantized(lambda: nn.Linear(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning, match=r"PyTorch has deprecated TorchScript; use export_program"):
            export(quantizer)


def test_what_cannot_be_exported_is_refused():
    with pytest.raises(TypeError, match="expected a DiffQuantizer, got UniformQuantizer"):
        export(UniformQuantizer(nn.Linear(8, 8)))
    with pytest.raises(ValueError, match="float16=True is not supported"):
        export(DiffQuantizer(nn.Linear(8, 8), float16=True))
    model, quantizer = quantized(lambda: nn.Linear(8, 8))
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight has NaN or infinite elements"):
        export(quantizer)
    with pytest.raises(ValueError, match="weight has NaN or infinite elements"):
        export_program(quantizer, (torch.randn(1, 8),))


@pytest.mark.parametrize(
    "attach",
    [
        lambda model: DiffQuantizer(model, min_size=0, group_size=8, init_bits=3),
        lambda model: DiffQuantizer(model, min_size=0.0005, group_size=8, float16=True),
        lambda model: UniformQuantizer(model, bits=3, min_size=0),
        lambda model: LSQ(model, bits=3, min_size=0),
    ],
)
def test_program_holds_the_quantised_weights_and_leaves_the_model_alone(attach, tmp_path):
    torch.manual_seed(0)
    model = Audio().eval()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    attach(model)
    x = torch.randn(2, 4, 9)
    expected = model(x)
    model.train()
    program = export_program(model_quantizer(model), (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    for each in (program, torch.export.load(tmp_path / "model.pt2")):
        torch.testing.assert_close(each.module()(x), expected)
    assert not any(name.endswith(("_diffq", "_lsq")) for name in program.state_dict)
    assert model.training
    for name, value in plain.items():
        assert torch.equal(model.state_dict()[name], value)
    assert torch.equal(model.eval()(x), expected)


def model_quantizer(model):
    """The quantizer whose hook is on the model."""
    return next(iter(model._forward_pre_hooks.values())).__self__.source


def test_program_takes_dynamic_shapes():
    model, quantizer = quantized(lambda: nn.Linear(32, 16))
    batch = torch.export.Dim("batch")
    program = export_program(quantizer, (torch.randn(2, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 32)
    assert torch.equal(program.module()(x), model(x))


@pytest.mark.peer
def test_file_is_not_larger_than_that_of_the_peer(tmp_path):
    import diffq
    from diffq.ts_export import export as peer_export

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))

    export(DiffQuantizer(make(), min_size=0.01, group_size=8), tmp_path / "ours.ts")
    peer_export(diffq.DiffQuantizer(make(), min_size=0.01, group_size=8), tmp_path / "peer.ts")
    assert os.path.getsize(tmp_path / "ours.ts") < 1.1 * os.path.getsize(tmp_path / "peer.ts")
