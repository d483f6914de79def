"""export to safetensors: every entry in the dtype that is asked for, and its error as it is."""

from __future__ import annotations

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


@pytest.mark.parametrize("path", [KINDS, CODED])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_entry_is_cast_and_its_error_told(path, dtype, tmp_path):
    report = export(path, tmp_path / "out", to="safetensors", dtype=dtype)
    state, written = read_packed(path).state_dict(), load_file(tmp_path / "out")
    assert set(written) == set(state) == {each.name for each in report.tensors}
    squares = reference = 0.0
    for each in report.tensors:
        kept = state[each.name]
        expected = kept.to(getattr(torch, dtype)) if kept.is_floating_point() else kept
        assert written[each.name].dtype == expected.dtype
        assert torch.equal(written[each.name], expected)
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


def test_copies_of_tied_tensors_are_bounded(tmp_path):
    weight = pack_weight(torch.arange(float(2**19)), torch.tensor([1], dtype=torch.uint8), group_size=0)
    path = Example({"w": weight}, ties={f"t{index}": "w" for index in range(60)}).write(tmp_path / "a")
    with pytest.raises(BudgetError, match="max_bytes"):
        export(path, tmp_path / "out", to="safetensors")
    assert os.listdir(tmp_path) == ["a"]
    assert len(export(path, tmp_path / "out", to="safetensors", max_bytes=10**9).tensors) == 61
