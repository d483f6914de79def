"""`diffq-fast convert`: all four kinds of file, level for level, and what is lost said."""

import json
import pickle
import zlib

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import diffq_fast
from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer, save_legacy
from diffq_fast.cli import main
from diffq_fast.compat.convert import convert
from support.models import GOLDEN_MODELS, Tied
from support.paths import GOLDEN

CASES = json.loads((GOLDEN / "cases.json").read_text())
STATES = sorted(GOLDEN_MODELS)
UNPACKED = [name for name in STATES if CASES[name]["state_kwargs"].get("packed") is False]


def linear(*args, **kwargs):
    return nn.Linear(*(args or (64, 48)), **kwargs)


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def assert_values(path, expected):
    found = diffq_fast.load(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", STATES)
def test_golden_states_convert_to_the_weights_that_diffq_restores(name, tmp_path):
    conversion = convert(GOLDEN / f"{name}.th", tmp_path / "new", GOLDEN_MODELS[name])
    restored = load_file(GOLDEN / f"{name}.restored.safetensors")
    if name == "diffq_tied":
        restored["b.weight"] = restored["a.weight"]
    assert_values(tmp_path / "new", restored)
    assert conversion.lost == []
    assert diffq_fast.inspect(tmp_path / "new").quantizer["class"] == CASES[name]["quantizer"]
    model = GOLDEN_MODELS[name]()
    getattr(diffq_fast, CASES[name]["quantizer"])(model, **CASES[name]["kwargs"])
    diffq_fast.load(tmp_path / "new", model)


@pytest.mark.parametrize(
    ("file", "arguments"),
    [("demucs_v2.th", {"min_size": 0}), ("demucs_v4.th", {}), ("demucs_hf.safetensors", {})],
)
def test_demucs_files_convert(file, arguments, tmp_path):
    conversion = convert(GOLDEN / file, tmp_path / "new", linear, arguments)
    restored = load_file(GOLDEN / f"{file.partition('.')[0]}.restored.safetensors")
    assert_values(tmp_path / "new", restored)
    text = "; ".join(conversion.lost)
    assert ("how to build the model" in text) == (file != "demucs_v2.th")
    assert ("training arguments" in text) == (file == "demucs_v4.th")


def test_older_states_convert_without_the_model(tmp_path):
    conversion = convert(GOLDEN / "demucs_v2.th", tmp_path / "new")
    restored = load_file(GOLDEN / "demucs_v2.restored.safetensors")
    found = diffq_fast.load(tmp_path / "new")
    assert list(found) == ["quantized.0", "quantized.1"]
    assert torch.equal(found["quantized.0"].flatten(), restored["weight"].flatten())
    assert torch.equal(found["quantized.1"].flatten(), restored["bias"].flatten())
    assert [text.split(" ")[0] for text in conversion.lost] == ["names", "the", "buffers,"]


@pytest.mark.parametrize(
    "make",
    [
        lambda model: UniformQuantizer(model, bits=9.6, min_size=0.01, float16=True),
        lambda model: LSQ(model, bits=5, min_size=0.01),
        lambda model: DiffQuantizer(model, group_size=8, min_size=0.01),
    ],
)
def test_unpacked_states_convert_without_the_model(make, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4))
    quantizer = make(model)
    save_legacy(quantizer, tmp_path / "old", packed=False)
    convert(tmp_path / "old", tmp_path / "new")
    found = list(diffq_fast.load(tmp_path / "new").values())
    with quantizer.enter_quantize():
        names = ("0.weight", "0.bias", "1.weight", "1.bias")
        expected = [model.get_parameter(name).detach().clone() for name in names]
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value.flatten(), wanted.flatten())


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e39, 10**400])
@pytest.mark.parametrize("make", [UniformQuantizer, LSQ, DiffQuantizer])
def test_ranges_that_float32_cannot_hold_are_refused(make, value, tmp_path):
    state = make(nn.Linear(16, 16), min_size=0).get_quantized_state(packed=False)
    levels, ranges, *rest = state["quantized"][0]
    state["quantized"][0] = levels, value if make is LSQ else (ranges[0], value), *rest
    torch.save(state, tmp_path / "old")
    with pytest.raises(ValueError, match=r"quantized\.0: expected a finite number as .*, found"):
        convert(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_ends_of_a_range_that_are_too_far_apart_are_refused(tmp_path):
    state = DiffQuantizer(nn.Linear(16, 16), min_size=0).get_quantized_state(packed=False)
    levels, _, widths = state["quantized"][0]
    state["quantized"][0] = levels, (-3e38, 3e38), widths
    torch.save(state, tmp_path / "old")
    with pytest.raises(ValueError, match=r"quantized\.0: expected a range .* no further apart than float32 can hold"):
        convert(tmp_path / "old", tmp_path / "new")


def test_packed_states_need_the_model(tmp_path):
    with pytest.raises(ValueError, match=r"diffq_linear_g8.th: its levels are packed, .*--model module:callable"):
        convert(GOLDEN / "diffq_linear_g8.th", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the model has 1 quantised parameters, the file 2"):
        convert(GOLDEN / "diffq_linear_g8.th", tmp_path / "new", lambda: nn.Linear(64, 48, bias=False))
    with pytest.raises(ValueError, match="weight: expected 192 packed values, found more"):
        convert(GOLDEN / "diffq_linear_g8.th", tmp_path / "new", lambda: nn.Linear(32, 48))
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, got int"):
        convert(GOLDEN / "diffq_linear_g8.th", tmp_path / "new", int)


def test_buffers_ties_and_their_absence_are_said(tmp_path):
    def make():
        return nn.Sequential(Tied(), nn.BatchNorm1d(32))

    model = make()
    quantizer = DiffQuantizer(model, min_size=0.001, group_size=8)
    save_legacy(quantizer, tmp_path / "old")
    conversion = convert(tmp_path / "old", tmp_path / "new", make)
    assert conversion.lost == [
        "buffers, which diffq does not store: 1.running_mean, 1.running_var, 1.num_batches_tracked"
    ]
    found = diffq_fast.load(tmp_path / "new")
    assert found["0.b.weight"] is found["0.a.weight"]
    other = make()
    diffq_fast.load(tmp_path / "new", other, strict=False)
    with quantizer.enter_quantize():
        assert torch.equal(other[0].b.weight, model[0].a.weight)


def test_a_package_that_is_not_quantised_keeps_its_names(tmp_path):
    state = nn.Linear(4, 4).state_dict()
    torch.save({"klass": nn.Linear, "args": (4, 4), "kwargs": {}, "state": state}, tmp_path / "old")
    conversion = convert(tmp_path / "old", tmp_path / "new")
    assert_values(tmp_path / "new", state)
    assert "how to build the model (torch.nn.modules.linear.Linear" in conversion.lost[0]


def test_the_command_says_what_it_did_and_what_is_lost(tmp_path, capsys):
    source = GOLDEN / "demucs_v4.th"
    assert run("convert", source, tmp_path / "new", "--model", "torch.nn:Linear", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["quantizer"], result["weights"], result["plain"]) == ("DiffQuantizer", 2, 0)
    assert result["bytes"] == (tmp_path / "new").stat().st_size
    assert any("training arguments" in text for text in result["not_carried_over"])
    assert run("convert", GOLDEN / "demucs_v2.th", tmp_path / "new") == 0
    assert "not carried over: names" in capsys.readouterr().out
    given = ("--arguments", '{"min_size": 0}', "--model", "functools:partial")
    assert run("convert", GOLDEN / "demucs_v2.th", tmp_path / "new", *given) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "torch.nn"], "MODULE:CALLABLE"),
        (["--model", "torch.nn:Nothing"], "nothing to call"),
        (["--model", "no_such_module:f"], "no_such_module"),
        (["--arguments", "[1]"], "must be a JSON object"),
        (["--arguments", "{"], "must be a JSON object"),
    ],
)
def test_bad_options_are_said(options, words, tmp_path, capsys):
    assert run("convert", GOLDEN / "demucs_v2.th", tmp_path / "new", *options) == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state": state, "klass": nn.Linear, "args": ()}])
