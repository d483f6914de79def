"""export to ONNX: the graph with packed weights answers in onnxruntime what the model answers with unpacked ones."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast.exporters.export import export
from diffq_fast.exporters.onnx import is_rounding_of
from diffq_fast.exporters.options import ExportError
from diffq_fast.packed.coding import code_levels
from diffq_fast.packed.tensor import pack_levels, pack_weight
from support.packed_examples import Example, example_weight

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Network(nn.Module):
    """A lookup, a convolution, products that become Gemm and MatMul, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.conv = nn.Conv1d(64, 48, 3, padding=1)
        self.up = nn.Linear(48, 96)
        self.down = nn.Linear(96, 64, bias=False)
        self.pooled = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(64)

    def forward(self, indices):
        hidden = self.table(indices)
        hidden = self.conv(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = self.norm(self.down(torch.relu(self.up(hidden))))
        scores = hidden @ self.table.weight.t()
        return self.pooled(hidden.mean(1)), scores


WEIGHTS = ("table.weight", "conv.weight", "up.weight", "down.weight", "pooled.weight")
INDICES = torch.arange(2 * 7).reshape(2, 7) * 3 % 50


def network():
    torch.manual_seed(5)
    return Network().eval()


def float_graph(model, path, opset=18, **options):
    with pytest.warns(DeprecationWarning, match="ONNX export"):
        torch.onnx.export(model, (INDICES,), str(path), dynamo=False, opset_version=opset, **options)
    return path


def packed_file(model, path, pack):
    """A file of the model: `pack` makes each weight; all else is plain."""
    state = dict(model.state_dict())
    packed = {name: pack(state[name]) for name in WEIGHTS}
    return Example(packed, {name: value for name, value in state.items() if name not in packed}).write(path)


def widths(weight, group_size, cycle):
    groups = -(-weight.numel() // group_size) if group_size else 1
    return torch.from_numpy(np.resize(np.array(cycle, dtype=np.uint8), groups))


def learned(weight):
    return pack_weight(weight, widths(weight, 8, [2, 5, 3]), group_size=8)


def wide(weight):
    return pack_weight(weight, widths(weight, 8, [2, 11]), group_size=8)


def ragged(weight):
    return pack_weight(weight, widths(weight, 7, [4, 8]), group_size=7, range_scope="group")


def four_bits(weight):
    return pack_weight(weight, widths(weight, 16, [4]), group_size=16, range_scope="group")


def whole(weight):
    return pack_weight(weight, widths(weight, 0, [6]), group_size=0)


def scaled(weight):
    levels = (weight / 0.03).round().clamp(-8, 7).to(torch.int32) + 8
    return pack_levels(levels, 4, torch.tensor([0.03]), dtype=torch.float32, range_scope="scale")


def stepped(weight):
    rows = weight.shape[0]
    codes = torch.full((rows,), -80) - torch.arange(rows) % 5
    steps = (2.0 ** (codes / 16)).reshape(-1, *[1] * (weight.dim() - 1))
    return code_levels((weight / steps).round().int(), codes, group_size=weight.numel() // rows)


KINDS = (learned, wide, ragged, four_bits, whole, scaled, stepped)


def answers(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: INDICES.numpy()})


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def assert_answers_like(packed, exported):
    unpacked = diffq_fast.load(packed, network())
    with torch.no_grad():
        expected = unpacked(INDICES)
    for ours, theirs in zip(expected, answers(exported), strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("pack", KINDS)
@pytest.mark.parametrize("portable", [False, True])
def test_onnxruntime_answers_what_the_unpacked_model_answers(pack, portable, tmp_path):
    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", do_constant_folding=False)
    packed = packed_file(model, tmp_path / "packed", pack)
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph), portable=portable)
    assert_answers_like(packed, tmp_path / "out.onnx")
    assert report.error.relative < 1e-6
    assert {each.name for each in report.tensors} == set(model.state_dict())
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    assert ("MatMulNBits" in operators(tmp_path / "out.onnx")) == (
        not portable and pack in (four_bits, scaled, stepped)
    )
    floats = [each for each in onnx.load(tmp_path / "out.onnx").graph.initializer if each.name in WEIGHTS]
    assert floats == []


@pytest.mark.parametrize("pack", [learned, stepped])
def test_weights_that_an_exporter_renamed_and_transposed_are_found_by_their_values(pack, tmp_path):
    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", do_constant_folding=True)
    names = {each.name for each in onnx.load(graph).graph.initializer}
    assert not {"up.weight", "down.weight"} & names  # folded: transposed, under names of the exporter's own
    packed = packed_file(model, tmp_path / "packed", pack)
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph))
    assert_answers_like(packed, tmp_path / "out.onnx")
    assert [note.split(":")[0] for note in report.notes] == ["3 found by their values"]
    assert sorted(each.name for each in report.tensors) == sorted([*model.state_dict(), "table.weight"])


