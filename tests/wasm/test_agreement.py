"""JavaScript, C and Python give the same bits of every tensor, and refuse the same files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffq_fast.files.tensor_bytes import tensor_bytes
from diffq_fast.packed.contents import PackedContents, read_packed
from diffq_fast.packed.header import PackedFileError
from fuzz_file_reader import Mutation, seeds
from support.c_library import CFile, CLibrary, library_path
from support.packed_examples import DATA
from support.packed_forgery import Forgery
from support.paths import ROOT
from support.wasm_package import read_files, run_node, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

GOLDEN = sorted([*DATA.glob("packed_v*.safetensors"), *(DATA / "house").glob("*.safetensors")])
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
MUTATIONS = 1000
MOST_ELEMENTS = 1 << 20
MEMORY_OF_NOTHING = 2 << 20  # code's tables, the stack, and what malloc takes at least


def digest(values: np.ndarray) -> str:
    """Of float32: the same for all NaN."""
    bits = np.where(np.isnan(values), np.float32(np.nan), values).astype("<f4").view("<u4").copy()
    bits[np.isnan(values).ravel().reshape(bits.shape)] = 0x7FC00000
    return hashlib.sha256(bits.tobytes()).hexdigest()


def given(read: Callable[[], Any]) -> Any:
    """What is read, or None where the file is refused."""
    try:
        return read()
    except PackedFileError:
        return None


def python_values(contents: PackedContents, name: str) -> Any:
    """What JavaScript should say of an entry's values; None where its levels cannot be decoded."""
    tensor = given(lambda: contents.tensor(name))
    if tensor is None:
        return None
    if tensor.dtype in FLOATS:
        return digest(tensor.to(torch.float32).numpy())
    return list(tensor_bytes(tensor).tobytes())


def c_values(file: CFile, name: str, dtype: torch.dtype) -> Any:
    index = file.find(name)
    return digest(file.read(index)) if dtype in FLOATS else list(file.data(index))


def compare(found: dict[str, Any], contents: PackedContents) -> None:
    """Every entry: name, shape, bits; whole, and in pieces."""
    assert [entry["name"] for entry in found["entries"]] == [*contents.packed, *contents.plain, *contents.ties]
    decoded = {}
    for entry in found["entries"]:
        name = entry["name"]
        assert tuple(entry["shape"]) == contents.entries()[name].shape
        assert entry["tiedTo"] == contents.ties.get(name)
        if entry["count"] > MOST_ELEMENTS:
            continue
        expected = python_values(contents, name)
        if expected is None:
            assert entry["values"]["status"] == "bad-file", name
        else:
            assert entry["values"] == expected, name
            decoded[name] = expected
    if found["pieces"] is None:
        return
    if len(decoded) == len(found["entries"]):
        assert found["pieces"] == decoded
    else:
        assert found["pieces"]["status"] == "bad-file"


def test_every_value_of_a_golden_file_is_the_same_in_three_languages():
    path = library_path()
    library = CLibrary(path) if path is not None else None
    assert len(GOLDEN) >= 12
    for path, found in zip(GOLDEN, read_files(GOLDEN, MOST_ELEMENTS), strict=True):
        contents = read_packed(path)
        assert contents.entries()
        compare(found, contents)
        if library is not None:
            with library.open(path) as file:
                for name, entry in contents.entries().items():
                    assert c_values(file, name, entry.dtype) == python_values(contents, name), (path, name)


def test_what_is_said_of_a_weight_is_what_python_knows():
    for path, found in zip(GOLDEN, read_files(GOLDEN, 0), strict=True):
        contents = read_packed(path)
        assert found["metadata"]["quantizer"] == contents.quantizer
        said = {entry["name"]: entry for entry in found["entries"]}
        for name, weight in contents.packed.items():
            has_widths = weight.range_scope != "steps" and weight.count > 0
            widths = weight.widths.tolist() if has_widths else [0]
            assert (said[name]["leastBits"], said[name]["mostBits"]) == (min(widths), max(widths))
            whole = weight.group_size >= weight.count  # said as 0, one group for all
            assert (said[name]["packed"], said[name]["groupSize"]) == (True, 0 if whole else weight.group_size)


def test_corrupted_files_are_refused_or_read_as_python_does(tmp_path):
    """A thousand forgeries, most with right checksums: no trap, no hang, memory in proportion to file and result."""
    small, golden = seeds(tmp_path)
    paths = []
    for seed in range(MUTATIONS):
        mutation = Mutation(seed)
        paths.append(tmp_path / f"{seed}.safetensors")
        paths[-1].write_bytes(mutation.changed(mutation.random.choice([*small, *golden])))
    outcomes = {"read": 0, "refused": 0}
    for path, found in zip(paths, read_files(paths, MOST_ELEMENTS), strict=True):
        contents = given(lambda path=path: read_packed(path))
        assert ("refused" in found) == (contents is None), (path, found)
        outcomes["refused" if contents is None else "read"] += 1
        counts = [0]
        if contents is None:
            assert (found["status"], found["refused"].isascii()) == ("bad-file", True)
            assert found["pieces"] is None or found["pieces"]["status"] == "bad-file", path
        else:
            compare(found, contents)
            counts += [entry["count"] for entry in found["entries"] if entry["count"] <= MOST_ELEMENTS]
        assert found["memory"] <= MEMORY_OF_NOTHING + 24 * path.stat().st_size + 24 * max(counts), path
    assert min(outcomes.values()) > MUTATIONS // 20, outcomes


def test_more_elements_than_32_bits_count_are_an_error(tmp_path):
    """A sound file of 32 MB whose weight has 2^33 elements; the module reads other files afterwards."""
    forgery = Forgery.empty(DATA / "packed_v2_coded.safetensors")
    forgery.metadata["version"] = "2"
    rows, columns = 1 << 13, 1 << 20
    forgery.layout = {"weights": {"w": {"shape": [rows, columns], "dtype": "F32", "group_size": 0, "range": "scale"}}}
    forgery.layout["weights"]["w"] |= {"widths": ["one", 2], "coding": "rans"}
    forgery.set_data("w.range", np.float32(1).tobytes(), "F32")
    forgery.set_data("w.coded", bytes([0, 0, 1, 0]).ljust(2 * rows * columns // 512, b"\0"))
    forgery.tensors["w.coded"] |= {"dtype": "U16", "shape": [rows * columns // 512]}
    path = forgery.write(tmp_path / "vast.safetensors")
    assert read_packed(path).packed["w"].count == 1 << 33
    script = ROOT / "csrc" / "wasm" / "tests" / "vast.js"
    printed = run_node(script, str(path), str(DATA / "packed_v1_documented.safetensors"))
    assert printed.split() == ["out-of-memory", "out-of-memory", "internal", "0.25"]


def test_the_packages_own_tests_pass():
    printed = run_node(ROOT / "csrc" / "wasm" / "tests" / "index.test.js", options=("--test-reporter=tap",))
    assert "# fail 0" in printed
    assert int(printed.split("# pass ")[1].split()[0]) >= 15
