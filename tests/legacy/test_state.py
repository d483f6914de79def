"""diffq's states: what Demucs wraps them in, what is refused, and files that diffq itself reads back."""

import io
import json
import os
import random
import zlib
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from diffq_fast import DiffQuantizer, functional
from diffq_fast.legacy.entries import (
    decode_diffq_entry,
    encode_diffq_entry,
    encode_lsq_entry,
    encode_uniform_entry,
)
from diffq_fast.legacy.pickler import pickled_size, save_legacy_state
from diffq_fast.legacy.state import (
    LegacyPackage,
    LegacyState,
    build_meta,
    build_state,
    load_legacy,
    parse_state,
    readable_diffq_arguments,
)
from diffq_fast.legacy.unpickler import Inert, inert_class
from diffq_fast.quantizers.registry import scheme_of
from support.paths import GOLDEN

CASES = json.loads((GOLDEN / "cases.json").read_text())


def dequantized(entry, shape, group_size, min_bits=2):
    decoded = decode_diffq_entry(entry, shape, group_size=group_size, min_bits=min_bits)
    found = torch.tensor([decoded.ranges], dtype=torch.float32)
    return functional.dequantize([decoded.levels], [decoded.widths], found, group_size=group_size)[0]


def diffq_entry(weight, widths, group_size, min_bits, **form):
    found = functional.weight_range([weight])
    levels = functional.quantize([weight], [widths], found, group_size=group_size)[0]
    entry = encode_diffq_entry(levels, widths, tuple(found[0].tolist()), min_bits=min_bits, **form)
    return entry, functional.dequantize([levels], [widths], found, group_size=group_size)[0]


# -- golden files ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if (GOLDEN / f"{name}.th").exists() and "demucs" not in name])
def test_a_state_says_who_wrote_it_and_how(name):
    state = load_legacy(GOLDEN / f"{name}.th")
    assert isinstance(state, LegacyState)
    assert scheme_of(state.klass).name == CASES[name]["quantizer"]
    assert state.init_kwargs == CASES[name]["kwargs"]
    assert state.packed is CASES[name]["state_kwargs"].get("packed", True)
    assert state.torch_pack is CASES[name]["state_kwargs"].get("torch_pack", False)
    assert {tensor.dtype for tensor in state.float16} <= {torch.float16}
    assert {tensor.dtype for tensor in state.others} <= {torch.float32}
    assert bool(state.float16) is bool(CASES[name]["kwargs"].get("float16"))


@pytest.mark.parametrize("name", ["demucs_v2.th", "demucs_v4.th", "demucs_hf.safetensors"])
def test_demucs_files_give_up_their_weights(name):
    loaded = load_legacy(GOLDEN / name)
    restored = load_file(GOLDEN / f"{name.partition('.')[0]}.restored.safetensors")
    state = loaded if name == "demucs_v2.th" else loaded.state
    assert isinstance(state, LegacyState)
    assert state.packed is (name != "demucs_v2.th")
    assert state.torch_pack is False
    assert len(state.quantized) == 2
    for entry, key in zip(state.quantized, ("weight", "bias"), strict=True):
        assert torch.equal(dequantized(entry, restored[key].shape, 8), restored[key])


@pytest.mark.parametrize("name", ["demucs_v4.th", "demucs_hf.safetensors"])
def test_demucs_packages_say_how_to_build_the_model(name):
    package = load_legacy(GOLDEN / name)
    assert isinstance(package, LegacyPackage)
    assert package.klass == ("torch.nn.Linear" if "hf" in name else "torch.nn.modules.linear.Linear")
    assert list(package.args) == [64, 48]
    assert package.kwargs == {}
    assert scheme_of(package.state.klass).name == "DiffQuantizer"
    assert package.state.init_kwargs == {"min_size": 0, "group_size": 8}


def test_the_old_file_has_no_meta():
    state = load_legacy(GOLDEN / "demucs_v2.th")
    assert state.meta is None
    assert state.klass is None
    assert state.init_kwargs == {}


def test_a_file_object_is_read_too():
    data = (GOLDEN / "diffq_linear_g8.th").read_bytes()
    assert load_legacy(io.BytesIO(data)).init_kwargs == {"min_size": 0, "group_size": 8}
    data = (GOLDEN / "demucs_hf.safetensors").read_bytes()
    assert load_legacy(io.BytesIO(data)).klass == "torch.nn.Linear"


