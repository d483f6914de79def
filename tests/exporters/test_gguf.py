"""export to GGUF: a reader that shares no code with the writer gets the values whose error was told."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from diffq_fast.exporters.export import export
from diffq_fast.exporters.gguf_blocks import BLOCK_TYPES, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, quantise
from diffq_fast.exporters.options import ExportError
from diffq_fast.packed.coding import code_levels
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.tensor import pack_levels, pack_weight
from support.packed_examples import Example, example_weight

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I16": 2, "I32": 4, "I64": 8}
NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 24: "I8", 25: "I16", 26: "I32"}
NAMES |= {27: "I64", 30: "BF16"}
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}


def half(data):
    return struct.unpack("<e", data)[0]


def block_values(kind, block):
    """The 32 values of one block, as the description of the type says, one by one."""
    scale = half(block[:2])
    if kind == "Q8_0":
        return [scale * struct.unpack("b", block[2 + i : 3 + i])[0] for i in range(32)]
    low = half(block[2:4]) if kind.endswith("_1") else 0.0
    body = block[4:] if kind.endswith("_1") else block[2:]
    fifth = struct.unpack("<I", body[:4])[0] if kind.startswith("Q5") else 0
    body = body[4:] if kind.startswith("Q5") else body
    levels = [body[i % 16] >> 4 * (i // 16) & 15 | (fifth >> i & 1) << 4 for i in range(32)]
    middle = {"Q4_0": 8, "Q5_0": 16}.get(kind, 0)
    return [np.float32(scale) * np.float32(level - middle) + np.float32(low) for level in levels]


def read_gguf(path):
    """(key-value pairs, name -> (type, shape, values)), read from the format's description."""
    blob, place = path.read_bytes(), 0

    def take(form):
        nonlocal place
        values = struct.unpack_from("<" + form, blob, place)
        place += struct.calcsize("<" + form)
        return values[0]

    def text():
        nonlocal place
        length = take("Q")
        place += length
        return blob[place - length : place].decode()

    assert blob[:4] == b"GGUF"
    place = 4
    assert take("I") == 3
    count, pairs = take("Q"), take("Q")
    stated = {}
    for _ in range(pairs):
        key, kind = text(), take("I")
        stated[key] = text() if kind == 8 else take("I")
    infos = []
    for _ in range(count):
        name, dimensions = text(), take("I")
        infos.append((name, [take("Q") for _ in range(dimensions)], NAMES[take("I")], take("Q")))
    place += -place % 32
    tensors = {}
    for name, sizes, kind, offset in infos:
        assert offset % 32 == 0
        elements, data = int(np.prod(sizes)), blob[place + offset :]
        if kind in SIZES:
            dtype = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(kind, f"<i{SIZES[kind]}")
            values = np.frombuffer(data[: elements * SIZES[kind]], dtype)
            values = (values.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else values
        else:
            size = BLOCK_BYTES[kind]
            blocks = [data[size * i : size * (i + 1)] for i in range(elements // 32)]
            values = np.array([block_values(kind, block) for block in blocks], np.float32)
        tensors[name] = kind, sizes[::-1], values.reshape(sizes[::-1]).copy()
    return stated, tensors


def normal(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_width(weight, width, **options):
    groups = -(-weight.numel() // options["group_size"]) if options["group_size"] else 1
    return pack_weight(weight, torch.full((groups,), width, dtype=torch.uint8), **options)


def stepped(rows, columns, most):
    levels = (normal((rows, columns), 3) * most / 3).round().clamp(-most, most - 1).int()
    return code_levels(levels, torch.arange(rows) % 7 - 90, group_size=columns)


def example():
    packed = {
        "q4_1": of_width(normal((8, 64)), 4, group_size=32, range_scope="group"),
        "q5_1": of_width(normal((8, 64), 1), 5, group_size=64, range_scope="group"),
        "q4_0": stepped(6, 96, 8),
        "q5_0": stepped(5, 64, 16),
        "q8_0": stepped(5, 64, 128),
        "scaled": pack_levels(torch.arange(64).int().reshape(2, 32) % 16, 4, torch.tensor([0.25]), dtype=torch.float32,
                              range_scope="scale"),
        "mixed": example_weight((16, 64), [2, 5, 7, 3], 8),
        "ragged": example_weight((7, 9), [4, 8], 8),
        "vector": example_weight((64,), [4], 8),
        "conv": example_weight((4, 3, 2, 32), [6], 8),
    }  # fmt: skip
    plain = {"bias": normal((5,), 9), "count": torch.tensor(7), "mask": torch.tensor([True, False])}
    return Example(packed, plain, {"tied": "mixed"})


def test_a_reader_of_its_own_gets_the_values_whose_error_was_told(tmp_path):
    path = example().write(tmp_path / "a")
    report = export(path, tmp_path / "out.gguf", to="gguf")
    stated, tensors = read_gguf(tmp_path / "out.gguf")
    assert stated["general.architecture"] == "diffq_fast"
    state = read_packed(path).state_dict()
    assert list(tensors) == [each.name for each in report.tensors]
    assert set(tensors) == set(state)
    for each in report.tensors:
        kind, shape, values = tensors[each.name]
        assert kind == each.stored
        assert tuple(shape) == (tuple(state[each.name].shape) or (1,))
        expected = state[each.name].double().numpy().reshape(values.shape)
        error = values.astype(np.float64) - expected
        assert each.error.largest == pytest.approx(np.abs(error).max(), rel=1e-5, abs=1e-9)
        norm = np.square(expected).sum()
        assert each.error.relative == pytest.approx((np.square(error).sum() / norm) ** 0.5, rel=1e-5, abs=1e-7)
        assert each.error.relative <= 0.01


def test_each_weight_has_the_smallest_type_that_keeps_it(tmp_path):
    report = export(example().write(tmp_path / "a"), tmp_path / "out.gguf", to="gguf")
    kinds = {each.name: each.stored for each in report.tensors}
    assert {name: kind.lower() for name, kind in kinds.items() if name.startswith("q")} == {
        name: name for name in kinds if name.startswith("q")
    }
    assert kinds["scaled"] == "Q4_0"
    assert kinds["mixed"] == kinds["tied"] == kinds["conv"] == "Q8_0"
    assert kinds["ragged"] == kinds["vector"] == "F16"
    assert (kinds["bias"], kinds["count"], kinds["mask"]) == ("F32", "I64", "I8")
    own = {each.name: each.error.relative for each in report.tensors}
    # Steps in float16 are off by 2^-11 at most, and so are the ends of ranges, up to four times the weights' rms here.
    assert all(own[name] < 5 * 2**-11 for name in ("q4_1", "q5_1", "q4_0", "q5_0", "q8_0", "scaled"))


def test_the_tolerance_chooses(tmp_path):
    path = example().write(tmp_path / "a")
    for tolerance, kind in ((0.2, "Q4_0"), (0.05, "Q5_0"), (0.01, "Q8_0"), (1e-3, "F16"), (0, "F32")):
        report = export(path, tmp_path / "out.gguf", to="gguf", tolerance=tolerance)
        (mixed,) = (each for each in report.tensors if each.name == "mixed")
        assert mixed.stored <= kind if kind[0] == "Q" else mixed.stored == kind
        assert mixed.error.relative <= tolerance


def test_names_that_match_stay_floats_of_the_dtype(tmp_path):
    path = example().write(tmp_path / "a")
    report = export(path, tmp_path / "out.gguf", to="gguf", floats=("q4*", "mixed"), dtype="bfloat16")
    kinds = {each.name: each.stored for each in report.tensors}
    assert [kinds[name] for name in ("q4_0", "q4_1", "mixed", "tied", "bias")] == ["BF16"] * 3 + ["Q8_0", "BF16"]
    values = read_gguf(tmp_path / "out.gguf")[1]["q4_0"][2]
    assert torch.equal(torch.from_numpy(values), read_packed(path).tensor("q4_0").bfloat16().float())


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_blocks_are_rounded_to_the_nearest_of_their_levels(kind):
    values = normal((50, 32), 4).numpy() * np.logspace(-3, 3, 50, dtype=np.float32)[:, None]
    made = quantise(values, kind)
    assert made.data.shape == (50, kind.block_bytes)
    read = np.array([block_values(kind.name, bytes(block)) for block in made.data], np.float32)
    assert np.array_equal(read, made.values)
    span = {Q4_0: 16, Q4_1: 15, Q5_0: 32, Q5_1: 31, Q8_0: 254}[kind]
    most = np.ptp(values, 1) if kind in (Q4_1, Q5_1) else 2 * np.abs(values).max(1)
    # The signed ones of 4 and 5 bits end one step short on the side that has not got the largest element.
    reach = 1.0 if kind in (Q4_0, Q5_0) else 0.5
    allowed = most / span * reach + np.abs(values).max(1) * 2.0**-10
    assert np.all(np.abs(read - values) <= allowed[:, None])


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_constant_blocks_and_zeros_are_kept(kind):
    zeros = quantise(np.zeros((2, 32), np.float32), kind)
    assert not zeros.values.any()
    constant = quantise(np.full((1, 32), -0.75, np.float32), kind)
    assert np.allclose(constant.values, -0.75, rtol=1e-3)


def test_what_gguf_has_not_is_refused_by_name(tmp_path):
    long = "a" * 64
    for example, words in (
        (Example({}, {long: torch.ones(2)}), f"{long}: gguf cannot express it: its name has 64 bytes"),
        (Example({}, {"d": torch.ones(1, 1, 1, 1, 2)}), "d: gguf cannot express it: it has 5 dimensions, at most 4"),
        (Example({}, {"u": torch.ones(2, dtype=torch.uint8)}), "u: gguf cannot express it: it has no type for torch.u"),
    ):
        with pytest.raises(ExportError, match=words):
            export(example.write(tmp_path / "a"), tmp_path / "out", to="gguf")
        assert not (tmp_path / "out").exists()


def test_the_package_gguf_reads_the_same(tmp_path):
    gguf = pytest.importorskip("gguf")
    export(example().write(tmp_path / "a"), tmp_path / "out.gguf", to="gguf")
    _, ours = read_gguf(tmp_path / "out.gguf")
    tensors = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    assert [each.name for each in tensors] == list(ours)
    for each in tensors:
        kind, shape, values = ours[each.name]
        assert each.tensor_type.name == kind
        assert list(each.shape)[::-1] == list(shape)
        if kind[0] in "QBF":
            read = gguf.quants.dequantize(each.data, each.tensor_type).reshape(values.shape)
            assert np.array_equal(read, values.astype(np.float32))
