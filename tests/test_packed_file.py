"""packed_file: what save writes, load gives back, into any fitting model, and into no other."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from torch import nn

from diffq_fast.packed_container import read_packed, write_packed
from diffq_fast.packed_file import load, save
from diffq_fast.packed_header import PackedFileError
from diffq_fast.packed_report import inspect
from diffq_fast.packed_tensor import pack_weight
from diffq_fast.quantizers.diffq import DiffQuantizer


class Net(nn.Module):
    """Convolution, batch norm, tied linear layers with tied biases, and buffers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 10, 3)
        self.norm = nn.BatchNorm1d(10)
        self.first = nn.Linear(10, 10)
        self.second = nn.Linear(10, 10)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean(2)
        return self.second(torch.relu(self.first(x))) * self.gain


def trained(spread: float = 1.5, dtype: torch.dtype = torch.float32, **arguments) -> tuple[Net, DiffQuantizer]:
    """A model whose batch norm has seen data and whose logits are spread."""
    torch.manual_seed(3)
    model = Net().to(dtype)
    options = {"group_size": 8, "min_size": 80 * 4 / 2**20} | arguments
    quantizer = DiffQuantizer(model, **options)
    quantizer.no_optimizer()
    model(torch.randn(4, 3, 9, dtype=dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_diffq"):
                parameter.add_(spread * torch.randn_like(parameter))
    return model, quantizer


def widths_of(quantizer) -> dict[str, list[int]]:
    return {record.name: record.widths.tolist() for record in quantizer.export_weights()}


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict, other: dict) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


# -- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"group_size": 0},
        {"group_size": 1},
        {"group_size": 7},
        {"group_size": 1000},
        {"range_scope": "group"},
        {"float16": True},
        {"param": "noise", "min_bits": 1.5, "max_bits": 9, "init_bits": 4},
        {"extra_bits": -3},
        {"extra_bits": 2},
        {"min_size": 1.0},
        {"min_size": 0},
        {"exclude": ["first.*", "second.*"]},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16, "float16": True},
    ],
    ids=str,
)
def test_a_loaded_plain_model_computes_what_the_quantised_one_does(arguments, tmp_path):
    model, quantizer = trained(**arguments)
    model.eval()
    x = torch.randn(2, 3, 9, dtype=model.gain.dtype)
    save(quantizer, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", Net().to(model.gain.dtype).eval())
    assert isinstance(loaded, Net)
    with quantizer.enter_quantize():
        assert torch.equal(loaded(x), model(x))
    assert loaded.steps.item() == 7
    assert loaded.norm.num_batches_tracked.item() == 1
    assert torch.equal(loaded.norm.running_var, model.norm.running_var)
    assert torch.equal(loaded.mask, model.mask)


def test_saving_changes_nothing(tmp_path):
    model, quantizer = trained(float16=True)
    before = snapshot(model)
    save(quantizer, tmp_path / "a", logits=True)
    assert_same(before, snapshot(model))


def test_the_file_holds_each_tensor_once(tmp_path):
    _, quantizer = trained()
    save(quantizer, tmp_path / "a")
    contents = read_packed(tmp_path / "a")
    assert list(contents.packed) == ["conv.weight", "first.weight"]
    assert contents.ties == {"second.weight": "first.weight", "second.bias": "first.bias"}
    buffers = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "steps", "mask"}
    assert contents.buffers == buffers
    assert set(contents.plain) == buffers | {"conv.bias", "norm.weight", "norm.bias", "first.bias", "gain"}
    assert contents.quantizer["class"] == "DiffQuantizer"
    assert contents.quantizer["arguments"]["group_size"] == 8


def test_half_parameters_come_back_in_their_own_dtype(tmp_path):
    model, quantizer = trained(float16=True)
    save(quantizer, tmp_path / "a")
    contents, state = read_packed(tmp_path / "a"), load(tmp_path / "a")
    assert contents.plain["conv.bias"].dtype == torch.float16
    assert contents.plain["norm.running_mean"].dtype == torch.float32
    assert torch.equal(state["conv.bias"], model.conv.bias.half().float())
    assert torch.equal(state["norm.running_mean"], model.norm.running_mean)


def test_all_unquantised_parameters_and_no_buffers_are_half(tmp_path):
    _, quantizer = trained(float16=True)
    save(quantizer, tmp_path / "a")
    assert set(read_packed(tmp_path / "a").half) == {"conv.bias", "norm.weight", "norm.bias", "first.bias", "gain"}