# -- parse, build ----------------------------------------------------------------------

WEIGHT = torch.linspace(-1, 1, 64).view(8, 8)
WIDTHS = torch.tensor([2, 3, 4, 5, 6, 7, 8, 9], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("form", "told"),
    [({"packed": False}, (False, False)), ({}, (True, False)), ({"torch_pack": True}, (True, True))],
)
def test_a_bare_list_tells_its_form(form, told):
    entry, expected = diffq_entry(WEIGHT, WIDTHS, 8, 2, **form)
    state = parse_state([entry])
    assert (state.packed, state.torch_pack) == told
    assert state.meta is None
    assert torch.equal(dequantized(state.quantized[0], WEIGHT.shape, 8), expected)


def test_a_bare_list_of_uniform_entries_tells_what_it_can():
    levels = torch.zeros(4, 4, dtype=torch.int32)
    assert parse_state([encode_uniform_entry(levels, (0, 1), bits=8)]).packed is True
    assert parse_state([encode_uniform_entry(levels, (0, 1), bits=8, packed=False)]).packed is None
    assert parse_state([]).packed is None


def test_build_state_keeps_diffqs_order_dtypes_and_no_alias():
    parameter = nn.Parameter(torch.ones(3))
    meta = build_meta({"group_size": 8}, "diffq.diffq.DiffQuantizer", packed=True, torch_pack=False)
    state = build_state([], [parameter], [parameter], meta)
    assert list(state) == ["quantized", "float16", "others", "meta"]
    assert list(state["meta"]) == ["init_kwargs", "klass", "packed", "torch_pack"]
    assert (state["float16"][0].dtype, state["others"][0].dtype) == (torch.float16, torch.float32)
    assert state["others"][0].data_ptr() != parameter.data_ptr()
    assert not state["others"][0].requires_grad
    assert "meta" not in build_state([])


def test_the_extra_key_of_demucs_is_ignored():
    assert parse_state({"quantized": [], "float16": [], "others": [], "__quantized": True}) == LegacyState([])


def meta_of(arguments, packed, torch_pack=False):
    """The ``meta`` of a state of a DiffQuantizer with these arguments."""
    quantizer = DiffQuantizer(nn.Linear(16, 16, bias=False), min_size=0, **arguments)
    meta = quantizer.get_quantized_state(packed=packed, torch_pack=torch_pack)["meta"]
    assert meta["init_kwargs"].pop("min_size") == 0
    return meta


def test_meta_makes_min_bits_whole_and_says_so():
    kwargs = {"min_bits": 2.5, "group_size": 4}
    with pytest.warns(UserWarning, match=r"min_bits=2.5 is written as 2"):
        meta = meta_of(kwargs, packed=True)
    assert meta["init_kwargs"] == {"min_bits": 2, "group_size": 4}
    assert kwargs["min_bits"] == 2.5
    meta = meta_of(kwargs, packed=False, torch_pack=True)
    assert meta["init_kwargs"] == kwargs
    assert meta["torch_pack"] is False


@pytest.mark.filterwarnings("error")
def test_meta_is_silent_about_a_whole_float():
    meta = meta_of({"min_bits": 3.0}, packed=True)
    assert meta["init_kwargs"] == {"min_bits": 3}
    assert type(meta["init_kwargs"]["min_bits"]) is int


def test_meta_warns_that_diffq_cannot_read_packed_group_size_0():
    with pytest.warns(UserWarning, match="cannot read a packed state with group_size=0"):
        meta_of({"group_size": 0}, packed=True)


@pytest.mark.parametrize(
    ("klass", "name"),
    [
        ("diffq.diffq.DiffQuantizer", "DiffQuantizer"),
        ("diffq.DiffQuantizer", "DiffQuantizer"),
        ("diffq_fast.quantizers.uniform.UniformQuantizer", "UniformQuantizer"),
        (inert_class("diffq.lsq.LSQ"), "LSQ"),
    ],
)
def test_the_scheme_of_a_class(klass, name):
    assert scheme_of(klass).name == name