def test_the_file_gets_small_and_so_do_its_tensors(tmp_path):
    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", do_constant_folding=False)
    packed = packed_file(model, tmp_path / "packed", four_bits)
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph))
    by_name = {each.name: each for each in report.tensors}
    count = 96 * 48
    assert by_name["up.weight"].stored == "MatMulNBits, 4 bits in blocks of 16"
    assert by_name["up.weight"].bytes == count // 2 + 2 * 4 * count // 16
    assert by_name["conv.weight"].stored == "uint4, DequantizeLinear"
    assert by_name["norm.bias"].stored == "float32"
    assert report.bytes == os.path.getsize(tmp_path / "out.onnx") < 0.45 * os.path.getsize(graph)


def test_scales_of_one_range_and_few_widths_are_a_table_and_its_places(tmp_path):
    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", do_constant_folding=False)
    packed = packed_file(model, tmp_path / "packed", learned)
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph))
    (up,) = (each for each in report.tensors if each.name == "up.weight")
    count = 96 * 48
    # Levels of 2, 3 and 5 bits in 8; a place of 4 bits for each group of 8; three steps; one end of the range.
    assert up.bytes == count + count // 8 // 2 + 3 * 4 + 4


def two_bits(weight):
    levels = (weight / 0.2).round().clamp(-2, 1).to(torch.int32) + 2
    return pack_levels(levels, 2, torch.tensor([0.2]), dtype=torch.float32, range_scope="scale")


def ranged_two_bits(weight):
    return pack_weight(weight, widths(weight, 16, [2]), group_size=16, range_scope="group")


def float_graph_of(model, path, opset):
    """torch writes opsets of up to 20."""
    onnx.save(
        onnx.version_converter.convert_version(onnx.load(float_graph(model, path, do_constant_folding=False)), opset),
        path,
    )
    return path


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(("pack", "kind"), [(two_bits, "int2"), (ranged_two_bits, "uint2")])
def test_opset_25_has_integers_of_two_bits(pack, kind, portable, tmp_path):
    model = network()
    graph = float_graph_of(model, tmp_path / "float.onnx", 25)
    packed = packed_file(model, tmp_path / "packed", pack)
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph), portable=portable)
    assert_answers_like(packed, tmp_path / "out.onnx")
    by_name = {each.name: each for each in report.tensors}
    assert by_name["conv.weight"].stored == f"{kind}, DequantizeLinear"
    stored = getattr(onnx.TensorProto, kind.upper())
    levels = [each for each in onnx.load(tmp_path / "out.onnx").graph.initializer if each.data_type == stored]
    assert len(levels) == (len(WEIGHTS) if portable else 2)
    assert all(len(each.raw_data) == -(-np.prod(each.dims) // 4) for each in levels)
    assert report.error.relative < 1e-6


def test_with_int8_activations_two_bits_are_multiplied_as_two_bits(tmp_path):
    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", do_constant_folding=False)
    packed, reports = packed_file(model, tmp_path / "packed", two_bits), {}
    for activations in ("float", "int8"):
        output = tmp_path / f"with_{activations}.onnx"
        reports[activations] = export(packed, output, to="onnx", graph=str(graph), activations=activations)
    up = {way: next(each for each in report.tensors if each.name == "up.weight") for way, report in reports.items()}
    assert up["float"].stored == "MatMulNBits, 4 bits in blocks of 64"
    assert up["int8"].stored == "MatMulNBits, 2 bits in blocks of 64, int8 activations"
    assert up["float"].bytes - up["int8"].bytes == 96 * 64 // 4  # a block is longer than the 48 columns
    exact, rounded = answers(tmp_path / "with_float.onnx"), answers(tmp_path / "with_int8.onnx")
    for one, other in zip(exact, rounded, strict=True):
        distance = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert 1e-4 < distance < 0.02


def test_with_int8_activations_ranges_and_short_blocks_keep_four_bits(tmp_path):
    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", do_constant_folding=False)
    packed = packed_file(model, tmp_path / "packed", ranged_two_bits)
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph), activations="int8")
    (up,) = (each for each in report.tensors if each.name == "up.weight")
    assert up.stored == "MatMulNBits, 4 bits in blocks of 16, int8 activations"
    assert_answers_like(packed, tmp_path / "out.onnx")  # onnxruntime does not round where zero points are floats


@pytest.mark.parametrize("options", [{"activations": "int4"}, {"activations": "int8", "portable": True}])
def test_other_activations_are_refused(options, tmp_path):
    packed = packed_file(network(), tmp_path / "packed", two_bits)
    with pytest.raises(ValueError, match=r"export: activations must be 'float' or, for onnx with MatMulNBits, 'int8'"):
        export(packed, tmp_path / "out.onnx", to="onnx", graph="float.onnx", **options)
    with pytest.raises(ValueError, match=r"'int8', got 'int8' for gguf"):
        export(packed, tmp_path / "out.gguf", to="gguf", activations="int8")


