# ruff: noqa: E402 (what is to be guided by must be imported first, by atheris)
"""Feeds the reader of packed files damaged and forged ones: each loads, or is refused with the reader's own error.

    python tests/fuzz_file_reader.py [runs] [seed] [--processes N]  mutations drawn at random
    python tests/fuzz_file_reader.py --guided [options]             guided by the reader's coverage; libFuzzer's options

The second form needs `pip install atheris`. Both change the golden files and the small ones of `seeds`: bytes as they
are, or fields of the header and the layout, sealed again with right checksums, so that what lies behind these is
reached; now and then they grow to megabytes. A run fails on any other error, on a model that is changed by a load that
failed, and on more memory or time than `support.fuzz_limits` allows; it then leaves the file that did it in the working
folder.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.paths import DATA

GUIDED = "--guided" in sys.argv
if GUIDED:
    import atheris

    with atheris.instrument_imports(include=["diffq_fast.packed", "diffq_fast.files"]):
        import diffq_fast.packed.save_load  # noqa: F401

import torch
from torch import nn

from diffq_fast.files.safetensors_reader import ITEM_BYTES
from diffq_fast.packed.coding import CodedTensor
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.save_load import inspect, load, read_packed
from diffq_fast.reference.level_code import LevelCode
from support.fuzz_limits import bounded
from support.fuzz_runs import main
from support.packed_examples import GOLDEN, Example, coded_example, example_weight
from support.packed_forgery import Forgery, compact

# Of four readings: inspect, read, decode, load. A header has a tensor in 77 bytes, each read and checked in Python.
SECONDS_PER_MEGABYTE, SECONDS_PER_MEGABYTE_OF_HEADER = 0.5, 3.0
LARGEST = 8 << 20

ODD_VALUES = (
    *(0, 1, -1, 2, 7, 16, 17, 255, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)),
    *(1.5, 1e308, True, False, None, "", "w", "b", "v", "w.words", "F16", "BOOL", "scale", "group", "runs", "\ud800"),
    *("x" * 300, "\x1b[31m", [], {}, [0], [2**40, 2**40], [1] * 40, ["one", 3], ["fixed", 1, 4], ["runs"], {"w": "b"}),
)


TIED = {"v": ["w"], "w": ["v"]}


class Model(nn.Module):
    """What the golden file `packed_v1_documented` fits."""

    def __init__(self) -> None:
        super().__init__()
        self.w = self.v = nn.Parameter(torch.full((2, 3), 9.0))
        self.b = nn.Parameter(torch.full((1,), 9.0))


def seeds(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Files with little but one coding, dtype or scope each, and the golden files, which have everything."""
    levels, one = torch.tensor([0, 3, -1, 0, 0, 1, -40]), LevelCode(-9, 0)
    table = LevelCode(-1, 0, (1000, 2096, 1000), escape=True)
    small = {
        "fixed": Example({"w": example_weight((5, 7), [2, 3], 4)}),
        "runs": Example({"w": example_weight((70,), [4] * 20 + [9] * 50, 1)}),
        "per_group": Example({"w": example_weight((3, 9), [4, 8], 8, range_scope="group")}),
        "tied": Example(
            {"w": example_weight((6,), 5, 0, dtype=torch.float16)}, {"b": torch.ones(2)}, {"v": "w"}, {"b"}
        ),
        "plain": Example({}, {"b": torch.arange(3), "mask": torch.tensor([True])}, buffers={"mask"}),
        "steps": Example({"w": coded_example((7,), [(torch.tensor([-9, -9]), one), (levels, table)], 4)}),
        "coded": Example(
            {"w": coded_example((6,), [(levels[:6], table)], 0, widths=4, ranges=[-1.0], scheme=("scale", None))}
        ),
    }
    written = [example.write(folder / name).read_bytes() for name, example in small.items()]
    golden = [(DATA / f"{name}.safetensors").read_bytes() for name in GOLDEN]
    return [*written, golden[0]], golden[1:]