def test_a_pickle_that_would_run_code_runs_none(wrap, tmp_path, capsys):
    quantizer = UniformQuantizer(nn.Linear(16, 16), min_size=0)
    state = quantizer.get_quantized_state(packed=False) | {"more": Hostile(tmp_path / "proof")}
    torch.save(wrap(state), tmp_path / "old")
    (tmp_path / "proof").unlink(missing_ok=True)
    assert run("convert", tmp_path / "old", tmp_path / "new") == 0
    assert not (tmp_path / "proof").exists()
    (tmp_path / "v2").write_bytes(
        pickle.dumps({"compressed": zlib.compress(pickle.dumps(Hostile(tmp_path / "proof")))})
    )
    (tmp_path / "proof").unlink(missing_ok=True)
    assert run("convert", tmp_path / "v2", tmp_path / "new") == 1
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("group_size", "x", "a whole number, 0 or more"),
        ("group_size", 2.5, "a whole number, 0 or more"),
        ("min_bits", [2], "a number"),
        ("max_bits", float("nan"), "a number"),
        ("param", 3, "a text"),
        ("exclude", 3, "a list of patterns"),
        ("float16", "no", "true or false"),
    ],
)
@pytest.mark.parametrize("with_model", [True, False])
def test_arguments_of_wrong_kinds_in_a_file_are_refused(name, value, expected, with_model, tmp_path, capsys):
    quantizer = DiffQuantizer(linear(), min_size=0, group_size=8)
    state = quantizer.get_quantized_state(packed=False)
    state["meta"]["init_kwargs"][name] = value
    torch.save(state, tmp_path / "old")
    options = ("--model", "functools:partial") if with_model else ()
    with pytest.raises(ValueError, match=f"old: meta: {name} of DiffQuantizer must be {expected}, got"):
        convert(tmp_path / "old", tmp_path / "new", linear if with_model else None)
    assert run("convert", tmp_path / "old", tmp_path / "new", *options) == 1
    assert "diffq-fast convert: convert: " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", [[], ["--model", "torch.nn:Identity"]])