def test_load_without_a_model_gives_a_state_dict(tmp_path):
    model, quantizer = trained()
    save(quantizer, tmp_path / "a")
    state = load(tmp_path / "a")
    plain = Net()
    assert set(state) == set(plain.state_dict())
    plain.load_state_dict(state)
    assert torch.equal(plain.eval()(torch.ones(1, 3, 9)), model.eval()(torch.ones(1, 3, 9)))
    assert state["second.weight"] is state["first.weight"]


def test_load_keeps_parameters_their_dtype_and_their_ties(tmp_path):
    _, quantizer = trained()
    save(quantizer, tmp_path / "a")
    plain = Net().bfloat16()
    parameters = dict(plain.named_parameters())
    load(tmp_path / "a", plain)
    assert all(plain.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert plain.first.weight is plain.second.weight
    assert plain.conv.weight.dtype == torch.bfloat16
    assert torch.equal(plain.conv.weight, load(tmp_path / "a")["conv.weight"].bfloat16())
    assert plain.conv.weight.requires_grad


def test_rnn_weights_are_in_force_after_loading(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(8, 8, num_layers=2))
    save(DiffQuantizer(model, min_size=0, group_size=8), tmp_path / "a")
    loaded = load(tmp_path / "a", nn.Sequential(nn.LSTM(8, 8, num_layers=2)))
    x = torch.randn(5, 1, 8)
    assert torch.equal(loaded.eval()(x)[0], model.eval()(x)[0])


# -- logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"param": "noise"},
        {"extra_bits": 1.5},
        {"extra_bits": -2},
        {"min_bits": 2.4, "max_bits": 8.6, "init_bits": 4},
        {"min_bits": 4, "max_bits": 4.4, "init_bits": 4.2},
        {"group_size": 0},
        {"suffix": "_bits"},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.5, 3, 30])
def test_without_stored_logits_the_same_widths_come_out_again(arguments, spread, tmp_path):
    _, quantizer = trained(spread, **arguments)
    save(quantizer, tmp_path / "a")
    other, again = trained(0, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "a", other)
    assert widths_of(again) == widths_of(quantizer)
    low, high = again.min_bits, again.max_bits
    for record in again._qparams:
        bits = again._get_bits(record.logit)
        assert bool(((bits > low) & (bits < high)).all())
    save(again, tmp_path / "b")
    assert read_packed(tmp_path / "b").packed["conv.weight"].widths.tolist() == widths_of(quantizer)["conv.weight"]


def test_stored_logits_are_restored_exactly(tmp_path):
    model, quantizer = trained()
    save(quantizer, tmp_path / "a", logits=True)
    other, _ = trained(0)
    load(tmp_path / "a", other)
    for name, tensor in model.state_dict().items():
        if name.endswith("_diffq"):
            assert torch.equal(other.state_dict()[name], tensor)
    assert inspect(tmp_path / "a").bytes_by_purpose["logits"] == 4 * (12 + 13)


def test_a_plain_model_passes_over_stored_logits(tmp_path):
    model, quantizer = trained()
    save(quantizer, tmp_path / "a", logits=True)
    loaded = load(tmp_path / "a", Net().eval())
    assert torch.equal(loaded(torch.ones(1, 3, 9)), model.eval()(torch.ones(1, 3, 9)))
    assert "conv.weight_diffq" in load(tmp_path / "a")


def test_widths_out_of_the_rules_reach_are_told(tmp_path):
    packed = {"weight": pack_weight(torch.randn(4, 8), torch.tensor([3, 16, 5, 4], dtype=torch.uint8))}
    write_packed(tmp_path / "a", packed, {}, quantizer_info={"class": "none", "arguments": {"min_bits": 4}})
    model = nn.Linear(8, 4, bias=False)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8, min_bits=4)
    with pytest.warns(UserWarning, match="weight_diffq: 2 of 4 groups have widths that bits strictly between 4 and"):
        load(tmp_path / "a", model)
    assert widths_of(quantizer)["weight"] == [4, 15, 5, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_bits": "2"}, "must be numbers"),
        ({"max_bits": True}, "must be numbers"),
        ({"extra_bits": 1e9}, "must be numbers"),
        ({"min_bits": 15}, "expected 0 < min_bits < max_bits"),
        ({"min_bits": 0}, "expected 0 < min_bits < max_bits"),
        ({"param": "steps"}, "param must be one of"),
        ({"suffix": ""}, "param must be one of .* and suffix a text"),
        ({"suffix": []}, "param must be one of .* and suffix a text"),
    ],
)
def test_impossible_quantizer_arguments_are_refused(arguments, words, tmp_path):
    write_packed(tmp_path / "a", {}, {}, quantizer_info={"class": "DiffQuantizer", "arguments": arguments})
    with pytest.raises(PackedFileError, match=f"a: quantizer: .*{words}"):
        load(tmp_path / "a", nn.Linear(1, 1))


