"""Coded weights: their sizes, their values, files with them, and files that lie about them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import diffq_fast
from diffq_fast import functional
from diffq_fast.files.safetensors_reader import FileError, read_header
from diffq_fast.packed.coding import CodedTensor, code_levels, code_packed
from diffq_fast.packed.contents import PackedContents, read_packed, write_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.report import inspect
from diffq_fast.packed.tensor import PackedTensor
from diffq_fast.reference.log_steps import HIGHEST_STEP_CODE, LOWEST_STEP_CODE
from support.packed_examples import DATA, coded, example_weight
from support.packed_forgery import Forgery

GOLDEN = DATA / "packed_v2_coded.safetensors"


def rows(count: int, length: int, spread: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed levels and step codes by row; rows differ in size by `spread` octaves."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(count, length, generator=generator)
    sizes = 2 ** (spread * torch.rand(count, 1, generator=generator))
    codes = functional.codes_from_steps(torch.full((count,), 0.01))
    return (weight * 2 * sizes).round().int(), codes


def entropy_bytes(levels: torch.Tensor) -> float:
    counts = torch.bincount((levels - levels.min()).reshape(-1)).double()
    counts = counts[counts > 0]
    return float(-(counts * (counts / counts.sum()).log2()).sum()) / 8


# -- steps -------------------------------------------------------------------------------------------------------------


def test_steps_are_exact_powers_and_close_between():
    codes = torch.arange(LOWEST_STEP_CODE, HIGHEST_STEP_CODE + 1)
    steps = functional.steps_from_codes(codes)
    assert torch.equal(steps[::16], 2.0 ** (codes[::16] // 16).float())
    assert torch.allclose(steps.double(), 2 ** (codes.double() / 16), rtol=2**-24, atol=0)
    assert torch.equal(functional.codes_from_steps(steps), codes.to(torch.int16))


def test_the_nearest_step_is_taken_and_the_ends_hold():
    steps = torch.tensor([2 ** (0.4 / 16), 2 ** (0.6 / 16), 1e-40, 3e38])
    assert functional.codes_from_steps(steps).tolist() == [0, 1, LOWEST_STEP_CODE, HIGHEST_STEP_CODE]


# -- in memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [0, 1, 7, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_and_steps_come_back(group_size, dtype):
    levels, _ = rows(20, 60)
    groups = -(-1200 // group_size) if group_size else 1
    codes = (torch.arange(groups) * 37 % 50 - 120).to(torch.int16)
    weight = code_levels(levels, codes, group_size=group_size, dtype=dtype)
    weight.check()
    assert torch.equal(weight.levels(), levels)
    assert torch.equal(weight.step_codes(), codes)
    steps = functional.steps_from_codes(codes).repeat_interleave(group_size or 1200)[:1200].view(20, 60)
    assert torch.equal(weight.unpack(), (levels.float() * steps).to(dtype))


@pytest.mark.parametrize("shape", [(0, 4), (), (1,)])
def test_awkward_shapes(shape):
    levels = torch.full(shape, -3, dtype=torch.int32)
    weight = code_levels(levels, torch.zeros(min(levels.numel(), 1), dtype=torch.int16), group_size=0)
    weight.check()
    assert torch.equal(weight.unpack(), levels.float())
    assert weight.unpack().shape == shape


def test_zero_is_exactly_zero_and_costs_little():
    weight = code_levels(torch.zeros(1000, 1000, dtype=torch.int32), torch.full((1000,), 40), group_size=1000)
    assert weight.nbytes == 2 * -(-1_000_000 // 512)
    assert not weight.unpack().view(torch.int32).any()  # +0, too


@pytest.mark.parametrize("classes", [1, 2])
def test_classes_are_kept(classes):
    levels, codes = rows(50, 40)
    labels = (torch.arange(50) % classes * 15 + 1).to(torch.uint8)
    weight = code_levels(levels, codes, group_size=40, classes=labels)
    weight.check()
    assert torch.equal(weight.widths, labels)
    assert torch.equal(weight.levels(), levels)


def test_size_is_close_to_the_entropy():
    levels, codes = rows(384, 1536)
    assert code_levels(levels, codes, group_size=1536).nbytes < 1.005 * entropy_bytes(levels) + 100


def test_rows_of_different_sizes_get_classes_that_pay():
    levels, codes = rows(384, 1536, spread=4)
    weight = code_levels(levels, codes, group_size=1536)
    assert len(weight.widths.unique()) > 1
    assert weight.nbytes < 0.97 * entropy_bytes(levels)
    assert torch.equal(weight.levels(), levels)
    same, codes = rows(384, 1536)
    assert len(code_levels(same, codes, group_size=1536).widths.unique()) == 1


@pytest.mark.parametrize(
    ("levels", "codes", "error", "problem"),
    [
        (torch.zeros(4), torch.zeros(1).int(), TypeError, "levels must be integers, got torch.float32"),
        (torch.zeros(4).int(), torch.zeros(1), TypeError, "step_codes must be integers"),
        (torch.zeros(4).int(), torch.zeros(2).int(), ValueError, r"step_codes of shape \[1\], got \[2\]"),
        (
            torch.tensor([-32768]),
            torch.zeros(1).int(),
            ValueError,
            "levels must be between -32767 and 32767, found -32768",
        ),
        (torch.zeros(4).int(), torch.tensor([1600]), ValueError, "between -1600 and 1599, found 1600"),
        (torch.zeros(4, device="meta").int(), torch.zeros(1).int(), ValueError, "meta"),
    ],
)
def test_what_cannot_be_coded_is_named(levels, codes, error, problem):
    with pytest.raises(error, match=f"code_levels: w: .*{problem}|code_levels: w .*{problem}"):
        code_levels(levels, codes, group_size=0, name="w")


@pytest.mark.parametrize("scope", ["tensor", "group"])
def test_a_packed_weight_unpacks_to_the_same_bits(scope):
    packed = example_weight((30, 41), [2, 3, 9, 16], 8, range_scope=scope)
    coded = code_packed(packed)
    coded.check()
    assert torch.equal(coded.unpack(), packed.unpack())
    assert torch.equal(coded.levels().view(-1), functional.unpack(packed.words, packed.widths, 1230, group_size=8))


# -- save and load -----------------------------------------------------------------------------------------------------


def quantizers():
    made = {
        "DiffQuantizer": lambda model: diffq_fast.DiffQuantizer(model, group_size=8, min_size=0),
        "range per group": lambda model: diffq_fast.DiffQuantizer(
            model, group_size=16, range_scope="group", min_size=0
        ),
        "UniformQuantizer": lambda model: diffq_fast.UniformQuantizer(model, bits=5, min_size=0),
        "fractional": lambda model: diffq_fast.UniformQuantizer(model, bits=4.5, min_size=0),
        "LSQ": lambda model: diffq_fast.LSQ(model, bits=4, min_size=0),
    }
    return [pytest.param(each, id=name) for name, each in made.items()]


@pytest.mark.parametrize("make", quantizers())
def test_every_coding_loads_the_same_weights(make, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(90, 80), nn.Linear(80, 70))
    quantizer = make(model)
    states, sizes = {}, {}
    for coding in ("fixed", "auto", "coded"):
        diffq_fast.save(quantizer, tmp_path / coding, coding=coding)
        states[coding] = diffq_fast.load(tmp_path / coding)
        sizes[coding] = (tmp_path / coding).stat().st_size
        diffq_fast.load(tmp_path / coding, model)
    for name, tensor in states["fixed"].items():
        assert torch.equal(states["coded"][name], tensor)
        assert torch.equal(states["auto"][name], tensor)
    assert sizes["auto"] <= min(sizes["fixed"], sizes["coded"])
    assert b'"version":"1"' in (tmp_path / "fixed").read_bytes()
    assert b'"version":"2"' in (tmp_path / "coded").read_bytes()
    assert all(weight.coding == "coded" for weight in inspect(tmp_path / "coded").weights)


def test_auto_leaves_version_1_where_nothing_gets_smaller(tmp_path):
    model = nn.Linear(64, 64)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 4096).view(64, 64))  # each level as often as any other
    quantizer = diffq_fast.UniformQuantizer(model, bits=4, min_size=0)
    diffq_fast.save(quantizer, tmp_path / "auto", coding="auto")
    diffq_fast.save(quantizer, tmp_path / "fixed")
    assert (tmp_path / "auto").read_bytes() == (tmp_path / "fixed").read_bytes()


def test_a_coding_that_is_none_is_refused(tmp_path):
    quantizer = diffq_fast.UniformQuantizer(nn.Linear(64, 64), bits=4, min_size=0)
    with pytest.raises(ValueError, match="save: coding must be one of 'auto', 'fixed', 'coded', got 'zip'"):
        diffq_fast.save(quantizer, tmp_path / "a", coding="zip")


def test_inspect_counts_every_byte(tmp_path):
    levels, codes = rows(40, 64, spread=4)
    weight = code_levels(levels, codes, group_size=64)
    packed = example_weight((30, 40), [2, 5], 8)
    contents = PackedContents({"steps": weight, "coded": code_packed(packed), "fixed": packed}, {"bias": torch.ones(3)})
    write_packed(tmp_path / "a", contents)
    report = inspect(tmp_path / "a")
    steps, widths, fixed = report.weights
    assert (steps.coding, widths.coding, fixed.coding) == ("coded", "coded", "fixed")
    assert steps.bytes == weight.nbytes
    assert widths.bytes == code_packed(packed).nbytes
    assert widths.fixed_bytes == fixed.fixed_bytes == 4 * len(packed.words)
    assert steps.fixed_bytes is None
    assert sum(report.bytes_by_purpose.values()) == report.file_bytes == (tmp_path / "a").stat().st_size
    table = report.table()
    assert f"coded, {fixed.fixed_bytes:,} fixed" in table
    assert "steps" in table.splitlines()[1]


def test_one_weight_of_a_file_decodes_alone(monkeypatch):
    contents = read_packed(GOLDEN)
    decoded = []
    monkeypatch.setattr(CodedTensor, "unpack", lambda self: decoded.append(self.shape) or torch.zeros(self.shape))
    contents.tensor("steps")
    assert decoded == [(40, 60)]


def damaged_but(name, tmp_path):
    """The golden file with the last byte of every tensor flipped, but for those of one weight."""
    forgery = Forgery(GOLDEN)
    whole = forgery.write(tmp_path / "whole").read_bytes()
    with open(tmp_path / "whole", "rb") as file:
        header = read_header(file, "whole")
    damaged = bytearray(whole)
    for each in header.tensors.values():
        if not each.name.startswith(name + ".") and not each.name.endswith(".widths") and each.end > each.begin:
            damaged[header.data_start + each.end - 1] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    return tmp_path / "damaged"


@pytest.mark.parametrize("name", ["steps", "classes", "blocks", "widths", "scaled", "fixed"])
def test_a_weight_is_read_without_the_others(name, tmp_path):
    path = damaged_but(name, tmp_path)
    with pytest.raises(PackedFileError, match="damaged"):
        read_packed(path)
    contents = read_packed(path, names=[name])
    assert list(contents.entries()) == [name]
    assert torch.equal(contents.tensor(name), read_packed(GOLDEN).tensor(name))


def test_a_tied_name_reads_what_it_is_tied_to(tmp_path):
    contents = read_packed(damaged_but("steps", tmp_path), names=["tied"])
    assert set(contents.entries()) == {"tied", "steps"}
    assert torch.equal(contents.tensor("tied"), read_packed(GOLDEN).tensor("steps"))


def test_names_may_be_patterns_and_must_match():
    assert set(read_packed(GOLDEN, names=["f*", "bias"]).entries()) == {"fine", "few", "fixed", "bias"}
    assert not read_packed(GOLDEN, names=[]).entries()
    with pytest.raises(ValueError, match=r"packed_v2_coded.safetensors: no entry of the file matches 'g\*'"):
        read_packed(GOLDEN, names=["few", "g*"])


@pytest.mark.parametrize("low_bits", [0, 2])
def test_threads_decode_and_encode_the_same(low_bits):
    levels = rows(700, 1000, spread=2)[0].reshape(-1) << low_bits
    levels[::10_007] = 20_000  # escapes in every block
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            words = functional.encode_levels(levels, functional.level_code(levels))
            made.append((words, functional.decode_levels(words, levels.numel())))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(words, made[0][0]) and torch.equal(back, levels) for words, back in made)


# -- files that lie ----------------------------------------------------------------------------------------------------


def layout_of(forgery: Forgery, name: str) -> dict:
    return forgery.layout["weights"][name]


def forged(tmp_path, change, name="steps"):
    forgery = Forgery(GOLDEN)
    change(forgery, layout_of(forgery, name))
    return forgery.write(tmp_path / "forged")


FORGERIES = {
    "more elements": (lambda f, w: w.update(shape=[4000, 6000], group_size=600_000), "cannot hold 24,000,000 levels"),
    "other coding": (lambda f, w: w.update(coding="zip"), "coding must be 'rans'"),
    "no coding": (lambda f, w: w.pop("coding"), "range must be one of"),
    "count of levels": (lambda f, w: w.update(levels=3), "has no count of levels|levels needs"),
    "no tensor": (lambda f, w: f.drop("steps.coded"), "no tensor 'steps.coded'"),
    "words beside": (lambda f, w: f.set_data("steps.words", bytes(8), "U32"), "no tensor 'steps.words'"),
    "range beside": (lambda f, w: f.set_data("steps.range", bytes(8), "F32"), "no tensor 'steps.range'"),
    "wrong dtype": (lambda f, w: f.tensors["steps.coded"].update(dtype="F16"), "must be U16, found F16"),
    "two dimensions": (
        lambda f, w: f.tensors["steps.coded"].update(shape=[len(f.data["steps.coded"]) // 2, 1]),
        "one dimension",
    ),
    "truncated": (lambda f, w: set_coded(f, f.data["steps.coded"][:-2]), "steps.coded: .*damaged"),
    "longer": (lambda f, w: set_coded(f, f.data["steps.coded"] + bytes(2)), "steps.coded: expected .* coded bytes"),
    "other group size": (lambda f, w: w.update(group_size=30), "steps.coded: .*damaged"),
    "other class": (lambda f, w: w.update(widths=["one", 17]), "width coding"),
}


def set_coded(forgery: Forgery, data: bytes) -> None:
    forgery.tensors["steps.coded"]["shape"] = [len(data) // 2]
    forgery.data["steps.coded"] = data


@pytest.mark.parametrize("name", FORGERIES)
def test_a_file_that_lies_is_refused_before_it_is_decoded(name, tmp_path, monkeypatch):
    def decode(*_):
        raise AssertionError("decoded a file that lies")

    monkeypatch.setattr(functional, "decode_levels", decode)
    change, problem = FORGERIES[name]
    with pytest.raises(PackedFileError, match=problem):
        read_packed(forged(tmp_path, change))


@pytest.mark.parametrize("place", [30, 200, 500, 700])
def test_a_stream_that_lies_is_refused_when_it_is_decoded(place, tmp_path):
    def change(forgery, _):
        data = bytearray(forgery.data["steps.coded"])
        data[place] ^= 0x10
        set_coded(forgery, bytes(data))

    path = forged(tmp_path, change)
    with pytest.raises(PackedFileError, match=r"forged: steps.coded: "):
        read_packed(path).tensor("steps")
    with pytest.raises(FileError):
        diffq_fast.load(path)


def test_a_level_beyond_its_width_is_refused(tmp_path):
    path = forged(tmp_path, lambda f, w: w.update(widths=["one", 2]), "scaled")
    with pytest.raises(PackedFileError, match=r"scaled.coded: a level is beyond the 2 bits"):
        read_packed(path).tensor("scaled")


def test_version_1_knows_no_coding(tmp_path):
    forgery = Forgery(GOLDEN)
    forgery.metadata["version"] = "1"
    with pytest.raises(PackedFileError, match="the layout must state"):
        read_packed(forgery.write(tmp_path / "forged"))


def test_version_2_has_a_coded_weight(tmp_path):
    forgery = Forgery(DATA / "packed_v1_documented.safetensors")
    forgery.metadata["version"] = "2"
    with pytest.raises(PackedFileError, match="expected a coded weight"):
        read_packed(forgery.write(tmp_path / "forged"))


def test_a_plain_tensor_may_have_the_name_of_a_coded_part_in_version_1_alone(tmp_path):
    packed = example_weight((5, 7), 3, 0)
    write_packed(tmp_path / "one", PackedContents({"w": packed}, {"w.coded": torch.ones(2)}))
    assert read_packed(tmp_path / "one").tensor("w.coded").tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"'w.coded' is both"):
        write_packed(tmp_path / "two", PackedContents({"w": code_packed(packed)}, {"w.coded": torch.ones(2)}))


def test_the_golden_file_has_every_kind():
    packed = coded().packed
    scopes = {each.range_scope for each in packed.values() if isinstance(each, CodedTensor)}
    assert scopes == {"steps", "tensor", "scale"}
    assert any(isinstance(each, PackedTensor) for each in packed.values())