class Mutation:
    """Changes files; the same changes for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def changed(self, data: bytes) -> bytes:
        """A file with some bytes changed, or with some fields changed and sealed again."""
        if self.random.random() < 0.75:
            try:
                return self._forged(data)
            except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
                pass  # these bytes are no packed file any more, or the change cannot be written
        return self._spoilt(data)

    def _spoilt(self, data: bytes) -> bytes:
        spoilt = bytearray(data)
        for _ in range(self.random.choice((1, 1, 1, 2, 8))):
            place = self.random.randrange(len(spoilt) + 1)
            length = self.random.choice((0, 1, 1, 4, 8, 100))
            fresh = self.random.choice((b"", self.random.randbytes(1), self.random.randbytes(length), b"\xff" * length))
            spoilt[place : place + length] = fresh
        return bytes(spoilt[:LARGEST])

    def _forged(self, data: bytes) -> bytes:
        forgery = Forgery(data)
        changes = (self._weight, self._weight, self._tensor, self._tensor, self._data, self._metadata, self._names)
        for _ in range(self.random.choice((1, 1, 2, 3))):
            self.random.choice(changes)(forgery)
        if self.random.random() < 0.004:
            self.random.choice((self._many, self._long, self._large))(forgery)
        return forgery.blob(self._text if self.random.random() < 0.2 else None)[:LARGEST]

    def _any(self, value: Any = None) -> Any:
        """Something odd, or the value with a part of it changed."""
        if isinstance(value, list) and value and self.random.random() < 0.6:
            place = self.random.randrange(len(value))
            return [*value[:place], self._any(value[place]), *value[place + 1 :]]
        if type(value) is int and self.random.random() < 0.6:
            return value + self.random.choice((-1, 1, 8, 1024))
        return self.random.choice(ODD_VALUES)

    def _in(self, fields: Any) -> None:
        """One field changed, dropped or added."""
        name = self.random.choice([*fields, "extra"])
        if name in fields and self.random.random() < 0.1:
            del fields[name]
        else:
            fields[name] = self._any(fields.get(name))

    def _weight(self, forgery: Forgery) -> None:
        weights = forgery.layout["weights"]
        self._in(weights[self.random.choice([*weights])])

    def _names(self, forgery: Forgery) -> None:
        part = forgery.layout[self.random.choice([*forgery.layout])]
        self._in(part if isinstance(part, dict) and self.random.random() < 0.7 else forgery.layout)

    def _metadata(self, forgery: Forgery) -> None:
        self._in(forgery.metadata)

    def _tensor(self, forgery: Forgery) -> None:
        entry = forgery.tensors[self.random.choice([*forgery.tensors])]
        if self.random.random() < 0.4:
            entry["dtype"] = self.random.choice([*ITEM_BYTES])
        else:
            self._in(entry)

    def _data(self, forgery: Forgery) -> None:
        name = self.random.choice([*forgery.tensors])
        form = self.random.random()
        if form < 0.15:
            forgery.drop(name)
        elif form < 0.3:
            forgery.set_data(self.random.choice(("w", "b.words", "ghost", "w.widths")), self.random.randbytes(3))
        elif form < 0.7:  # as long as it was, so that the sizes hold
            forgery.data[name] = self._spoilt(forgery.data[name])[: len(forgery.data[name])].ljust(
                len(forgery.data[name]), b"\x7f"
            )
        else:
            forgery.data[name] = self._spoilt(forgery.data[name])

    def _many(self, forgery: Forgery) -> None:
        """A weight, a tensor or a tie again and again, under other names."""
        kind, count = self.random.randrange(3), self.random.choice((30, 300, 300, 300, 3000))
        if kind == 0:
            weights = forgery.layout["weights"]
            first = self.random.choice([*weights])
            parts = [part for part in (".words", ".range", ".widths") if first + part in forgery.tensors]
            for index in range(count):
                weights[f"{first}{index}"] = weights[first]
                for part in parts:
                    forgery.tensors[f"{first}{index}{part}"] = dict(forgery.tensors[first + part])
                    forgery.data[f"{first}{index}{part}"] = forgery.data[first + part]
        elif kind == 1:
            for index in range(count):
                forgery.set_data(f"many{index}", b"x")
        else:
            name = self.random.choice([*forgery.layout["weights"], *forgery.tensors])
            forgery.layout["ties"] = {f"tie{index}": name for index in range(count)}

    def _long(self, forgery: Forgery) -> None:
        """A name, a suffix or an argument of a megabyte."""
        size = self.random.choice((1 << 16, 1 << 20))
        text = self.random.choice(("s", "\x1b", "é", '"')) * size
        suffix = compact(
            {"class": "DiffQuantizer", "arguments": {self.random.choice(("suffix", "exclude", text)): text}}
        )
        if self.random.random() < 0.5:
            forgery.metadata["quantizer"] = suffix
        else:
            forgery.set_data(text, b"x")

    def _large(self, forgery: Forgery) -> None:
        """A weight of one bit, with as many groups as it has elements or tables that fill the file."""
        words = 1 << self.random.choice((16, 20, 22))
        for name in [each for each in forgery.tensors if each.startswith("large")]:
            forgery.drop(name)
        forgery.set_data("large.words", self.random.choice((bytes(words), b"\x55" * words)), "U32")
        forgery.set_data("large.range", bytes(4) + b"\0\0\x80?", "F32")
        coding = self.random.choice((["one", 1], ["runs"], ["fixed", 1, 1]))
        size = {"one": 0, "runs": words // 4, "fixed": words}[coding[0]]
        if size:
            forgery.set_data("large.widths", bytes(size))
        fields = {"shape": [8 * words], "dtype": self.random.choice(("F32", "F16")), "range": "tensor"}
        forgery.layout["weights"]["large"] = fields | {
            "group_size": self.random.choice((0, 1, 8, 32)),
            "widths": coding,
        }

    def _text(self, text: str) -> str:
        """JSON that is spoilt, or nested deeply, somewhere."""
        place = self.random.randrange(len(text))
        depth = self.random.choice((1, 2, 50, self.random.randrange(900, 1000), 5000))
        nested = self.random.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
        number = self.random.choice(("1e999", "NaN", "-0", "9" * 30, "9" * 5000, '"\\ud800"', nested))
        if self.random.random() < 0.5:
            return text[:place] + number + text[place + self.random.choice((0, 1, 1, 5)) :]
        values = [at for at in range(len(text) - 1) if text[at] == ":" and text[at + 1] in "[0123456789"]
        at = self.random.choice(values) + 1
        return text[:at] + number + text[text.find("]", at) + 1 :]


def refused(read: Callable[[], Any], path: str, errors: type[Exception] = PackedFileError) -> Any:
    """What was read, or None where it was refused as promised."""
    try:
        return read()
    except errors as error:
        if path not in str(error):
            raise AssertionError(f"the error does not name the file: {error}") from error
        return None


class Reader:
    """Reads bytes as a packed file in every way there is, and checks what comes of it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("fuzzed")
        self.path = f"/proc/self/fd/{self.descriptor}"
        self.model, self.filled = Model(), Model().state_dict()

    def __call__(self, data: bytes) -> bool:
        """Whether it is a packed file."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, data, 0)
        header = min(int.from_bytes(data[:8], "little"), len(data))
        seconds = SECONDS_PER_MEGABYTE * len(data) + SECONDS_PER_MEGABYTE_OF_HEADER * header
        with bounded(len(data), seconds / 2**20):
            return self.read(zlib.crc32(data))

    def read(self, choice: int) -> bool:
        """``choice``: a number that is drawn from the file, so that it is read in the same ways each time."""
        report = refused(lambda: inspect(self.path), self.path)
        if report is not None:
            report.table(), report.to_json()
        contents = refused(lambda: read_packed(self.path), self.path)
        if contents is None:
            if choice % 8 == 0:  # load reads the whole file before anything else, and refuses it for the same reason
                self._load(None, choice)
            return False
        if report is None:
            raise AssertionError("read a file that inspect refuses")
        state = refused(contents.state_dict, self.path)
        if state is not None:
            self._check(contents, state)
        elif not any(isinstance(weight, CodedTensor) for weight in contents.packed.values()):
            raise AssertionError("read a file that cannot be decoded, and not for its streams")
        self._load(contents, choice)
        return True

    def _check(self, contents: Any, state: dict[str, torch.Tensor]) -> None:
        for name, entry in contents.entries().items():
            if (tuple(state[name].shape), state[name].dtype) != (entry.shape, entry.dtype):
                raise AssertionError(f"{name!a}: {state[name].shape} {state[name].dtype}")

    def _load(self, contents: Any, choice: int) -> None:
        """Into a model: all of it or nothing."""
        model = self.model
        done = refused(lambda: load(self.path, model, strict=choice % 16 < 8), self.path, ValueError)
        if done is not None and contents is None:
            raise AssertionError("loaded a file that cannot be read")
        entries = {} if done is None else contents.entries()
        for name, tensor in model.state_dict().items():
            expected = self.filled[name]
            stored = [each for each in (name, *TIED.get(name, ())) if each in entries]
            if stored:
                expected = contents.tensor(stored[0]).to(expected.dtype)
            if not torch.equal(tensor.view(torch.int32), expected.view(torch.int32)):
                raise AssertionError(f"{name} is {tensor}, expected {expected}; loaded: {done is not None}")
        if done is not None:
            self.model = Model()


def quiet() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


class Fuzzer:
    """Files that are changed at random."""

    suffix = ".safetensors"

    def __init__(self) -> None:
        quiet()
        self.read = Reader()
        with tempfile.TemporaryDirectory() as folder:
            self.small, self.golden = seeds(Path(folder))
        for data in (*self.small, *self.golden):  # modules are loaded when first used, which takes longer than a file
            os.pwrite(self.read.descriptor, data, 0)
            if not self.read.read(0):
                raise AssertionError("expected files that are valid before they are changed")
            os.ftruncate(self.read.descriptor, 0)

    def draw(self, seed: int) -> bytes:
        mutation = Mutation(seed)
        draw = mutation.random
        data = draw.choice(self.golden if draw.random() < 0.05 else self.small)
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3)) if draw.random() < 0.99 else 20):
            data = mutation.changed(data)
        return data


def run_guided(options: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as corpus:
        small, golden = seeds(Path(folder))
        for index, data in enumerate([*small, *golden]):
            Path(corpus, f"seed_{index}").write_bytes(data)
        quiet()
        mutate = lambda data, _size, seed: Mutation(seed).changed(data)  # noqa: E731
        reader = Reader()
        atheris.Setup([sys.argv[0], *options, corpus], lambda data: (reader(data), None)[1], custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    if GUIDED:
        run_guided([option for option in sys.argv[1:] if option != "--guided"])
    else:
        main(Fuzzer)