# -- models that do not fit ------------------------------------------------------------------------------------------


def refusal(path, model, **options) -> str:
    """The error of load, after seeing that it left the model alone."""
    before = snapshot(model)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load(path, model, **options)
    assert_same(before, snapshot(model))
    return str(caught.value)


def test_missing_and_unexpected_names_are_listed_together(tmp_path):
    _, quantizer = trained()
    save(quantizer, tmp_path / "a")
    model = Net()
    model.extra = nn.Linear(2, 2)
    del model.steps, model.conv
    message = refusal(tmp_path / "a", model)
    assert "missing in the file: extra.weight, extra.bias;" in message
    assert "not in the model: conv.weight, steps, conv.bias" in message
    assert "strict=False" in message
    load(tmp_path / "a", model, strict=False)
    assert torch.equal(model.first.weight, load(tmp_path / "a")["first.weight"])


@pytest.mark.parametrize("strict", [True, False])
def test_wrong_shapes_are_named(strict, tmp_path):
    _, quantizer = trained()
    save(quantizer, tmp_path / "a")
    model = Net()
    model.conv = nn.Conv1d(3, 10, 5)
    model.gain = nn.Parameter(torch.zeros(2))
    message = refusal(tmp_path / "a", model, strict=strict)
    assert "conv.weight: expected shape [10, 3, 5], the file has [10, 3, 3]" in message
    assert "gain: expected shape [2], the file has []" in message
    assert "strict=False" not in message


def test_wrong_kinds_of_numbers_are_named(tmp_path):
    _, quantizer = trained()
    save(quantizer, tmp_path / "a")
    model = Net()
    model.steps = model.steps.float()
    assert "steps: expected torch.float32, the file has torch.int64" in refusal(tmp_path / "a", model)


def test_another_group_size_is_named(tmp_path):
    _, quantizer = trained()
    save(quantizer, tmp_path / "a")
    model, _ = trained(group_size=4)
    message = refusal(tmp_path / "a", model)
    assert "conv.weight_diffq: the model has [23] logits, the file 12 groups of 8; use the same group_size" in message


def test_a_model_without_data_is_refused(tmp_path):
    with torch.device("meta"):
        model = nn.Linear(10, 10)
    write_packed(tmp_path / "b", {}, {"weight": torch.zeros(10, 10), "bias": torch.zeros(10)})
    with pytest.raises(ValueError, match=r"weight: the model's entry holds no data; use to_empty\(\)"):
        load(tmp_path / "b", model)


def test_ties_of_the_model_must_hold_in_the_file(tmp_path):
    untied = Net()
    untied.second = nn.Linear(10, 10)
    save(DiffQuantizer(untied, group_size=8, min_size=80 * 4 / 2**20), tmp_path / "a")
    message = refusal(tmp_path / "a", Net())
    assert "second.weight: is tied to first.weight in the model, but the file has different values" in message
    assert "second.bias: is tied to first.bias" in message
    untied.second.load_state_dict(untied.first.state_dict(), strict=False)
    plain = {name: tensor for name, tensor in untied.state_dict().items() if not name.endswith("_diffq")}
    write_packed(tmp_path / "b", {}, plain)
    assert torch.equal(load(tmp_path / "b", Net()).second.weight, untied.first.weight)


def test_a_damaged_file_leaves_the_model_alone(tmp_path):
    _, quantizer = trained()
    save(quantizer, tmp_path / "a")
    blob = bytearray((tmp_path / "a").read_bytes())
    blob[-1] ^= 1
    (tmp_path / "a").write_bytes(blob)
    model = Net()
    before = snapshot(model)
    with pytest.raises(PackedFileError, match="checksum"):
        load(tmp_path / "a", model)
    assert_same(before, snapshot(model))


# -- saving that must not happen -------------------------------------------------------------------------------------


def test_save_refuses_a_broken_weight_and_names_it(tmp_path):
    model, quantizer = trained()
    save(quantizer, tmp_path / "a")
    old = (tmp_path / "a").read_bytes()
    with torch.no_grad():
        model.conv.weight[1, 1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"conv\.weight"):
        save(quantizer, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == old
    assert os.listdir(tmp_path) == ["a"]


def test_save_refuses_extra_state(tmp_path):
    model, quantizer = trained()
    model.__class__ = type("Stateful", (Net,), {"get_extra_state": lambda self: [1]})
    with pytest.raises(TypeError, match="_extra_state"):
        save(quantizer, tmp_path / "a")


def test_save_reports_progress(tmp_path):
    _, quantizer = trained()
    seen = []
    save(quantizer, tmp_path / "a", progress=lambda name, done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
