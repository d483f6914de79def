"""export to safetensors: every entry in the dtype that is asked for, and its error as it is."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from safetensors.torch import load_file

from diffq_fast.exporters.export import export
from diffq_fast.exporters.options import ExportError
from diffq_fast.files.budget import BudgetError
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.tensor import pack_weight
from support.packed_examples import DATA, Example, example_weight

KINDS, CODED = DATA / "packed_v1_kinds.safetensors", DATA / "packed_v2_coded.safetensors"


DTYPES = ["float32", "float16", "bfloat16", "float64", "float8_e5m2"]


@pytest.mark.parametrize(
    ("path", "dtype"),
    [*itertools.product([KINDS, CODED], DTYPES), (KINDS, "float8_e4m3fn")],  # whose range CODED leaves
)
def test_every_entry_is_cast_and_its_error_told(path, dtype, tmp_path):
    report = export(path, tmp_path / "out", to="safetensors", dtype=dtype)
    state, written = read_packed(path).state_dict(), load_file(tmp_path / "out")
    assert set(written) == set(state) == {each.name for each in report.tensors}
    squares = reference = 0.0
    for each in report.tensors:
        kept = state[each.name]
        expected = kept.to(getattr(torch, dtype)) if kept.is_floating_point() else kept
        assert written[each.name].dtype == expected.dtype
        assert torch.equal(written[each.name].double(), expected.double())
        error = (expected.double() - kept.double()).abs()
        assert each.error.largest == (float(error.max()) if error.numel() else 0)
        assert each.bytes == expected.numel() * expected.element_size()
        if kept.is_floating_point():  # indices have no part in the error of all
            squares, reference = squares + float(error.square().sum()), reference + float(kept.double().square().sum())
    assert report.error.relative == pytest.approx((squares / reference) ** 0.5, rel=1e-9)
    assert report.bytes == os.path.getsize(tmp_path / "out")


def test_float32_weights_come_back_bit_for_bit(tmp_path):
    Example({"w": example_weight((40, 30), [3, 5], 8)}, {"b": torch.ones(3)}).write(tmp_path / "a")
    report = export(tmp_path / "a", tmp_path / "out", to="safetensors")
    assert report.error.squares == 0
    assert "no error: the weights are those of the packed file, bit for bit" in report.table()


def test_an_element_beyond_the_dtype_is_refused_by_name(tmp_path):
    weight = pack_weight(torch.tensor([0.0, 1e6]), torch.tensor([2], dtype=torch.uint8), group_size=0)
    path = Example({"large.weight": weight}).write(tmp_path / "a")
    with pytest.raises(ExportError, match=r"large.weight: .*express it: .* 1e\+06 is beyond float16's"):
        export(path, tmp_path / "out", to="safetensors", dtype="float16")
    assert os.listdir(tmp_path) == ["a"]
    assert export(path, tmp_path / "out", to="safetensors", dtype="bfloat16").error.relative < 0.004


@pytest.mark.parametrize(
    ("dtype", "fits", "becomes", "beyond"),
    [
        ("float8_e4m3fn", [448.0, -463.0, 1.0625], [448.0, -448.0, 1.0], [465.0, 1e6, torch.inf, -torch.inf]),
        ("float8_e5m2", [57344.0, -61000.0, torch.inf], [57344.0, -57344.0, torch.inf], [62000.0, -1e6]),
    ],
)
def test_float8_has_its_own_ends(dtype, fits, becomes, beyond, tmp_path):
    path = Example({}, {"edge": torch.tensor([*fits, torch.nan])}).write(tmp_path / "a")
    report = export(path, tmp_path / "out", to="safetensors", dtype=dtype)
    written = load_file(tmp_path / "out")["edge"].float()
    assert written[:-1].tolist() == becomes
    assert bool(written[-1].isnan())
    assert [(each.stored, each.bytes) for each in report.tensors] == [(dtype, 4)]
    for value in beyond:
        path = Example({}, {"edge": torch.tensor([1.0, value])}).write(tmp_path / "b")
        with pytest.raises(ExportError, match=rf"edge: .*its largest element .* is beyond {dtype}'s \d+; take another"):
            export(path, tmp_path / "more", to="safetensors", dtype=dtype)


def test_float64_keeps_what_the_file_has_in_it(tmp_path):
    values = torch.tensor([1 + 2.0**-50, 3.0], dtype=torch.float64)
    path = Example({"w": example_weight((40, 30), [3, 5], 8)}, {"b": values}).write(tmp_path / "a")
    report = export(path, tmp_path / "out", to="safetensors", dtype="float64")
    assert report.error.squares == 0
    assert torch.equal(load_file(tmp_path / "out")["b"], values)


@pytest.mark.parametrize("to", ["gguf", "compressed-tensors", "onnx"])
@pytest.mark.parametrize("dtype", ["float64", "float8_e5m2"])
def test_other_formats_have_fewer_dtypes(to, dtype, tmp_path):
    path = Example({"w": example_weight((40, 32), 4, 8)}).write(tmp_path / "a")
    with pytest.raises(ValueError, match=f"dtype for {to} must be one of float32, float16, bfloat16, got '{dtype}'"):
        export(path, tmp_path / "out", to=to, dtype=dtype)


def test_copies_of_tied_tensors_are_bounded(tmp_path):
    weight = pack_weight(torch.arange(float(2**19)), torch.tensor([1], dtype=torch.uint8), group_size=0)
    path = Example({"w": weight}, ties={f"t{index}": "w" for index in range(60)}).write(tmp_path / "a")
    with pytest.raises(BudgetError, match="max_bytes"):
        export(path, tmp_path / "out", to="safetensors")
    assert os.listdir(tmp_path) == ["a"]
    assert len(export(path, tmp_path / "out", to="safetensors", max_bytes=10**9).tensors) == 61
