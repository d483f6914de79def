"""packed_container: golden bytes, an independent reader, damage of every kind, and what the file costs."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_decoder import decode_file
from packed_examples import DATA, GOLDEN, documented, example_weight, kinds
from packed_forgery import Forgery
from safetensors import safe_open

from diffq_fast import packed_container
from diffq_fast.packed_container import read_packed, write_packed
from diffq_fast.packed_header import PackedFileError
from diffq_fast.packed_report import inspect
from diffq_fast.packed_tensor import pack_weight
from diffq_fast.tensor_bytes import DTYPE_NAMES, tensor_bytes

REPOSITORY = DATA.parent.parent
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def golden(name: str) -> Path:
    return DATA / f"{name}.safetensors"


# -- the format stands still -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_are_made_again(name, tmp_path):
    assert GOLDEN[name]().write(tmp_path / "new").read_bytes() == golden(name).read_bytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_read_like_the_independent_reader_reads_them(name):
    contents = read_packed(golden(name))
    weights, plain, layout = decode_file(golden(name))
    assert list(weights) == list(contents.packed)
    for each, decoded in weights.items():
        packed = contents.packed[each]
        assert list(packed.shape) == decoded.shape
        assert DTYPE_NAMES[packed.dtype] == decoded.dtype
        assert packed.widths.tolist() == decoded.widths
        assert tensor_bytes(contents.tensor(each)).tobytes() == decoded.values
    assert {each: tensor_bytes(tensor).tobytes() for each, tensor in contents.plain.items()} == plain
    assert contents.ties == layout["ties"]


def test_golden_file_gives_back_what_was_written():
    example, contents = kinds(), read_packed(golden("packed_v1_kinds"))
    state = contents.state_dict()
    assert set(state) == {*example.packed, *example.plain, *example.ties}
    for name, packed in example.packed.items():
        assert torch.equal(state[name], packed.unpack())
    for name, tensor in example.plain.items():
        assert state[name].dtype == tensor.dtype
        expected = tensor.half().to(tensor.dtype) if name in example.half else tensor
        assert torch.equal(state[name], expected)
    assert state["head.weight"] is state["fixed"]
    assert state["norm.num_batches_tracked"].shape == ()
    assert contents.buffers == example.buffers
    assert contents.quantizer == example.quantizer_info


def test_documented_example_is_what_the_page_shows():
    page = (REPOSITORY / "docs" / "packed_format.md").read_text(encoding="utf-8")
    dump = page.split("```")[-2].strip().splitlines()
    shown = bytes.fromhex("".join(line[6:53] for line in dump))
    assert shown == golden("packed_v1_documented").read_bytes()
    levels = decode_file(golden("packed_v1_documented"))[0]["w"].levels
    assert levels == [0, 1, 2, 3, 1, 7]
    expected = torch.tensor([[0, 1, 2], [3, 0.42857146, 3]])
    assert torch.equal(read_packed(golden("packed_v1_documented")).state_dict()["v"], expected)


def test_safetensors_library_reads_the_file():
    with safe_open(golden("packed_v1_kinds"), "pt") as file:
        assert file.metadata()["format"] == "diffq_fast"
        contents = read_packed(golden("packed_v1_kinds"))
        for name, packed in contents.packed.items():
            assert torch.equal(file.get_tensor(name + ".words").view(torch.int32), packed.words)
            assert torch.equal(file.get_tensor(name + ".range"), packed.range)
        assert set(contents.plain) <= set(file.keys())


# -- round trips -----------------------------------------------------------------------------------------------------


@st.composite
def packed_weights(draw):
    shape = tuple(draw(st.lists(st.integers(0, 40), min_size=1, max_size=2)))
    group_size = draw(st.sampled_from([0, 1, 2, 5, 8, 16, 100]))
    widths = draw(st.lists(st.integers(1, 16), min_size=1, max_size=12))
    scope = draw(st.sampled_from(["tensor", "group"]))
    dtype = draw(st.sampled_from(DTYPES))
    return example_weight(shape, widths, group_size, dtype=dtype, range_scope=scope, seed=draw(st.integers(0, 99)))


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=6).filter(lambda name: "." not in name), packed_weights(), max_size=3))
def test_packed_weights_round_trip_in_both_readers(tmp_path_factory, packed):
    path = tmp_path_factory.mktemp("round") / "trip.safetensors"
    packed = {name: weight for name, weight in packed.items() if name != "__metadata__" and _encodable(name)}
    write_packed(path, packed, {})
    contents, (decoded, _, _) = read_packed(path), decode_file(path)
    assert list(contents.packed) == list(packed) == list(decoded)
    for name, weight in packed.items():
        found = contents.packed[name]
        for part in ("words", "widths", "range"):
            assert torch.equal(getattr(found, part), getattr(weight, part))
        assert (found.shape, found.dtype, found.group_size, found.range_scope) == (
            weight.shape, weight.dtype, weight.group_size, weight.range_scope,
        )  # fmt: skip
        assert tensor_bytes(weight.unpack()).tobytes() == decoded[name].values


def _encodable(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


@pytest.mark.parametrize("dtype", list(DTYPE_NAMES))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_plain_tensors_of_every_dtype_round_trip(dtype, shape, tmp_path):
    tensor = torch.from_numpy(np.arange(math.prod(shape)).reshape(shape)).to(dtype)
    turned = tensor.permute(*reversed(range(tensor.dim())))
    write_packed(tmp_path / "a", {}, {"t": tensor, "turned": turned})
    state = read_packed(tmp_path / "a").state_dict()
    assert state["t"].dtype == dtype
    assert tensor_bytes(state["t"]).tobytes() == tensor_bytes(tensor).tobytes()
    assert tensor_bytes(state["turned"]).tobytes() == tensor_bytes(turned.clone()).tobytes()


def test_a_file_without_tensors_round_trips(tmp_path):
    write_packed(tmp_path / "a", {}, {})
    assert read_packed(tmp_path / "a").state_dict() == {}


# -- damage ----------------------------------------------------------------------------------------------------------


def refused(path: Path, blob: bytes) -> bool:
    path.write_bytes(blob)
    try:
        read_packed(path)
    except PackedFileError as error:
        return str(path) in str(error)
    return False


def test_every_flipped_bit_is_found(tmp_path):
    blob = golden("packed_v1_documented").read_bytes()
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refused(tmp_path / "damaged", damaged), f"bit {bit}"


def test_flipped_bits_are_found_in_every_kind_of_tensor(tmp_path):
    blob = golden("packed_v1_kinds").read_bytes()
    for bit in range(0, 8 * len(blob), 61):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refused(tmp_path / "damaged", damaged), f"bit {bit}"


def test_every_truncation_is_found(tmp_path):
    blob = golden("packed_v1_documented").read_bytes()
    for length in range(len(blob)):
        assert refused(tmp_path / "damaged", blob[:length]), f"{length} bytes"
    for more in (b"\0", b"\0" * 8, blob):
        assert refused(tmp_path / "damaged", blob + more)


def test_damaged_levels_are_named(tmp_path):
    blob = bytearray(golden("packed_v1_documented").read_bytes())
    blob[0x290] ^= 1
    (tmp_path / "damaged").write_bytes(blob)
    with pytest.raises(PackedFileError, match=r"damaged: w.words: checksum \w{8} stored, \w{8} found in 20 bytes"):
        read_packed(tmp_path / "damaged")


def test_nothing_is_decoded_before_all_is_verified(tmp_path, monkeypatch):
    forgery = Forgery(golden("packed_v1_kinds"))
    path = forgery.write(tmp_path / "damaged")
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)

    def decode(self, dtype=None):
        raise AssertionError("decoded a damaged file")

    monkeypatch.setattr(packed_container.PackedTensor, "unpack", decode)
    with pytest.raises(PackedFileError):
        read_packed(path).state_dict()


# -- writing ---------------------------------------------------------------------------------------------------------


def test_write_refuses_names_that_collide(tmp_path):
    packed = {"a": example_weight((8,), 3, 8)}
    for plain, ties in (({"a.words": torch.zeros(1)}, {}), ({"a": torch.zeros(1)}, {}), ({}, {"a.range": "a"})):
        with pytest.raises(ValueError, match=r"save: the name 'a.*' is both .*; rename one"):
            write_packed(tmp_path / "a", packed, plain, ties)
    with pytest.raises(ValueError, match="a tied name points to 'c', which is not saved"):
        write_packed(tmp_path / "a", packed, {}, {"b": "c"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ([1, 2], "extra: expected a tensor, got list"),
        (torch.zeros(2, 2).to_sparse(), "extra: expected an ordinary dense tensor with data, got a torch.sparse_coo"),
        (torch.zeros(2, device="meta"), "extra: expected an ordinary dense tensor with data, got a meta"),
        (torch.zeros(2, dtype=torch.complex128), "extra: a tensor of torch.complex128 cannot be stored"),
    ],
)
def test_write_refuses_what_a_file_cannot_hold(tensor, words, tmp_path):
    with pytest.raises(TypeError, match=words):
        write_packed(tmp_path / "a", {}, {"extra": tensor})
    assert os.listdir(tmp_path) == []


def test_write_refuses_half_values_beyond_float16(tmp_path):
    with pytest.raises(ValueError, match=r"bias: its largest element 70000 is beyond float16's 65504"):
        write_packed(tmp_path / "a", {}, {"bias": torch.tensor([1.0, -7e4])}, half={"bias"})
    with pytest.raises(TypeError, match="count: only floating tensors can be stored in float16"):
        write_packed(tmp_path / "a", {}, {"count": torch.tensor(1)}, half={"count"})
    write_packed(tmp_path / "a", {}, {"bias": torch.tensor([1.0, math.inf])}, half={"bias"})
    assert read_packed(tmp_path / "a").state_dict()["bias"].tolist() == [1.0, math.inf]


def test_progress_counts_to_the_end(tmp_path):
    seen = []
    documented().write(tmp_path / "a")
    write_packed(tmp_path / "a", documented().packed, {}, progress=lambda *step: seen.append(step))
    assert seen == [("w.range", 8, 30), ("w.words", 28, 30), ("w.widths", 30, 30)]
    seen.clear()
    read_packed(tmp_path / "a", progress=lambda *step: seen.append(step))
    assert seen[-1] == ("w.widths", 30, 30)


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = documented().write(tmp_path / "model.safetensors")
    old = path.read_bytes()
    calls = []

    def fail(tensor):
        calls.append(tensor)
        if len(calls) == 3:
            raise RuntimeError("the device was lost")
        return tensor_bytes(tensor)

    monkeypatch.setattr(packed_container, "tensor_bytes", fail)
    with pytest.raises(RuntimeError, match="the device was lost"):
        kinds().write(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = documented().write(tmp_path / "model.safetensors")
    old = path.read_bytes()
    code = (
        "import os, signal, sys; from packed_examples import kinds\n"
        "from diffq_fast.packed_container import write_packed\n"
        "example, seen = kinds(), []\n"
        "def progress(name, done, total):\n"
        "    if done > total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_packed(sys.argv[1], example.packed, example.plain, progress=progress)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(DATA.parent)])}
    killed = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == old
    assert len(os.listdir(tmp_path)) == 2  # the temporary file of a killed process cannot be removed by it


# -- cost ------------------------------------------------------------------------------------------------------------


def formula_bits(widths: torch.Tensor, group_size: int, min_bits: int) -> float:
    """Size of a weight by the method's formula, with whole bits: levels, range, 8 bits, table of widths."""
    table = math.ceil(math.log2(1 + int(widths.max()) - min_bits))
    return group_size * int(widths.sum()) + 64 + 8 + len(widths) * table


