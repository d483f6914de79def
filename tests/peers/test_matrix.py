"""What diffq 0.2.4 writes is read here, what is written here is read by diffq: exact floats, in files."""

import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast.legacy.state import load_legacy

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

FORMS = {
    "bitpack": {},
    "torch_pack": {"torch_pack": True},
    "unpacked": {"packed": False},
}


def network():
    model = nn.Sequential(nn.Conv1d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 32), nn.LayerNorm(32))
    nn.init.normal_(model[4].bias)  # diffq cannot export an LSQ weight of zeros
    return model


def set_widths(quantizer, widths):
    """Groups of each weight have these widths in turn (min_bits is 1, max_bits 15)."""
    for entry in quantizer._qparams:
        bits = torch.tensor(widths, dtype=torch.float64).repeat(entry.logit.numel() // len(widths) + 1)
        share = ((bits[: entry.logit.numel()] - 1) / 14).clamp(1e-3, 1 - 1e-3)
        with torch.no_grad():
            entry.logit.copy_(torch.log(share / (1 - share)))


def make(package, name, arguments, widths=None, seed=0):
    torch.manual_seed(seed)
    model = network()
    quantizer = getattr(package, name)(model, min_size=0, **arguments)
    if widths:
        set_widths(quantizer, widths)
    return model, quantizer


def weights(model, quantizer):
    with quantizer.enter_quantize():
        return {name: param.detach().clone() for name, param in model.named_parameters()}


def assert_holds(model, expected):
    for name, param in model.named_parameters():
        assert torch.equal(param, expected[name]), name


def written_by_diffq_read_here(name, arguments, form, path, widths=None):
    import diffq

    model, quantizer = make(diffq, name, arguments, widths)
    expected = weights(model, quantizer)
    torch.save(quantizer.get_quantized_state(**FORMS[form]), path)
    target = network()
    diffq_fast.restore_quantized_state(target, load_legacy(path))
    assert_holds(target, expected)
    live, reader = make(diffq_fast, name, arguments, seed=1)
    reader.restore_quantized_state(load_legacy(path))
    assert_holds(
        live, expected | {key: value for key, value in live.named_parameters() if key not in target.state_dict()}
    )


def written_here_read_by_diffq(name, arguments, form, path, widths=None):
    import diffq

    model, quantizer = make(diffq_fast, name, arguments, widths)
    expected = weights(model, quantizer)
    diffq_fast.save_legacy(quantizer, path, **FORMS[form])
    state = torch.load(path, weights_only=False)
    assert state["meta"]["klass"] is getattr(diffq, name)
    target = network()
    diffq.restore_quantized_state(target, state)
    assert_holds(target, expected)
    live, reader = make(diffq, name, arguments, seed=1)
    reader.restore_quantized_state(state)
    assert_holds(
        live, expected | {key: value for key, value in live.named_parameters() if key not in target.state_dict()}
    )


DIFFQ = {"group_size": 8, "min_bits": 1, "max_bits": 15}
DIRECTIONS = [written_by_diffq_read_here, written_here_read_by_diffq]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [*range(1, 15), "all"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_diffq_states(direction, width, form, tmp_path):
    widths = list(range(1, 15)) if width == "all" else [width]
    direction("DiffQuantizer", DIFFQ, form, tmp_path / "state.th", widths)


@pytest.mark.parametrize("form", FORMS)
def test_width_15_is_read_by_diffq_and_lost_when_it_writes(form, tmp_path):
    written_here_read_by_diffq("DiffQuantizer", DIFFQ, form, tmp_path / "state.th", [15, 4])
    if form == "unpacked":
        written_by_diffq_read_here("DiffQuantizer", DIFFQ, form, tmp_path / "state.th", [15, 4])
        return
    with pytest.raises(ValueError, match="15 bits"):
        written_by_diffq_read_here("DiffQuantizer", DIFFQ, form, tmp_path / "state.th", [15, 4])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", range(1, 16))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_uniform_states(direction, bits, form, tmp_path):
    if form == "torch_pack" and direction is written_by_diffq_read_here:
        with pytest.raises(TypeError):  # diffq's own defect
            direction("UniformQuantizer", {"bits": bits}, form, tmp_path / "state.th")
        return
    direction("UniformQuantizer", {"bits": bits}, form, tmp_path / "state.th")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", range(2, 16))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lsq_states(direction, bits, form, tmp_path):
    direction("LSQ", {"bits": bits}, form, tmp_path / "state.th")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["DiffQuantizer", "UniformQuantizer", "LSQ"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision_and_excluded_parameters(direction, name, form, tmp_path):
    if (form, name, direction) == ("torch_pack", "UniformQuantizer", written_by_diffq_read_here):
        form = "bitpack"
    arguments = {"float16": True, "exclude": ["*bias", "4.*"]}
    direction(name, arguments, form, tmp_path / "state.th")
