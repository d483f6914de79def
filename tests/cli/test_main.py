"""cli: results on stdout, errors on stderr, exit codes 0, 1 and 2, and no torch where none is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffq_fast
from diffq_fast.cli import main
from diffq_fast.packed.contents import read_packed
from support.packed_examples import DATA, documented

REPOSITORY = DATA.parent.parent
KINDS = DATA / "packed_v1_kinds.safetensors"
TRAINED = DATA / "golden" / "diffq_linear_g8.float.safetensors"


def run(*arguments: object) -> int:
    """The exit code, also where argparse ends the process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def subprocess_run(*arguments: object, code: str = "from diffq_fast.cli import main; sys.exit(main())"):
    command = [sys.executable, "-c", f"import sys; {code}", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def damaged(tmp_path: Path) -> Path:
    """The golden file with one bit of the levels flipped."""
    blob = bytearray(KINDS.read_bytes())
    blob[blob.index(read_packed(KINDS).packed["fixed"].words.numpy().tobytes())] ^= 4
    (tmp_path / "damaged.safetensors").write_bytes(blob)
    return tmp_path / "damaged.safetensors"


def test_inspect_prints_the_table(capsys):
    assert run("inspect", KINDS) == 0
    out, err = capsys.readouterr()
    assert out.startswith("weight ")
    assert "bits per weight" in out
    assert err == ""


def test_inspect_prints_json_and_plots(tmp_path, capsys):
    assert run("inspect", KINDS, "--json", "--plot", tmp_path / "widths.png") == 0
    assert json.loads(capsys.readouterr().out)["file_bytes"] == KINDS.stat().st_size
    assert (tmp_path / "widths.png").exists()


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_inspect_works_where_torch_cannot_be_imported(extra):
    blocked = "sys.modules['torch'] = None; from diffq_fast.cli import main; sys.exit(main())"
    result = subprocess_run("inspect", KINDS, *extra, code=blocked)
    assert result.returncode == 0, result.stderr
    assert "all_widths" in result.stdout


def test_python_dash_m_is_the_command_line():
    command = [sys.executable, "-m", "diffq_fast", "inspect", str(KINDS)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "all_widths" in result.stdout


def test_a_closed_pipe_is_no_traceback():
    shell = f"{sys.executable} -m diffq_fast inspect {KINDS} --json | head -c 10"
    result = subprocess.run(shell, shell=True, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr


def test_verify_says_that_a_file_is_sound(capsys):
    assert run("verify", KINDS) == 0
    assert "all 10,895 bytes are sound: 12 weights, 8 plain tensors" in capsys.readouterr().out
    assert run("verify", KINDS, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "weights": 12, "plain": 8, "bytes": 10895}


def test_verify_finds_damage_that_inspect_does_not_read(tmp_path, capsys):
    path = damaged(tmp_path)
    assert run("inspect", path) == 0
    assert run("verify", path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"diffq-fast verify: reading {path}: ")
    assert "checksum" in error
    assert run("verify", path, "--json") == 1
    assert "checksum" in json.loads(capsys.readouterr().out)["error"]


def test_verify_finds_flipped_bits(tmp_path):
    blob = documented().write(tmp_path / "a").read_bytes()
    for bit in range(0, 8 * len(blob), 29):
        broken = bytearray(blob)
        broken[bit // 8] ^= 1 << bit % 8
        (tmp_path / "b").write_bytes(broken)
        assert run("verify", tmp_path / "b") == 1


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_missing_and_foreign_files_are_failures(command, tmp_path, capsys):
    assert run(command, tmp_path / "none") == 1
    assert "none" in capsys.readouterr().err
    assert run(command, TRAINED) == 1
    assert "not a diffq_fast packed file" in capsys.readouterr().err


def test_pack_by_logits_and_unpack(tmp_path, capsys):
    assert run("pack", TRAINED, tmp_path / "packed") == 0
    out, err = capsys.readouterr()
    assert "bits per weight" in out
    assert err == ""
    assert run("unpack", tmp_path / "packed", tmp_path / "plain.safetensors") == 0
    ours = load_file(tmp_path / "plain.safetensors")
    theirs = load_file(DATA / "golden" / "diffq_linear_g8.restored.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_unpack_takes_the_names_that_are_asked_for(tmp_path, capsys):
    packed = DATA / "packed_v2_coded.safetensors"
    assert run("unpack", packed, tmp_path / "all") == 0
    assert run("unpack", packed, tmp_path / "some", "--names", "tied", "--names", "f[ei]*") == 0
    some, whole = load_file(tmp_path / "some"), load_file(tmp_path / "all")
    assert set(some) == {"tied", "few", "fine", "fixed"}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in some.items())
    assert run("unpack", packed, tmp_path / "none", "--names", "weights") == 1
    assert "no entry of the file matches 'weights'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_pack_passes_the_quantizers_arguments_on(tmp_path):
    state = {"w": torch.randn(16, 8), "w_bits": torch.linspace(-9, 9, 32)}
    save_file(state, tmp_path / "plain")
    options = ["--suffix", "_bits", "--min-bits", 3, "--max-bits", 9, "--param", "noise", "--extra-bits", -1]
    assert run("pack", tmp_path / "plain", tmp_path / "packed", "--group-size", 4, *options) == 0
    contents = read_packed(tmp_path / "packed")
    rule = {"min_bits": 3.0, "max_bits": 9.0, "param": "noise", "extra_bits": -1.0, "suffix": "_bits"}
    assert contents.quantizer["arguments"] == rule | {"group_size": 4}
    assert contents.packed["w"].widths.tolist()[0] == 2
    assert contents.packed["w"].widths.tolist()[-1] == 8


def test_pack_at_bits(tmp_path, capsys):
    save_file({"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 64)}, tmp_path / "plain")
    options = [
        "--bits",
        5,
        "--group-size",
        32,
        "--range-scope",
        "group",
        "--exclude",
        "b.*",
        "--min-size",
        0.001,
    ]
    assert run("pack", tmp_path / "plain", tmp_path / "packed", *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["histogram"] == {"5": 4096}
    packed = read_packed(tmp_path / "packed").packed
    assert list(packed) == ["a.weight"]
    assert packed["a.weight"].range_scope == "group"


def test_pack_clips_ranges_and_keeps_them_short(tmp_path, capsys):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    weight[::9, 7] *= 8
    save_file({"w": weight}, tmp_path / "plain")
    options = ["--coding", "fixed", "--bits", 3, "--group-size", 64, "--range-scope", "group"]
    errors, sizes = [], []
    for more in ([], ["--clip"], ["--clip", "--short-ranges"]):
        assert run("pack", tmp_path / "plain", tmp_path / "packed", *options, *more) == 0
        errors.append(float((read_packed(tmp_path / "packed").tensor("w") - weight).square().sum()))
        sizes.append(os.path.getsize(tmp_path / "packed"))
    assert errors[1] < 0.95 * errors[0]
    assert errors[2] < 0.95 * errors[0]
    assert sizes[2] < sizes[1] - 128 * 5
    assert run("verify", tmp_path / "packed") == 0
    capsys.readouterr()
    assert run("inspect", tmp_path / "packed", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes_by_purpose"]["ranges"] == 128 * 2 + 128 // 16 * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "0"], "--bits must be between 1 and 16, got 0"),
        (["--bits", "17"], "--bits must be between 1 and 16, got 17"),
        (["--bits", "8"], "holds logits, which say the widths; leave --bits out"),
        (["--bits", "8", "--suffix", "_q"], "--suffix describe logits"),
        (["--bits", "8", "--range-scope", "group"], "--range-scope group needs a --group-size above 0"),
        (["--min-size", "1"], "--min-size only go with --bits"),
        (["--clip"], "--clip only go with --bits"),
        (["--bits", "4", "--short-ranges"], "--short-ranges needs --range-scope group"),
        (["--target-mb", "1", "--clip"], "--clip go with --coding fixed or --bits: coded levels have no ranges"),
        (["--suffix", "_none"], "has no logits NAME_none"),
        (["--suffix", ""], "--suffix must not be empty"),
        (["--min-bits", "15"], "expected 0 < --min-bits < --max-bits <= 15, got 15 and 15"),
        (["--group-size", "-1"], "--group-size must be 0 (one group) or positive, got -1"),
        (["--param", "steps"], "invalid choice: 'steps'"),
    ],
)
def test_wrong_usage_is_exit_code_2(options, words, tmp_path, capsys):
    assert run("pack", TRAINED, tmp_path / "packed", *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "usage: diffq-fast pack" in error
    assert os.listdir(tmp_path) == []


def test_no_command_is_wrong_usage(capsys):
    assert run() == 2
    assert run("frobnicate") == 2


def test_a_group_size_that_does_not_fit_is_a_failure(tmp_path, capsys):
    assert run("pack", TRAINED, tmp_path / "packed", "--group-size", 16) == 1
    assert "group_size 16 gives" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_unpack_refuses_damage_and_writes_nothing(tmp_path, capsys):
    assert run("unpack", damaged(tmp_path), tmp_path / "plain") == 1
    assert "checksum" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["damaged.safetensors"]


def test_progress_is_shown_when_asked_for(tmp_path, capsys):
    for command in (
        ["pack", TRAINED, tmp_path / "a"],
        ["verify", tmp_path / "a"],
        ["unpack", tmp_path / "a", tmp_path / "b"],
    ):
        assert run(*command) == 0
        assert capsys.readouterr().err == ""
        assert run(*command, "--progress") == 0
        out, err = capsys.readouterr()
        assert "100 %" in err
        assert err.endswith("\n")
        assert "%" not in out.replace("100.0%", "")


def test_progress_is_shown_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("verify", KINDS) == 0
    assert "verifying 100 %" in capsys.readouterr().err


def test_doctor_says_what_is_active_and_why(capsys, monkeypatch):
    backends = {
        "cpu": {"active": True, "reason": "loaded", "isa": "avx2"},
        "triton": {"active": False, "reason": "no GPU"},
    }
    info = {"version": "1", "cuda": None, "backends": backends}
    monkeypatch.setattr("diffq_fast.backends.backend_info", lambda: info)
    assert run("doctor") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "version 1", "cuda None", "backends", "cpu active; loaded; isa: avx2", "triton not active; no GPU",
    ]  # fmt: skip
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out) == info


def test_doctor_runs_here(capsys):
    assert run("doctor") == 0
    assert torch.__version__ in capsys.readouterr().out


def test_version(capsys):
    assert run("--version") == 0
    assert diffq_fast.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--group-size", "9" * 23], "--group-size must be below 2**60, got 999"),
        (["--group-size", "9" * 23, "--bits", "4"], "--group-size must be below 2**60, got 999"),
        (["--bits", "4", "--min-size", "nan"], "--min-size must be a number of MB, got nan"),
        (["--extra-bits", "inf"], "--extra-bits must be between -1000 and 1000, got inf"),
        (["--extra-bits", "nan"], "--extra-bits must be between -1000 and 1000, got nan"),
    ],
)
def test_numbers_out_of_all_bounds_are_wrong_usage(options, words, tmp_path, capsys):
    assert run("pack", TRAINED, tmp_path / "packed", *options) == 2
    assert words in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_what_is_not_packed_is_said(tmp_path, capsys):
    save_file({"w": torch.randn(64, 64, dtype=torch.float64), "b": torch.ones(3)}, tmp_path / "double")
    assert run("pack", tmp_path / "double", tmp_path / "a", "--bits", 4, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["weights"] == []
    assert "1 float64 tensors are kept as they are, unpacked (w); convert them to float32 first" in err
    save_file({"w": torch.randn(64, 64)}, tmp_path / "single")
    assert run("pack", tmp_path / "single", tmp_path / "a", "--bits", 4, "--min-size", "inf") == 0
    assert "no tensor was packed" in capsys.readouterr().err


def test_a_scale_is_not_taken_for_a_logit(tmp_path, capsys):
    model = torch.nn.Linear(8, 8)
    diffq_fast.LSQ(model, min_size=0)
    save_file(model.state_dict(), tmp_path / "lsq")
    assert run("pack", tmp_path / "lsq", tmp_path / "packed", "--suffix", "_lsq") == 1
    assert "_lsq is one number, a scale of LSQ" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["lsq"]


@pytest.mark.parametrize("command", [["pack", TRAINED], ["unpack", KINDS]])
def test_a_missing_folder_is_named_as_it_was_given(command, tmp_path, capsys):
    output = tmp_path / "none" / "file"
    assert run(*command, output) == 1
    error = capsys.readouterr().err
    assert f"'{output}'" in error
    assert "cannot write here: No such file or directory" in error
    assert ".tmp" not in error


def test_an_interrupt_ends_quietly_and_leaves_no_litter(tmp_path):
    program = (
        "import signal, sys, time; from diffq_fast.cli import commands as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(self, *_): print('working', flush=True); time.sleep(60)\n"
        "cli.ProgressLine.__call__ = wait\n"
        "sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", program, "unpack", str(KINDS), str(tmp_path / "plain")]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "working\n"
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith("diffq-fast unpack: interrupted\n")  # a missing core is warned of before
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coding", "fixed"], "--coding fixed needs the width: --bits"),
        (
            ["--coding", "fixed", "--bits", "4", "--quality", "20"],
            "--quality go with coded levels, not with fixed widths",
        ),
        (["--bits", "4", "--target-mb", "8"], "expected one of --bits, --target-mb"),
        (["--quality", "20", "--suffix", "_q"], "--suffix describe logits and do not go with coded levels"),
        (["--quality", "20", "--group-size", "8"], "--group-size goes with logits or fixed widths"),
        (["--target-mb", "8", "--plot", "curve.png"], "--plot draws the curve of --dry-run"),
        (["--target-mb", "8"], "holds logits, which say the widths; leave --target-mb out"),
    ],
)
def test_coded_and_other_packing_are_not_mixed(options, words, tmp_path, capsys):
    assert run("pack", TRAINED, tmp_path / "packed", *options) == 2
    assert words in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_pack_needs_an_output_unless_it_is_a_dry_run(capsys):
    assert run("pack", TRAINED) == 2
    assert "expected the packed file to write, or --dry-run" in capsys.readouterr().err


def test_fixed_coding_is_one_width(tmp_path, capsys):
    save_file({"w": torch.randn(64, 64)}, tmp_path / "plain")
    assert run("pack", tmp_path / "plain", tmp_path / "packed", "--coding", "fixed", "--bits", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["histogram"] == {"4": 4096}
    assert read_packed(tmp_path / "packed").packed["w"].range_scope == "tensor"


STATE = sorted((DATA / "golden").glob("*.th"))[0]
ONTO_ITSELF = {
    "pack by logits": (TRAINED, ["pack", "{}", "{}", "--group-size", "8"]),
    "pack at a width": (TRAINED, ["pack", "{}", "{}", "--bits", "4", "--coding", "fixed"]),
    "pack coded": (TRAINED, ["pack", "{}", "{}", "--bits-per-weight", "4"]),
    "unpack": (KINDS, ["unpack", "{}", "{}"]),
    "convert": (STATE, ["convert", "{}", "{}"]),
    "inspect": (KINDS, ["inspect", "{}", "--plot", "{}"]),
    "export": (KINDS, ["export", "{}", "--to", "safetensors", "-o", "{}"]),
}


@pytest.mark.parametrize("name", ONTO_ITSELF)
def test_no_command_writes_onto_its_own_input(name, tmp_path, capsys):
    """Nor through a link to it: what is not packed yet would be lost."""
    source, command = ONTO_ITSELF[name]
    path, link = tmp_path / "model.safetensors", tmp_path / "link.safetensors"
    if name in ("pack coded", "pack at a width"):
        save_file({"weight": torch.randn(64, 64)}, path)
    else:
        path.write_bytes(source.read_bytes())
    link.symlink_to(path)
    before = path.read_bytes()
    for output in (path, link):
        places = iter((path, output))
        assert run(*(next(places) if each == "{}" else each for each in command)) == 1
        assert f"the output {output} is the input itself" in capsys.readouterr().err
        assert path.read_bytes() == before


def test_pack_does_not_write_onto_a_shard(tmp_path, capsys):
    save_file({"weight": torch.randn(64, 64)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": "one.safetensors"}}))
    for source in (index, tmp_path):
        for output in (tmp_path / "one.safetensors", index):
            before = output.read_bytes()
            assert run("pack", source, output) == 1
            assert "is the input itself" in capsys.readouterr().err
            assert output.read_bytes() == before
