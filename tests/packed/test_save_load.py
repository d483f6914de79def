"""packed_file: what save writes, load gives back, into any fitting model, and into no other."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from diffq_fast.packed.contents import PackedContents, read_packed, write_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.save_load import load, save
from diffq_fast.quantizers.diffq import DiffQuantizer
from support.packed_models import Net, trained


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict, other: dict) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


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
    assert set(read_packed(tmp_path / "a").half) == {
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "first.bias",
        "gain",
    }


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
    write_packed(tmp_path / "b", PackedContents({}, {"weight": torch.zeros(10, 10), "bias": torch.zeros(10)}))
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
    write_packed(tmp_path / "b", PackedContents({}, plain))
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


def test_storages_can_still_be_resized_behind_a_save(tmp_path):
    """As fully_shard does with those of weights: numpy's view of a tensor forbids it for good."""
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 4))
    save(DiffQuantizer(model, min_size=0, exclude=["*bias"]), tmp_path / "file")
    assert all(each.untyped_storage().resizable() for each in model.parameters())