def test_a_table_that_is_looked_up_and_multiplied_has_both_forms(tmp_path):
    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", do_constant_folding=False)
    packed = packed_file(model, tmp_path / "packed", scaled)
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph))
    (table,) = (each for each in report.tensors if each.name == "table.weight")
    assert table.stored == "MatMulNBits, 4 bits in blocks of 64 and int4, DequantizeLinear"


def test_an_old_opset_has_eight_bits_and_refuses_more(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no adapter")

    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", opset=17, do_constant_folding=False)
    monkeypatch.setattr(onnx.version_converter, "convert_version", fails)
    packed = packed_file(model, tmp_path / "packed", learned)
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph))
    assert "stays at opset 17, with 8 bits for 4: no adapter" in report.notes[0]
    assert_answers_like(packed, tmp_path / "out.onnx")
    packed = packed_file(model, tmp_path / "packed", wide)
    (tmp_path / "out.onnx").unlink()
    with pytest.raises(
        ExportError, match=r"11 bits for a level, and opset 17 has \[8\]; export the graph with opset 21"
    ):
        export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph))
    assert not (tmp_path / "out.onnx").exists()
    report = export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph), keep_float=True)
    assert any("float32 (too many bits" in each.stored for each in report.tensors)
    assert_answers_like(packed, tmp_path / "out.onnx")


def test_weights_that_are_not_in_the_graph_are_refused_by_name(tmp_path):
    model = network()
    graph = float_graph(model, tmp_path / "float.onnx", do_constant_folding=False)
    others = Example({"elsewhere.weight": example_weight((9, 8), 4, 8)}, dict(model.state_dict())).write(tmp_path / "p")
    with pytest.raises(ExportError, match=r"elsewhere.weight: onnx cannot express it: no initialiser of .*float.onnx"):
        export(others, tmp_path / "out.onnx", to="onnx", graph=str(graph))
    report = export(others, tmp_path / "out.onnx", to="onnx", graph=str(graph), keep_float=True)
    assert "1 weights are not in the graph: elsewhere.weight" in report.notes[-1]
    assert not any("stay as they are" in note for note in report.notes)
    shaped = Example({"up.weight": example_weight((95, 48), 4, 8)}).write(tmp_path / "q")
    with pytest.raises(ExportError, match=r"up.weight: .*the graph has the shape \[96, 48\], the file \(95, 48\)"):
        export(shaped, tmp_path / "no.onnx", to="onnx", graph=str(graph))


def test_what_is_no_graph_is_refused(tmp_path):
    packed = packed_file(network(), tmp_path / "packed", learned)
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match=r"text.onnx is no ONNX model that can be read"):
        export(packed, tmp_path / "out.onnx", to="onnx", graph=str(tmp_path / "text.onnx"))
    with pytest.raises(FileNotFoundError):
        export(packed, tmp_path / "out.onnx", to="onnx", graph=str(tmp_path / "none.onnx"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        export(packed, tmp_path / "out.onnx", to="onnx", graph=str(tmp_path / "pipe"))
    graph = float_graph(network(), tmp_path / "float.onnx")
    with pytest.raises(ValueError, match="keeps the float type of the graph"):
        export(packed, tmp_path / "out.onnx", to="onnx", graph=str(graph), dtype="float16")
    with pytest.raises(ValueError, match="is the input itself"):
        export(packed, graph, to="onnx", graph=str(graph))
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_and_its_file_become_one_graph(tmp_path):
    model = network()
    packed = packed_file(model, tmp_path / "packed", stepped)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stated = {"input_names": ["indices"], "dynamic_axes": {"indices": {0: "batch"}}}
    report = diffq_fast.export_onnx(packed, model, (INDICES,), tmp_path / "out.onnx", graph_options=stated)
    assert report.error.relative < 1e-6
    assert_answers_like(packed, tmp_path / "out.onnx")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"indices": INDICES[:1].numpy()})[0].shape == (1, 32)
    with pytest.raises(ValueError, match="is in train mode"):
        diffq_fast.export_onnx(packed, model.train(), (INDICES,), tmp_path / "out.onnx")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a batch of more than one, and of tracing