@pytest.mark.parametrize("klass", ["os.system", "other.DiffQuantizer", "diffq.diffq.Strange", nn.Linear])
def test_there_is_no_scheme_of_other_classes(klass):
    with pytest.raises(ValueError, match=r"klass must be one of diffq.diffq.DiffQuantizer, .*found "):
        scheme_of(klass)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (3, "a dict with the key 'quantized' or a list, found int"),
        ({"weight": 1}, r"found a dict with the keys \['weight'\]"),
        ({"quantized": 3}, "quantized: expected a list, found int"),
        ({"quantized": [3]}, r"quantized\[0\]: expected a tuple, found int"),
        ({"quantized": [], "others": [3]}, r"others\[0\]: expected a Tensor, found int"),
        ({"quantized": [], "float16": {}}, "float16: expected a list, found dict"),
        ({"quantized": [], "meta": 3}, "meta: expected a dict with init_kwargs and klass, found int"),
        ({"quantized": [], "meta": {"klass": "a"}}, "meta: expected a dict with init_kwargs and klass"),
        ({"quantized": [], "meta": {"klass": "a", "init_kwargs": 1}}, "init_kwargs to be a dict, found int"),
        (
            {"quantized": [], "meta": {"klass": 1, "init_kwargs": {}}},
            "klass must be a class or its dotted name",
        ),
    ],
)
def test_parse_state_refuses(state, words):
    with pytest.raises(ValueError, match=words):
        parse_state(state)


def test_an_empty_entry_is_refused_when_it_is_decoded():
    state = parse_state([()])
    assert state.packed is None
    with pytest.raises(ValueError, match="an entry of 3 parts, found 0 parts"):
        decode_diffq_entry(state.quantized[0], (2,), group_size=1, min_bits=2)


# -- files that must be refused ----------------------------------------------------------------------


def compressed(plain):
    buffer = io.BytesIO()
    torch.save({"compressed": plain}, buffer)
    return io.BytesIO(buffer.getvalue())


def test_a_decompression_bomb_is_refused():
    bomb = compressed(zlib.compress(bytes(10_000_000)))
    with pytest.raises(ValueError, match=r"larger than max_bytes=1,000,000 .*pass a larger max_bytes"):
        load_legacy(bomb, max_bytes=1_000_000)


def test_a_compressed_state_may_have_exactly_max_bytes():
    inner = io.BytesIO()
    torch.save({"quantized": []}, inner)
    file = compressed(zlib.compress(inner.getvalue()))
    assert load_legacy(file, max_bytes=len(inner.getvalue())) == LegacyState([])
    with pytest.raises(ValueError, match="max_bytes"):
        load_legacy(file, max_bytes=len(inner.getvalue()) - 1)


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        (zlib.compress(bytes(1000))[:-3], "ends early; the file is truncated"),
        (b"not zlib at all", "compressed state is damaged"),
        (zlib.compress(b"not torch"), "not a readable torch.save file"),
    ],
)
def test_a_damaged_compressed_state_is_refused(plain, words):
    with pytest.raises(ValueError, match=words):
        load_legacy(compressed(plain))


def test_an_ordinary_state_dict_is_refused_by_its_keys(tmp_path):
    path = tmp_path / "model.th"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match=r"model.th: legacy state: .*found a dict with the keys \['weight', 'bias'\]"):
        load_legacy(path)


def test_an_unquantised_package_gives_a_plain_state(tmp_path):
    model = nn.Linear(2, 2)
    package = {
        "klass": nn.Linear,
        "args": (2, 2),
        "kwargs": {"ratio": Fraction(1, 3)},
        "state": model.state_dict(),
    }
    torch.save({**package, "training_args": Hooked()}, tmp_path / "p.th")
    loaded = load_legacy(tmp_path / "p.th")
    assert torch.equal(loaded.state["weight"], model.weight)
    assert loaded.kwargs == {"ratio": Fraction(1, 3)}
    assert isinstance(loaded.training_args, Inert)


class Hooked:
    """An object whose pickle would run a command."""

    def __reduce__(self):
        return os.system, ("touch hooked",)


def test_a_state_that_would_run_code_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"quantized": [], "others": [Hooked()]}, tmp_path / "state.th")
    with pytest.raises(ValueError, match=r"others\[0\]: expected a Tensor, found Inert"):
        load_legacy(tmp_path / "state.th")
    assert os.listdir(tmp_path) == ["state.th"]


