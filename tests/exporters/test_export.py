"""export: what is refused before anything is read or written, and where files go."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from diffq_fast.exporters.export import export
from support.command_line import run
from support.packed_examples import DATA

KINDS = DATA / "packed_v1_kinds.safetensors"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "tflite"}, "expected one of safetensors, onnx, gguf, compressed-tensors, got 'tflite'"),
        (
            {"to": "safetensors", "dtype": "int8"},
            "safetensors must be one of float32, float16, bfloat16, float64, float8_e4m3fn, float8_e5m2, got 'int8'",
        ),
        ({"to": "gguf", "tolerance": float("nan")}, "tolerance must be 0 or more, got nan"),
        ({"to": "onnx"}, "onnx needs graph="),
        ({"to": "gguf", "graph": "a.onnx"}, "graph= is not for gguf"),
    ],
)
def test_wrong_arguments_are_refused(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export(KINDS, tmp_path / "out", **options)
    assert os.listdir(tmp_path) == []


def test_outputs_that_would_destroy_something_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copy(KINDS, path)
    for output, words in ((path, "is the input itself"), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=words):
            export(path, output, to="safetensors")
    with pytest.raises(FileNotFoundError):
        export(tmp_path / "none", tmp_path / "out", to="safetensors")
    with pytest.raises(OSError, match="cannot write here"):
        export(path, tmp_path / "no_folder" / "out", to="safetensors")
    assert path.read_bytes() == KINDS.read_bytes()
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_without_an_output_the_file_stands_beside_and_replaces_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copy(KINDS, path)
    report = export(path, to="safetensors", dtype="float16")
    assert report.output == str(tmp_path / "model.float16.safetensors")
    assert os.path.exists(report.output)
    with pytest.raises(ValueError, match="is there already; give the output to replace it"):
        export(path, to="safetensors", dtype="float16")
    assert export(path, report.output, to="safetensors", dtype="float16").bytes == report.bytes


def test_damage_is_found_before_anything_is_written(tmp_path):
    blob = bytearray(KINDS.read_bytes())
    blob[-1] ^= 1
    (tmp_path / "a").write_bytes(blob)
    with pytest.raises(ValueError, match="checksum"):
        export(tmp_path / "a", tmp_path / "out", to="safetensors")
    assert os.listdir(tmp_path) == ["a"]


def test_the_command_tells_errors_as_text_and_as_json(tmp_path, capsys):
    out = tmp_path / "out"
    code, text, error = run(capsys, "export", KINDS, "--to", "safetensors", "-o", out, "--dtype", "bfloat16")
    assert (code, error) == (0, "")
    assert text.splitlines()[0].split() == ["19", "x", "bfloat16"]
    assert f"{out}: {out.stat().st_size:,} bytes, 22 tensors; rms error 0.00" in text
    code, text, _ = run(capsys, "export", KINDS, "--to", "safetensors", "-o", out, "--json")
    result = json.loads(text)
    assert code == 0
    assert result["bytes"] == out.stat().st_size
    assert len(result["tensors"]) == 22
    assert result["relative_error"] < 1e-8  # of the one float64 tensor


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--to"),
        (["--to", "onnx"], "--to onnx needs --graph"),
        (["--to", "gguf", "--graph", "a"], "--graph goes with --to onnx"),
        (["--to", "safetensors", "--dtype", "int4"], "--dtype"),
    ],
)
def test_wrong_usage_is_exit_code_2(options, words, tmp_path, capsys):
    code, _, error = run(capsys, "export", KINDS, "-o", tmp_path / "out", *options)
    assert code == 2
    assert words in error
    assert os.listdir(tmp_path) == []