def test_a_recurrent_layer_whose_gates_the_exporter_sorts_in_the_graph(tmp_path):
    torch.manual_seed(1)
    model, inputs = nn.LSTM(8, 8).eval(), torch.randn(3, 1, 8)
    packed = {"weight_ih_l0": example_weight((32, 8), 4, 8), "weight_hh_l0": example_weight((32, 8), 4, 8, seed=1)}
    plain = {name: value for name, value in model.state_dict().items() if name not in packed}
    path = Example(packed, plain).write(tmp_path / "a")
    diffq_fast.export_onnx(path, model, (inputs,), tmp_path / "out.onnx", graph_options={"input_names": ["inputs"]})
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    answer = session.run(None, {"inputs": inputs.numpy()})[0]
    with torch.no_grad():
        expected = diffq_fast.load(path, model)(inputs)[0]
    torch.testing.assert_close(torch.from_numpy(answer), expected, rtol=2e-4, atol=2e-5)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, images):
        return self.norm(self.conv(images))


def normalised(path):
    """A model with a normalisation that does something, its packed file, and inputs."""
    torch.manual_seed(2)
    model = Normalised().eval()
    with torch.no_grad():
        model.norm.weight.copy_(torch.linspace(0.5, 1.5, 8))
        model.norm.running_mean.copy_(torch.linspace(-1, 1, 8))
    state = dict(model.state_dict())
    packed = {"conv.weight": learned(state.pop("conv.weight"))}
    return model, Example(packed, state).write(path), torch.randn(1, 3, 9, 9)


def test_a_weight_with_a_normalisation_folded_into_it_is_not_taken_for_the_files(tmp_path):
    model, packed, images = normalised(tmp_path / "packed")
    with pytest.warns(DeprecationWarning, match="ONNX export"):
        torch.onnx.export(model, (images,), str(tmp_path / "folded.onnx"), dynamo=False, opset_version=18)
    assert not {each.name for each in onnx.load(tmp_path / "folded.onnx").graph.initializer} & {"conv.weight"}
    with pytest.raises(ExportError, match=r"conv.weight: onnx cannot express it: no initialiser of"):
        export(packed, tmp_path / "out.onnx", to="onnx", graph=str(tmp_path / "folded.onnx"))


def test_a_graph_made_here_has_its_normalisations_apart(tmp_path):
    model, packed, images = normalised(tmp_path / "packed")
    diffq_fast.export_onnx(packed, model, (images,), tmp_path / "out.onnx", graph_options={"input_names": ["images"]})
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = diffq_fast.load(packed, model)(images)
    torch.testing.assert_close(torch.from_numpy(answer), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_a_weight_is_told_from_its_rounding_and_from_others(width):
    generator = torch.Generator().manual_seed(width)
    exact = torch.randn(64, 96, generator=generator) * 0.05
    packed = pack_weight(exact, widths(exact, 32, [width]), group_size=32, range_scope="group").unpack()
    value, there = packed.numpy(), exact.numpy()
    assert is_rounding_of(there, there)
    assert is_rounding_of(value, there)
    factors = np.linspace(0.7, 1.3, 64, dtype=np.float32)[:, None]
    assert not is_rounding_of(value, there * factors)
    assert not is_rounding_of(value, there * np.float32(1.5))
    assert not is_rounding_of(value, np.roll(there, 1, axis=0))
    assert not is_rounding_of(value, -there)


def small_graph(path, kind, opset=21):
    """x [2, 64] times the transpose of w [32, 64], in float16 or float32; w is an input too, as in old files."""
    helper, shapes = onnx.helper, {"x": [2, 64], "w": [32, 64], "y": [2, 32]}
    values = {name: helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()}
    dtype = np.float16 if kind == onnx.TensorProto.FLOAT16 else np.float32
    weight = onnx.numpy_helper.from_array(np.zeros((32, 64), dtype), "w")
    nodes = [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    graph = helper.make_graph(nodes, "g", [values["x"], values["w"]], [values["y"]], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["FLOAT16", "FLOAT"])
def test_a_graph_keeps_its_float_type_and_loses_the_weight_among_its_inputs(kind, tmp_path):
    graph = small_graph(tmp_path / "float.onnx", getattr(onnx.TensorProto, kind))
    weight = four_bits(torch.randn(32, 64, generator=torch.Generator().manual_seed(3)))
    packed = Example({"w": weight}).write(tmp_path / "packed")
    export(packed, tmp_path / "out.onnx", to="onnx", graph=graph)
    assert ("MatMulNBits" in operators(tmp_path / "out.onnx")) == (kind == "FLOAT")
    assert ("Cast" in operators(tmp_path / "out.onnx")) == (kind == "FLOAT16")
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["x"]
    inputs = torch.linspace(-1, 1, 128).reshape(2, 64).to(torch.float16 if kind == "FLOAT16" else torch.float32)
    (answer,) = session.run(None, {"x": inputs.numpy()})
    assert answer.dtype == inputs.numpy().dtype
    expected = inputs.double() @ weight.unpack().double().t()
    assert np.allclose(answer, expected.numpy(), atol=2e-2 if kind == "FLOAT16" else 1e-4)
