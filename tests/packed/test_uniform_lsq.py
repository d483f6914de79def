"""Packed files of UniformQuantizer and LSQ: levels of any number, and indices times a scale."""

import copy

import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast.packed.contents import PackedContents, read_packed, write_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.tensor import pack_levels
from support.models import Tied
from support.packed_examples import DATA
from support.packed_forgery import Forgery

GOLDEN = DATA / "packed_v1_even_and_scaled.safetensors"


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(56, 8))


def attach(name, model, bits, **arguments):
    quantizer = getattr(diffq_fast, name)(model, bits=bits, **{"min_size": 0, **arguments})
    quantizer.no_optimizer()
    return quantizer


CASES = [("UniformQuantizer", bits) for bits in (1, 1.5, 2.3, 4, 8, 9.6, 12.2, 15)]
CASES += [("LSQ", bits) for bits in (2, 5, 8, 15)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_a_file_gives_back_what_eval_sees_and_the_buffers(name, bits, dtype, tmp_path):
    model = conv_net()
    quantizer = attach(name, model, bits)
    for _ in range(2):
        model(torch.randn(4, 4, 9) * 2 + 1)
    model.to(dtype)
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    with quantizer.enter_quantize():
        expected = {key: value.clone() for key, value in model.state_dict().items() if not key.endswith("_lsq")}
    found = diffq_fast.load(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key
    other = conv_net().to(dtype)
    diffq_fast.load(tmp_path / "model.safetensors", other)
    x = torch.randn(2, 4, 9, dtype=dtype)
    assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("suffix", ["_lsq", "_scale"])
def test_a_model_with_lsq_gets_its_scales_too(logits, suffix, tmp_path):
    model, other = Tied(), Tied()
    quantizer, reader = attach("LSQ", model, 4, suffix=suffix), attach("LSQ", other, 4, suffix=suffix)
    with torch.no_grad():
        for entry in quantizer.selection.originals:
            entry.scale.mul_(1.7)
    diffq_fast.save(quantizer, tmp_path / "model.safetensors", logits=logits)
    diffq_fast.load(tmp_path / "model.safetensors", other)
    for entry, source in zip(reader.selection.originals, quantizer.selection.originals, strict=True):
        assert torch.equal(entry.scale, source.scale)
    x = torch.randn(2, 32)
    assert torch.equal(other.eval()(x), model.eval()(x))
    assert other.b.weight is other.a.weight


def test_lsq_training_goes_on_from_the_quantised_weights(tmp_path):
    model = nn.Linear(16, 16)
    quantizer = attach("LSQ", model, 4)
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    other = nn.Linear(16, 16)
    attach("LSQ", other, 4)
    diffq_fast.load(tmp_path / "model.safetensors", other)
    x = torch.randn(2, 16)
    torch.testing.assert_close(other(x), model(x))


def test_report_and_size(tmp_path):
    model = nn.Linear(64, 64)
    quantizer = attach("LSQ", model, 4)
    diffq_fast.save(quantizer, tmp_path / "model.safetensors", logits=True)
    report = diffq_fast.inspect(tmp_path / "model.safetensors")
    assert report.quantizer == {"class": "LSQ", "arguments": {"bits": 4, "min_size": 0}}
    assert report.histogram == {4: 64 * 65}
    assert report.bytes_by_purpose["learned values"] == 8
    assert report.bytes_by_purpose["ranges"] == 8
    assert report.bytes_by_purpose["levels"] == 64 * 65 // 2
    quantizer = attach("UniformQuantizer", nn.Linear(64, 64), 9.6)
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    report = diffq_fast.inspect(tmp_path / "model.safetensors")
    assert report.histogram == {10: 64 * 65}
    assert "UniformQuantizer" in report.to_json()
    assert "10" in report.table()


def test_a_level_count_that_is_a_power_of_two_is_an_ordinary_weight():
    levels = torch.tensor([0, 1, 3], dtype=torch.int32)
    packed = pack_levels(levels, 2, torch.tensor([0.0, 3.0]), dtype=torch.float32, level_count=4)
    assert packed.level_count is None
    assert packed.unpack().tolist() == [0, 1, 3]


@pytest.mark.parametrize("scope", ["tensor", "scale"])
def test_empty_weights(scope, tmp_path):
    found = torch.zeros(2 if scope == "tensor" else 1)
    levels = torch.zeros(0, 4, dtype=torch.int32)
    packed = pack_levels(levels, 4, found, dtype=torch.float32, range_scope=scope)
    write_packed(tmp_path / "file", PackedContents({"w": packed}, {}))
    assert read_packed(tmp_path / "file").state_dict()["w"].shape == (0, 4)


def test_what_cannot_be_packed_is_refused():
    levels = torch.zeros(4, dtype=torch.int32)
    with pytest.raises(ValueError, match="w: expected a finite scale, found"):
        pack_levels(levels, 4, torch.tensor([float("nan")]), dtype=torch.float32, range_scope="scale", name="w")
    with pytest.raises(ValueError, match="w: expected finite elements"):
        pack_levels(levels, 4, torch.tensor([0.0, float("inf")]), dtype=torch.float32, name="w")
    with pytest.raises(TypeError, match="w: expected float32, float16 or bfloat16"):
        pack_levels(levels, 4, torch.tensor([0.0, 1.0]), dtype=torch.float64, name="w")
    with pytest.raises(ValueError, match="level 16 of element 0 does not fit"):
        pack_levels(levels + 16, 4, torch.tensor([0.0, 1.0]), dtype=torch.float32, name="w")


def forged(tmp_path, name, **fields):
    forgery = Forgery(GOLDEN)
    forgery.layout["weights"][name].update(fields)
    return forgery.write(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("even", {"levels": 512}, "levels needs"),
        ("even", {"levels": 1024}, "levels needs"),
        ("even", {"levels": True}, "levels needs"),
        ("even", {"levels": None}, "levels needs a number, got null"),
        ("even", {"levels": "776"}, "levels needs"),
        ("even", {"levels": 2**70}, "levels needs"),
        ("even", {"range": "scale"}, "levels needs|expected a range"),
        ("scaled", {"levels": 9}, 'levels needs range "tensor"'),
        ("scaled", {"group_size": 8}, 'range "scale" needs group_size 0'),
        ("scaled", {"widths": ["one", 1]}, 'range "scale" needs group_size 0'),
        ("scaled", {"widths": ["runs"]}, 'range "scale" needs group_size 0'),
        ("scaled", {"range": "tensor"}, r"expected a range of \(2,\), found \(1,\)"),
        ("scaled", {"range": "other"}, "range must be one of"),
        ("scaled", {"offset": 1}, "the layout must state"),
    ],
)
def test_layouts_that_cannot_be_are_refused(name, fields, words, tmp_path):
    with pytest.raises(PackedFileError, match=words):
        read_packed(forged(tmp_path, name, **fields))


@pytest.mark.parametrize("value", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f"])
def test_a_scale_that_is_not_finite_is_refused(value, tmp_path):
    forgery = Forgery(GOLDEN)
    forgery.set_data("scaled.range", value, "F32")
    with pytest.raises(PackedFileError, match=r"scaled\.range: expected a finite scale"):
        read_packed(forgery.write(tmp_path / "file"))


def test_models_and_files_of_different_quantizers_do_not_fit(tmp_path):
    model = nn.Linear(16, 16)
    diffq_fast.save(attach("LSQ", copy.deepcopy(model), 4), tmp_path / "lsq")
    diffq_fast.save(attach("UniformQuantizer", copy.deepcopy(model), 4), tmp_path / "uniform")
    other = copy.deepcopy(model)
    diffq_fast.DiffQuantizer(other, min_size=0)
    with pytest.raises(ValueError, match="missing in the file: weight_diffq, bias_diffq"):
        diffq_fast.load(tmp_path / "lsq", other)
    other = copy.deepcopy(model)
    attach("LSQ", other, 4)
    with pytest.raises(ValueError, match="missing in the file: weight_lsq, bias_lsq"):
        diffq_fast.load(tmp_path / "uniform", other)