def hf_file(structure, /, **metadata):
    texts = {"klass": "a.B", "args": "[]", "kwargs": "{}", "structure": json.dumps(structure), **metadata}
    return io.BytesIO(save({"t0": torch.arange(3)}, metadata=texts))


def test_a_safetensors_package_may_hold_fractions_and_plain_tensors():
    fraction = {"_type": "fraction", "numerator": 39, "denominator": 5}
    file = hf_file(
        {"_dict": [["weight", {"_tensor": "t0"}]]},
        args=json.dumps([1, [fraction]]),
        kwargs=json.dumps({"segment": fraction, "deep": {"x": None}}),
    )
    package = load_legacy(file)
    assert package.args == [1, [Fraction(39, 5)]]
    assert package.kwargs == {"segment": Fraction(39, 5), "deep": {"x": None}}
    assert package.state["weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("structure", "metadata", "words"),
    [
        ({"_tensor": "t1"}, {}, "KeyError"),
        ({"_code": "os.system"}, {}, "a node of the unknown kind _code"),
        ({"_list": [], "_tuple": []}, {}, "a node with 2 keys"),
        ({"_dict": [["a"]]}, {}, "not enough values"),
        ({"_dict": []}, {"kwargs": "{"}, "JSONDecodeError"),
        (
            {"_dict": []},
            {"args": '[{"_type": "fraction", "numerator": 1, "denominator": 0}]'},
            "ZeroDivisionError",
        ),
        ({"_dict": []}, {"structure": "[" * 100_000}, "nested too deeply"),
        ({"_list": []}, {}, "expected a package with a dict as state"),
        ({"_dict": [["quantized", {"_list": [1]}]]}, {}, r"quantized\[0\]: expected a tuple"),
    ],
)
def test_a_damaged_safetensors_package_is_refused(structure, metadata, words):
    with pytest.raises(ValueError, match=words):
        load_legacy(hf_file(structure, **metadata))


def test_a_safetensors_file_without_structure_is_refused():
    with pytest.raises(ValueError, match=r"not a readable safetensors package of Demucs 4\.1"):
        load_legacy(GOLDEN / "packers.safetensors")


@pytest.mark.parametrize(
    "name", ["diffq_linear_g8.th", "lsq_4.th", "demucs_v2.th", "demucs_v4.th", "demucs_hf.safetensors"]
)
def test_damaged_golden_files_raise_value_error(name):
    data = (GOLDEN / name).read_bytes()
    rng = random.Random(7)
    for _ in range(60):
        with pytest.raises(ValueError, match=r"readable|legacy state"):
            load_legacy(io.BytesIO(data[: rng.randrange(len(data))]))
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            loaded = load_legacy(io.BytesIO(bytes(damaged)))
        except ValueError:
            continue
        state = loaded if isinstance(loaded, LegacyState) else loaded.state
        entries = state.quantized if isinstance(state, LegacyState) else []
        for entry in entries:
            try:
                decode_diffq_entry(entry, (64, 64), group_size=8, min_bits=2)
            except ValueError as error:
                assert "legacy state" in str(error)  # noqa: PT017


# -- files for diffq ----------------------------------------------------------------------


def test_a_saved_state_names_diffqs_class_and_loads_again(tmp_path):
    entry, expected = diffq_entry(WEIGHT, WIDTHS, 8, 2)
    meta = build_meta({"group_size": 8}, "diffq_fast.quantizers.diffq.DiffQuantizer", packed=True, torch_pack=False)
    klass = scheme_of(meta["klass"]).stored_name
    save_legacy_state(build_state([entry], meta=meta), tmp_path / "state.th", klass)
    assert os.listdir(tmp_path) == ["state.th"]
    state = load_legacy(tmp_path / "state.th")
    assert state.meta["klass"] == "diffq.diffq.DiffQuantizer"
    assert torch.equal(dequantized(state.quantized[0], WEIGHT.shape, 8), expected)