def spread_widths(groups: int, mean: float, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    bits = mean + spread * torch.randn(groups, generator=generator)
    return bits.round().clamp(2, 15).to(torch.uint8)


@pytest.mark.parametrize(("mean", "spread"), [(4, 1.5), (8, 3), (8, 0.1), (3, 6)])
def test_a_large_weight_costs_at_most_a_tenth_of_a_bit_above_the_formula(mean, spread, tmp_path):
    widths = spread_widths(2**17, mean, spread)
    write_packed(tmp_path / "a", {"weight": pack_weight(torch.randn(1024, 1024), widths)}, {})
    extra = 8 * os.path.getsize(tmp_path / "a") - formula_bits(widths, 8, 2)
    assert extra / 2**20 <= 0.1


@pytest.mark.parametrize("spread", [0, 1, 3, 20])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_small_layer_costs_at_most_3_percent_and_1_kb_above_the_formula(spread, with_bias, tmp_path):
    widths = spread_widths(384, 8, spread)
    packed = {"layers.0.weight": pack_weight(torch.randn(48, 64), widths)}
    plain = {"layers.0.bias": torch.randn(48)} if with_bias else {}
    info = {"class": "DiffQuantizer", "arguments": {"group_size": 8, "min_size": 0, "min_bits": 2, "max_bits": 15}}
    write_packed(tmp_path / "a", packed, plain, quantizer_info=info)
    formula = formula_bits(widths, 8, 2) / 8 + 4 * 48 * with_bias
    assert os.path.getsize(tmp_path / "a") <= 1.03 * formula + 1024


def test_the_size_is_the_documented_sum(tmp_path):
    path = kinds().write(tmp_path / "a")
    report = inspect(path)
    assert report.file_bytes == os.path.getsize(path) == sum(report.bytes_by_purpose.values())
