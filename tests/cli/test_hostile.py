"""Every verb on files and paths made to hurt it: one line of error, or one JSON object, and nothing without end."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tracemalloc

import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast.cli import commands as cli
from diffq_fast.compat.convert import convert
from diffq_fast.files.budget import LEAST, RATIO
from diffq_fast.packed.contents import PackedContents, write_packed
from diffq_fast.packed.tensor import pack_weight
from support.command_line import run
from support.packed_examples import DATA, Example, example_weight
from support.packed_forgery import Forgery, compact

KINDS = DATA / "packed_v1_kinds.safetensors"


def assert_one_error(capsys, *arguments):
    code, out, error = run(capsys, *arguments)
    assert code == 1
    assert error.count("\n") == 1
    assert error.startswith(f"diffq-fast {arguments[0]}: ")
    assert not out
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 1
    return json.loads(out)["error"]


@pytest.fixture
def alarm():
    """A signal that ends a call which would wait for ever."""

    def stop(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("verb", ["inspect", "verify", "bench", "unpack", "export", "convert", "pack"])
def test_a_pipe_is_refused_at_once(verb, capsys, tmp_path, alarm):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    rest = {"inspect": [], "verify": [], "bench": [], "pack": [tmp_path / "out", "--bits", "4"]}
    rest = rest.get(verb, ["--to", "gguf"] if verb == "export" else [tmp_path / "out"])
    assert "is not a regular file" in assert_one_error(capsys, verb, pipe, *rest)
    with pytest.raises(ValueError, match="is not a regular file"):
        diffq_fast.load_legacy(pipe)


def forged(tmp_path, change, name="forged"):
    forgery = Forgery(KINDS)
    change(forgery)
    return forgery.write(tmp_path / name)


@pytest.mark.parametrize("depth", [70, 700, 100_000])
def test_arguments_nested_without_end_are_refused_by_every_verb(depth, capsys, tmp_path):
    quantizer = '{"class":"x","arguments":{"a":' + "[" * depth + "]" * depth + "}}"
    path = forged(tmp_path, lambda forgery: forgery.metadata.update(quantizer=quantizer))
    for verb in (["inspect", path], ["verify", path], ["unpack", path, tmp_path / "out"]):
        assert "nested too deeply" in assert_one_error(capsys, *verb)
    with pytest.raises(ValueError, match="nested too deeply"):
        diffq_fast.load(path)


def test_arguments_nested_as_deep_as_allowed_are_read_and_told(capsys, tmp_path):
    quantizer = '{"class":"x","arguments":{"a":' + "[" * 62 + "]" * 62 + "}}"
    path = forged(tmp_path, lambda forgery: forgery.metadata.update(quantizer=quantizer))
    code, out, _ = run(capsys, "inspect", path, "--json")
    assert code == 0
    assert json.loads(out)["quantizer"]["class"] == "x"


@pytest.mark.parametrize(
    "error", [RecursionError("too deep"), MemoryError(), RuntimeError("no\x1b[31m"), KeyError("a")]
)
def test_an_exception_that_nobody_foresaw_is_one_line_or_one_object(error, capsys, monkeypatch):
    def broken(path):
        raise error

    monkeypatch.setattr(cli, "inspect", broken)
    assert assert_one_error(capsys, "inspect", "a").startswith(type(error).__name__)
    _, _, told = run(capsys, "inspect", "a")
    assert "\x1b" not in told


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_behind_standard_output_is_one_line(options):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "diffq_fast", "inspect", str(KINDS), *options]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["diffq-fast inspect: [Errno 28] No space left on device"]


def test_wrong_usage_is_an_object_too(capsys):
    code, out, error = run(capsys, "pack", KINDS, "out", "--bits", "99", "--json")
    assert code == 2
    assert "--bits must be" in error
    assert "--bits must be" in json.loads(out)["error"]


def test_a_long_suffix_costs_no_memory(tmp_path):
    weights = {f"w{index}": pack_weight(torch.ones(1), torch.tensor([1], dtype=torch.uint8)) for index in range(300)}
    info = {"class": "DiffQuantizer", "arguments": {"suffix": "s" * 500_000}}
    write_packed(tmp_path / "a", PackedContents(weights, {}, quantizer=info))
    length = (tmp_path / "a").stat().st_size
    tracemalloc.start()
    try:
        assert diffq_fast.inspect(tmp_path / "a").bytes_by_purpose["learned values"] == 0
        with pytest.raises(ValueError, match="does not fit the model"):
            diffq_fast.load(tmp_path / "a", nn.Linear(1, 1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * length


def tied(tmp_path, copies, count=2**19):
    weight = pack_weight(torch.arange(float(count)), torch.tensor([1], dtype=torch.uint8), group_size=0)
    ties = {f"t{index}": "w" for index in range(copies)}
    write_packed(tmp_path / "tied", PackedContents({"w": weight}, {}, ties))
    return tmp_path / "tied"


def test_unpack_refuses_far_more_than_the_file_holds_unless_it_is_allowed(capsys, tmp_path):
    path, target = tied(tmp_path, 60), tmp_path / "out"
    code, _, error = run(capsys, "unpack", path, target)
    assert code == 1
    assert not target.exists()
    assert "larger than max_bytes=" in error
    assert "--max-bytes" in error
    assert f"{RATIO * 4 * 2**19 + LEAST:,}" in error
    assert run(capsys, "unpack", path, target, "--max-bytes", 61 * 4 * 2**19)[0] == 0
    assert target.stat().st_size > 61 * 4 * 2**19
    assert run(capsys, "unpack", path, target, "--max-bytes", 61 * 4 * 2**19 - 1)[0] == 1


def listed(times, count=2**20):
    """A stored state that lists one float16 tensor so many times."""
    tensor = torch.arange(count).to(torch.float16)
    state = {"quantized": [], "float16": [tensor] * times, "others": []}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_convert_stores_a_tensor_once_however_often_it_is_listed(capsys, tmp_path):
    (tmp_path / "old").write_bytes(listed(200))
    assert run(capsys, "convert", tmp_path / "old", tmp_path / "new")[0] == 0
    assert (tmp_path / "new").stat().st_size < 2 * (tmp_path / "old").stat().st_size
    values = diffq_fast.load(tmp_path / "new")
    assert len(values) == 200
    assert torch.equal(values["float16.199"], torch.arange(2**20).to(torch.float16).float())


def test_convert_refuses_overlapping_tensors_beyond_the_budget(capsys, tmp_path):
    whole = torch.zeros(2**20, dtype=torch.float16)
    state = {"quantized": [], "float16": [whole[index:] for index in range(100)], "others": []}
    torch.save(state, tmp_path / "old")
    assert "larger than max_bytes=" in assert_one_error(capsys, "convert", tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert run(capsys, "convert", tmp_path / "old", tmp_path / "new", "--max-bytes", 2**29)[0] == 0


@pytest.mark.parametrize("key", ["min_size", "zzz"])
def test_convert_does_not_write_out_shared_structure(key, capsys, tmp_path):
    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    nest = b"(tq\1" + b"0h\1h\1\x86q\1" * 40
    meta = text("meta") + b"}(" + text("klass") + b"cdiffq.diffq\nDiffQuantizer\n" + text("init_kwargs")
    body = b"\x80\x02}(" + text("quantized") + b"]" + meta + b"}" + text(key) + nest + b"suu."
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    blob = b"".join(pickle.dumps(head, 2) for head in heads) + body + pickle.dumps([], 2)
    (tmp_path / "old").write_bytes(blob)
    assert "written out" in assert_one_error(capsys, "convert", tmp_path / "old", tmp_path / "new")


def test_convert_tells_what_is_lost_once(tmp_path):
    meta = {"klass": "diffq.diffq.DiffQuantizer", "init_kwargs": {"group_size": 8, "other": b"x"}, "packed": False}
    torch.save({"quantized": [], "float16": [], "others": [torch.ones(3)], "meta": meta}, tmp_path / "old")
    conversion = convert(tmp_path / "old", tmp_path / "new")
    conversion.write(tmp_path / "again")
    assert [each for each in conversion.lost if "argument" in each] == ["the quantizer's argument other"]
    assert (tmp_path / "new").read_bytes() == (tmp_path / "again").read_bytes()
    assert diffq_fast.inspect(tmp_path / "new").quantizer["arguments"] == {"group_size": 8}


def test_names_from_a_file_reach_no_terminal_through_the_errors_of_load(tmp_path):
    name = "\x1b[31m\x1b]0;owned\x07red\n"
    path = Example({name: example_weight((8,), 3, 8)}).write(tmp_path / "a")
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        diffq_fast.load(path, nn.Linear(1, 1))
    assert str(caught.value).isprintable()
    assert "owned" in str(caught.value)

    class Holder(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.register_buffer("w", torch.zeros(size))

        def state_dict(self, *args, **kwargs):
            return {name: self.w}

        def load_state_dict(self, state, strict=True):
            raise RuntimeError(f"no {name}")

    for size in (7, 8):  # another shape; a model that refuses it
        with pytest.raises(ValueError, match="load: ") as caught:
            diffq_fast.load(path, Holder(size))
        assert str(caught.value).isprintable()


def test_an_argument_of_the_file_reaches_no_terminal(tmp_path):
    path = forged(
        tmp_path, lambda each: each.metadata.update(quantizer=compact({"class": "\x1b[2J", "arguments": {"a": "\x1b"}}))
    )
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        diffq_fast.load(path, nn.Linear(3, 3))
    assert str(caught.value).isprintable()
