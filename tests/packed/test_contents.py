"""packed_container: golden bytes, an independent reader, round trips, and no half-written files."""

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
from safetensors import safe_open

from diffq_fast.files.tensor_bytes import DTYPE_NAMES, tensor_bytes
from diffq_fast.packed import contents as packed_container
from diffq_fast.packed.contents import PackedContents, read_packed, write_packed
from support.packed_decoder import decode_file
from support.packed_examples import DATA, GOLDEN, documented, example_weight, kinds

REPOSITORY = DATA.parent.parent
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def golden(name: str) -> Path:
    return DATA / f"{name}.safetensors"


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_are_made_again(name, tmp_path):
    assert GOLDEN[name]().write(tmp_path / "new").read_bytes() == golden(name).read_bytes()


@pytest.mark.parametrize("count", [2**18, 2**18 + 1, 400_003])
def test_checksums_of_tensors_above_a_megabyte_are_those_of_an_independent_reader(count, tmp_path):
    large = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32, generator=torch.Generator().manual_seed(count))
    plain = {"large": large, "odd": large[1:].view(torch.uint8)[3:], "small": large[:9]}
    write_packed(tmp_path / "new", PackedContents({}, plain))
    _, plain, _ = decode_file(tmp_path / "new")  # compares the checksums
    assert plain["large"] == large.numpy().tobytes()
    assert read_packed(tmp_path / "new").tensor("odd").equal(large[1:].view(torch.uint8)[3:])


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
    assert contents.ties == layout.get("ties", {})


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
    header, data = (block.strip("\n").splitlines() for block in page.split("```")[-4::2])
    raw = "".join(header).encode()
    raw += b" " * (-len(raw) % 8)
    shown = len(raw).to_bytes(8, "little") + raw + bytes.fromhex("".join(line[:60] for line in data))
    assert shown == golden("packed_v1_documented").read_bytes()
    assert f"`{shown[:8].hex(' ')}`" in page
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
            assert torch.equal(file.get_tensor(name + ".range"), packed.ranges)
        assert set(contents.plain) <= set(file.keys())


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
    write_packed(path, PackedContents(packed, {}))
    contents, (decoded, _, _) = read_packed(path), decode_file(path)
    assert list(contents.packed) == list(packed) == list(decoded)
    for name, weight in packed.items():
        found = contents.packed[name]
        for part in ("words", "widths", "ranges"):
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
    turned = tensor.permute(tuple(reversed(range(tensor.dim()))))
    write_packed(tmp_path / "a", PackedContents({}, {"t": tensor, "turned": turned}))
    state = read_packed(tmp_path / "a").state_dict()
    assert state["t"].dtype == dtype
    assert tensor_bytes(state["t"]).tobytes() == tensor_bytes(tensor).tobytes()
    assert tensor_bytes(state["turned"]).tobytes() == tensor_bytes(turned.clone()).tobytes()


def test_a_file_without_tensors_round_trips(tmp_path):
    write_packed(tmp_path / "a", PackedContents({}, {}))
    assert read_packed(tmp_path / "a").state_dict() == {}


def test_write_refuses_names_that_collide(tmp_path):
    packed = {"a": example_weight((8,), 3, 8)}
    for plain, ties in (
        ({"a.words": torch.zeros(1)}, {}),
        ({"a": torch.zeros(1)}, {}),
        ({}, {"a.range": "a"}),
    ):
        with pytest.raises(ValueError, match=r"save: the name 'a.*' is both .*; rename one"):
            write_packed(tmp_path / "a", PackedContents(packed, plain, ties))
    with pytest.raises(ValueError, match="a tied name points to 'c', which is not saved"):
        write_packed(tmp_path / "a", PackedContents(packed, {}, {"b": "c"}))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ([1, 2], "extra: expected a tensor, got list"),
        (
            torch.zeros(2, 2).to_sparse(),
            "extra: expected an ordinary dense tensor with data, got a torch.sparse_coo",
        ),
        (torch.zeros(2, device="meta"), "extra: expected an ordinary dense tensor with data, got a meta"),
        (torch.zeros(2, dtype=torch.complex128), "extra: a tensor of torch.complex128 cannot be stored"),
    ],
)
def test_write_refuses_what_a_file_cannot_hold(tensor, words, tmp_path):
    with pytest.raises(TypeError, match=words):
        write_packed(tmp_path / "a", PackedContents({}, {"extra": tensor}))
    assert os.listdir(tmp_path) == []


def halved(**plain) -> PackedContents:
    return PackedContents({}, plain, half={name: tensor.dtype for name, tensor in plain.items()})


def test_write_refuses_half_values_beyond_float16(tmp_path):
    with pytest.raises(ValueError, match=r"bias: its largest element 70000 is beyond float16's 65504"):
        write_packed(tmp_path / "a", halved(bias=torch.tensor([1.0, -7e4])))
    with pytest.raises(TypeError, match="count: only floating tensors can be stored in float16"):
        write_packed(tmp_path / "a", halved(count=torch.tensor(1)))
    write_packed(tmp_path / "a", halved(bias=torch.tensor([1.0, math.inf])))
    assert read_packed(tmp_path / "a").state_dict()["bias"].tolist() == [1.0, math.inf]


def test_progress_counts_to_the_end(tmp_path):
    seen = []
    documented().write(tmp_path / "a")
    write_packed(tmp_path / "a", PackedContents(documented().packed, {}), lambda *step: seen.append(step))
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
        "import os, signal, sys; from support.packed_examples import kinds\n"
        "from diffq_fast.packed.contents import write_packed\n"
        "example, seen = kinds(), []\n"
        "def progress(name, done, total):\n"
        "    if done > total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_packed(sys.argv[1], example.contents(), progress)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(DATA.parent)])}
    killed = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == old
    assert len(os.listdir(tmp_path)) == 2  # the temporary file of a killed process cannot be removed by it


def test_one_element_of_any_stride_is_stored(tmp_path):
    plain = {"gain": torch.arange(4.0)[2::3], "bias": torch.arange(6.0).reshape(2, 3)[:1, ::2][:, 1:]}
    write_packed(tmp_path / "file", PackedContents({}, plain))
    assert {name: tensor.tolist() for name, tensor in read_packed(tmp_path / "file").plain.items()} == {
        "gain": [2.0],
        "bias": [[2.0]],
    }


@pytest.mark.parametrize("ranges", [(0.0, math.inf), (math.nan, 1.0), (1.0, 0.0), (-3e38, 3e38)])
def test_ranges_that_no_reader_takes_are_not_written(ranges, tmp_path):
    weight = example_weight((4, 8), 3, 0)
    weight.ranges.copy_(torch.tensor(ranges))
    with pytest.raises(ValueError, match=r"save: w: expected ranges lo <= hi, finite and no further apart"):
        write_packed(tmp_path / "new", PackedContents({"w": weight}, {}))
    assert not (tmp_path / "new").exists()
