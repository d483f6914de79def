"""demucs_file: packages of Demucs 4.1 are told from the other formats, read whole, and refused where damaged."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from diffq_fast.legacy.state import load_legacy
from support.paths import GOLDEN

TENSORS = {
    "double": torch.tensor([1.5, -2.5], dtype=torch.float64),
    "long": torch.tensor([[2**40, -3]]),
    "half": torch.tensor([0.5], dtype=torch.float16),
    "brain": torch.tensor([0.25, 3.0], dtype=torch.bfloat16),
    "flag": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
    "alone": torch.tensor(7, dtype=torch.uint8),
}


def metadata(tensors, padding: int = 0):
    structure = {"_dict": [[name, {"_tensor": name}] for name in tensors]}
    values = {"args": [], "kwargs": {"note": "x" * padding}, "structure": structure}
    return {"klass": "torch.nn.Linear"} | {name: json.dumps(value) for name, value in values.items()}


def test_every_dtype_comes_back(tmp_path):
    save_file(TENSORS, tmp_path / "file", metadata(TENSORS))
    state = load_legacy(tmp_path / "file").state
    assert list(state) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


def test_the_headers_length_may_begin_like_a_pickle(tmp_path):
    """One header in 32 has 128 modulo 256 bytes, so the file's first byte is that of a pickle."""
    first = set()
    for padding in range(0, 256, 8):
        save_file({"a": torch.ones(2)}, tmp_path / "file", metadata(["a"], padding))
        first.add((tmp_path / "file").read_bytes()[0])
        assert torch.equal(load_legacy(tmp_path / "file").state["a"], torch.ones(2))
    assert pickle.PROTO[0] in first


def damaged(change):
    data = (GOLDEN / "demucs_hf.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return change(data, end)


def with_metadata(data, end, **texts):
    header = json.loads(data[8:end])
    header["__metadata__"] |= texts
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data[end:]


MANY_CLASSES = [{"_class": f"{index:x}"} for index in range(40_000)]  # of 1,500 bytes each
COLLIDING = [[index * (2**61 - 1), 0] for index in range(1, 1000)]  # all of one hash


@pytest.mark.parametrize(
    "change",
    [
        lambda data, end: data[:-1],
        lambda data, end: data[:end],
        lambda data, end: data[: end // 2],
        lambda data, end: data + b"\0",
        lambda data, end: data[:8] + data[8:end].replace(b'"shape":[', b'"shape":[9', 1) + data[end:],
        lambda data, end: data[:8] + data[8:end].replace(b"_tensor", b"_tenser") + data[end:],
        lambda data, end: with_metadata(data, end, structure='{"_tensor":"missing"}'),
        lambda data, end: with_metadata(data, end, structure='{"_list":[' * 5000 + "]}" * 5000),
        lambda data, end: with_metadata(data, end, structure=json.dumps({"_list": MANY_CLASSES})),
        lambda data, end: with_metadata(data, end, structure=json.dumps({"_dict": COLLIDING})),
        lambda data, end: with_metadata(data, end, kwargs='{"a":[' + "{}," * (3 << 19) + "0]}"),
        lambda data, end: with_metadata(data, end, kwargs="3}"),
        lambda data, end: (10**8).to_bytes(8, "little") + b"{",
    ],
)
def test_a_damaged_package_is_refused_by_name(change, tmp_path):
    path = tmp_path / "package.safetensors"
    path.write_bytes(damaged(change))
    with pytest.raises(ValueError, match=r"package\.safetensors: not a readable safetensors package of Demucs 4\.1"):
        load_legacy(path)
