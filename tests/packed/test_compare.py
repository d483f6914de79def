"""compare: which tensors of two files differ, and by how much, in figures that are worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from diffq_fast.packed.coding import code_packed
from diffq_fast.packed.compare import compare, comparison_table, error_of
from diffq_fast.packed.contents import PackedContents, read_packed, write_packed
from diffq_fast.packed.tensor import pack_weight
from diffq_fast.quantizers.stored_input import StoredInput
from support.packed_examples import DATA, Example, example_weight

KINDS = DATA / "packed_v1_kinds.safetensors"


def test_errors_are_those_of_the_formula():
    error = error_of(torch.tensor([3.0, 0.0, -4.0]), torch.tensor([3.0, 1.0, -2.0]))
    assert (error.differing, error.largest, error.squares, error.reference) == (2, 2.0, 5.0, 25.0)
    assert error.relative == math.sqrt(5 / 25)
    assert error_of(torch.zeros(3), torch.ones(3)).relative == math.inf
    assert error_of(torch.zeros(0), torch.zeros(0)).relative == 0
    nan, infinite = torch.tensor([math.nan, 1.0]), torch.tensor([math.inf, 1.0])
    assert error_of(nan, nan.clone()).differing == error_of(infinite, infinite.clone()).differing == 0
    assert error_of(nan, infinite).largest == math.inf
    assert error_of(torch.tensor([-0.0]), torch.tensor([0.0])).differing == 0


def test_integers_that_float64_cannot_tell_apart_differ():
    assert error_of(torch.tensor([2**60]), torch.tensor([2**60 + 1])).differing == 1


def test_errors_of_long_tensors_are_those_of_their_parts(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    one, two = torch.randn(1000, generator=generator), torch.randn(1000, generator=generator)
    whole = error_of(one, two)
    monkeypatch.setattr("diffq_fast.packed.compare.COMPARED_AT_ONCE", 77)
    parts = error_of(one, two)
    assert parts.differing == whole.differing
    assert parts.largest == whole.largest
    assert parts.relative == pytest.approx(whole.relative, rel=1e-12)


def test_a_file_equals_itself_and_the_same_weights_in_another_coding(tmp_path):
    assert compare(KINDS, KINDS).equal
    weight = example_weight((40, 30), [3, 5], 8)
    Example({"w": weight}, {"b": torch.ones(2)}).write(tmp_path / "fixed")
    Example({"w": code_packed(weight)}, {"b": torch.ones(2)}).write(tmp_path / "coded")
    save_file({"w": weight.unpack(), "b": torch.ones(2)}, tmp_path / "plain")
    for second in ("coded", "plain"):
        comparison = compare(tmp_path / "fixed", tmp_path / second)
        assert comparison.equal
        assert comparison.tensors == 2
        assert comparison.file_bytes == tuple((tmp_path / each).stat().st_size for each in ("fixed", second))


def test_each_kind_of_difference_is_told(tmp_path):
    one = {"a": torch.tensor([1.0, 2.0]), "s": torch.zeros(2, 3), "d": torch.ones(4), "gone": torch.ones(1)}
    two = {"a": torch.tensor([1.0, 2.5]), "s": torch.zeros(3, 2), "d": torch.ones(4).half(), "new": torch.ones(1)}
    save_file(one | {"same": torch.ones(3)}, tmp_path / "one")
    save_file(two | {"same": torch.ones(3)}, tmp_path / "two")
    comparison = compare(tmp_path / "one", tmp_path / "two")
    found = {each.name: each for each in comparison.differences}
    assert {name: each.what for name, each in found.items()} == {
        "a": "values", "s": "shape", "d": "dtype", "gone": "only in the first", "new": "only in the second",
    }  # fmt: skip
    values = found["a"]
    assert (values.elements, values.differing, values.largest) == (2, 1, 0.5)
    assert values.relative == pytest.approx(0.5 / math.sqrt(5))
    assert (found["d"].differing, found["d"].bits, found["d"].bytes) == (0, (32.0, 16.0), (16, 8))
    assert found["s"].relative is None
    assert found["gone"].bytes == (4, None)
    assert comparison.relative == pytest.approx(0.5 / math.sqrt(5 + 4 + 3))
    assert comparison.tensors == 6
    text = comparison_table(comparison)
    assert "shape 2x3 -> 3x2" in text
    assert "dtype F32 -> F16" in text
    assert "5 of 6 tensors differ" in text


def test_a_packed_file_against_its_checkpoint_tells_bits_and_errors(tmp_path):
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    packed = pack_weight(weight, torch.full((256,), 4, dtype=torch.uint8))
    Example({"w": packed}, {"half": torch.ones(5)}, {"tied": "w"}, {"half"}).write(tmp_path / "packed")
    save_file({"w": weight, "tied": weight.clone(), "half": torch.ones(5)}, tmp_path / "plain")
    comparison = compare(tmp_path / "plain", tmp_path / "packed")
    found = {each.name: each for each in comparison.differences}
    assert set(found) == {"w", "tied"}
    first = found["w"]
    error = read_packed(tmp_path / "packed").tensor("w").double() - weight.double()
    assert first.largest == float(error.abs().max())
    assert first.relative == pytest.approx(float(error.norm() / weight.double().norm()), rel=1e-12)
    assert first.bytes == (4 * 64 * 32, 64 * 32 // 2 + 8)
    assert found["tied"].bytes == first.bytes


def test_indices_have_no_part_in_the_error_of_all(tmp_path):
    save_file({"w": torch.tensor([3.0, 4.0]), "places": torch.tensor([1000])}, tmp_path / "one")
    save_file({"w": torch.tensor([3.0, 4.5]), "places": torch.tensor([900])}, tmp_path / "two")
    comparison = compare(tmp_path / "one", tmp_path / "two")
    assert comparison.relative == 0.1
    assert {each.name: each.relative for each in comparison.differences} == {"w": 0.1, "places": 0.1}


def test_bytes_of_what_is_kept_in_half_precision(tmp_path):
    Example({}, {"half": torch.ones(5)}, {}, {"half"}).write(tmp_path / "one")
    Example({}, {"half": torch.zeros(5)}).write(tmp_path / "two")
    assert compare(tmp_path / "one", tmp_path / "two").differences[0].bytes == (10, 20)


def test_inputs_that_are_rounded_in_another_way_differ(tmp_path):
    weight = example_weight((40, 30), [3, 5], 8)
    as_they_are, eight = {}, {"up": StoredInput(8, 1.5), "down": StoredInput(6, 0.25, logit=0.5)}
    for name, inputs in {"none": as_they_are, "eight": eight, "other": eight | {"up": StoredInput(7, 1.5)}}.items():
        write_packed(tmp_path / name, PackedContents({"w": weight}, {}, activations=inputs))
    assert compare(tmp_path / "eight", tmp_path / "eight").equal
    comparison = compare(tmp_path / "eight", tmp_path / "other")
    assert not comparison.equal
    assert not comparison.differences
    assert comparison.activations == {"up": (StoredInput(8, 1.5), StoredInput(7, 1.5))}
    assert comparison_table(comparison).splitlines()[0] == "input of up: 8 bits, range 1.5 -> 7 bits, range 1.5"
    comparison = compare(tmp_path / "none", tmp_path / "eight")
    assert "input of down: as it is -> 6 bits, range 0.25" in comparison_table(comparison)
    assert json.loads(json.dumps(comparison.to_dict()))["activations"]["up"] == [
        None,
        {"bits": 8, "range": 1.5, "logit": None},
    ]