def test_arguments_that_the_quantizer_does_not_have_are_refused(options, tmp_path, capsys):
    given = ("--arguments", '{"nonsense": 3}', *options)
    assert run("convert", GOLDEN / "demucs_v2.th", tmp_path / "new", *given) == 1
    assert "DiffQuantizer has no argument 'nonsense'; it has min_size, " in capsys.readouterr().err
    assert run("convert", GOLDEN / "demucs_v2.th", tmp_path / "new", "--arguments", '{"min_bits": "2"}') == 1
    assert "the arguments given: min_bits of DiffQuantizer must be a number" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0", "importing broken_{} failed: ZeroDivisionError"),
        ("raise SystemExit(7)", "importing broken_{} failed: SystemExit: 7"),
        ("def make(*args): raise KeyError('spam')", "the model could not be built: KeyError: 'spam'"),
        ("def make(*args): exit(3)", "the model could not be built: SystemExit: 3"),
    ],
)
def test_code_of_the_user_that_raises_is_an_error_like_others(source, words, tmp_path, monkeypatch, capsys, request):
    name = str(abs(hash(source)))
    (tmp_path / f"broken_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ("--model", f"broken_{name}:make")
    assert run("convert", GOLDEN / "demucs_v2.th", tmp_path / "new", *given) == 1
    assert words.format(name) in capsys.readouterr().err
    assert run("convert", GOLDEN / "demucs_v2.th", tmp_path / "new", *given, "--json") == 1
    assert words.format(name) in json.loads(capsys.readouterr().out)["error"]


def test_a_packed_file_is_known_as_such(tmp_path, capsys):
    diffq_fast.save(UniformQuantizer(linear(), min_size=0), tmp_path / "packed")
    assert run("convert", tmp_path / "packed", tmp_path / "new") == 1
    assert "packed is a packed file of diffq_fast already; nothing is left to convert" in capsys.readouterr().err
    assert run("convert", tmp_path / "none", tmp_path / "new") == 1
    assert "No such file" in capsys.readouterr().err