def test_save_takes_a_file_and_another_class_name():
    file = io.BytesIO()
    meta = build_meta({}, "diffq.lsq.LSQ", packed=True, torch_pack=False)
    save_legacy_state(build_state([], meta=meta), file, klass="diffq.uniform.UniformQuantizer")
    assert load_legacy(file).klass == "diffq.uniform.UniformQuantizer"


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state.th"
    path.write_bytes(b"old")
    with pytest.raises(Exception, match="pickle"):
        save_legacy_state({"quantized": [lambda: None]}, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.th"]


def peer_restores(state, model, path):
    """The model with the weights that diffq finds in our file."""
    diffq = pytest.importorskip("diffq")
    save_legacy_state(state, path)
    diffq.restore_quantized_state(model, torch.load(path, weights_only=False))
    return model


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:legacy state")
@pytest.mark.parametrize("form", [{"packed": False}, {"packed": True}, {"packed": True, "torch_pack": True}])
@pytest.mark.parametrize(
    ("lowest", "highest", "kwargs"),
    [
        (2, 14, {}),
        (2, 15, {}),
        (1, 9, {"min_bits": 3, "extra_bits": -2}),
        (2, 9, {"min_bits": 2.5}),
        (1, 5, {"min_bits": 2.5, "extra_bits": -1}),
        (3, 9, {"min_bits": 3.0}),
        (2, 2, {}),
    ],
)
def test_diffq_reads_what_we_write(tmp_path, lowest, highest, kwargs, form):
    torch.manual_seed(0)
    weight = torch.randn(48, 64)
    widths = torch.arange(48 * 64 // 8).remainder(highest - lowest + 1).add(lowest).to(torch.uint8)
    entry, expected = diffq_entry(weight, widths, 8, kwargs.get("min_bits", 2), **form)
    init = {"min_size": 0, "group_size": 8, **kwargs}
    init = readable_diffq_arguments(init) if form["packed"] else init
    meta = build_meta(
        init, "diffq.diffq.DiffQuantizer", packed=form["packed"], torch_pack=form.get("torch_pack", False)
    )
    model = peer_restores(build_state([entry], meta=meta), nn.Linear(64, 48, bias=False), tmp_path / "s.th")
    assert torch.equal(model.weight, expected)


@pytest.mark.peer
def test_diffq_reads_our_unpacked_group_size_0_and_float16(tmp_path):
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 64), torch.randn(48)
    entry, expected = diffq_entry(weight, torch.tensor([6], dtype=torch.uint8), 0, 2, packed=False)
    init = {"min_size": 0.001, "group_size": 0, "float16": True}
    meta = build_meta(init, "diffq.diffq.DiffQuantizer", packed=False, torch_pack=False)
    model = peer_restores(build_state([entry], [bias], meta=meta), nn.Linear(64, 48), tmp_path / "s.th")
    assert torch.equal(model.weight, expected)
    assert torch.equal(model.bias, bias.half().float())


@pytest.mark.peer
@pytest.mark.parametrize("torch_pack", [False, True])
def test_diffq_reads_our_uniform_and_lsq_states(tmp_path, torch_pack):
    torch.manual_seed(0)
    levels = torch.randint(0, 2**5, (48, 64), dtype=torch.int32)
    form = {"packed": True, "torch_pack": torch_pack}
    meta = build_meta({"bits": 5, "min_size": 0}, "diffq.uniform.UniformQuantizer", **form)
    state = build_state([encode_uniform_entry(levels, (-1.0, 1.0), bits=5, **form)], meta=meta)
    model = peer_restores(state, nn.Linear(64, 48, bias=False), tmp_path / "uniform.th")
    widths, found = torch.tensor([5], dtype=torch.uint8), torch.tensor([[-1.0, 1.0]])
    assert torch.equal(model.weight, functional.dequantize([levels], [widths], found, group_size=0)[0])
    meta = build_meta({"bits": 5, "min_size": 0}, "diffq.lsq.LSQ", **form)
    scale = torch.tensor(0.03)
    state = build_state([encode_lsq_entry(levels - 16, scale, bits=5, **form)], meta=meta)
    model = peer_restores(state, nn.Linear(64, 48, bias=False), tmp_path / "lsq.th")
    assert torch.equal(model.weight, (levels - 16) * scale)


@pytest.mark.peer
@pytest.mark.parametrize("quantizer", ["DiffQuantizer", "LSQ", "UniformQuantizer"])
def test_pickled_size_is_what_diffq_counts(quantizer, tmp_path):
    diffq = pytest.importorskip("diffq")
    theirs = getattr(diffq, quantizer)(nn.Linear(64, 64), min_size=0)
    if quantizer != "UniformQuantizer":
        theirs.no_optimizer()
    state = theirs.get_quantized_state()
    assert pickled_size(state) / 2**20 == theirs.packed_model_size()
