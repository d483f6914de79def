"""Feeds the reader of diffq's and Demucs' old files pickles of every kind: each is read, or refused with a ValueError.

    python tests/fuzz_legacy_reader.py [runs] [seed] [--processes N]

The pickles of the golden files are taken apart into opcodes, some are dropped, doubled, moved, changed, exchanged for
others of their kind or repeated up to megabytes, and the result goes into either container of torch.save, or compressed
into Demucs' own. Some of what is read is converted, and the packed file read again. A run fails on any other error, and
on more memory or time than `support.fuzz_limits` allows; it then leaves the file that did it in the working folder.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import random
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import torch

from diffq_fast.compat.convert import convert
from diffq_fast.legacy.state import load_legacy
from diffq_fast.legacy.unpickler import RestrictedUnpickler
from diffq_fast.packed.save_load import read_packed
from support.fuzz_limits import TooSlowError, bounded
from support.fuzz_runs import main
from support.paths import GOLDEN

SECONDS_PER_MEGABYTE = 10  # up to a million opcodes, some calls in Python each
HEADS = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


PARTS = (
    *(b"(", b")", b"]", b"}", b"t", b"\x85", b"\x86", b"\x87", b"0", b"1", b"2", b"N", b"\x88", b"\x89", b"\x8f"),
    *(b"\x90", b"\x91", b"l", b"d", b"a", b"e", b"s", b"u", b"R", b"b", b"Q", b"\x81", b"\x92", b"\x93", b"\x94"),
    *(b"q\1", b"h\1"),
    *(b"q\0", b"h\0", b"r\1\0\0\0", b"j\1\0\0\0", b"K\1", b"J\xff\xff\xff\x7f", b"G" + struct.pack(">d", 1e300)),
    *(number(2**61 - 1), number(-(2**70)), number(3**5000), text(""), text("quantized"), text("meta"), text("x" * 300)),
    *(b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"cfractions\nFraction\n", b"cos\nsystem\n"),
    *(b"c_codecs\nencode\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cdiffq.diffq\nDiffQuantizer\n"),
    *(b"0h\1h\1\x86q\1", b"h\0)R", b"Nq\1", b"\x95" + struct.pack("<Q", 2**40), b"B" + struct.pack("<I", 2**31 - 1)),
)
VALUES = tuple(part for part in PARTS if part[:1] in b"KJGNX\x88\x89\x8b" and len(part) < 400)


def opcodes(pickled: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(pickled) if place is not None]
    return [pickled[a:b] for a, b in zip(places, [*places[1:], len(pickled)], strict=True)]


class Old:
    """A file of torch.save taken apart: the opcodes of its pickle, and its storages in the form of either container."""

    def __init__(self, data: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            root = next(name for name in names if name.endswith("/data.pkl"))[: -len("data.pkl")]
            pickled = archive.read(root + "data.pkl")
            storages = {name: archive.read(name) for name in names if name.startswith(root + "data/")}
        self.opcodes, self.name = opcodes(pickled), (root + "data.pkl").encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in storages.items():
                archive.writestr(name, content)
        blob, self.count = buffer.getvalue(), len(storages)
        start = int.from_bytes(blob[-6:-2], "little")
        self.members, self.directory = blob[:start], blob[start:-22]
        self.after_stream = self._stored(pickled, root, storages)

    def _stored(self, pickled: bytes, root: str, storages: dict[str, bytes]) -> bytes:
        """The storages as they follow the pickle in the older container."""
        counts: dict[str, int] = {}

        def count(pid: tuple) -> torch.Tensor:
            counts[pid[2]] = pid[4]
            return torch.zeros(pid[4], dtype=pid[1].dtype)

        RestrictedUnpickler(io.BytesIO(pickled), count).load()
        data = b"".join(struct.pack("<q", size) + storages[f"{root}data/{key}"] for key, size in counts.items())
        return pickle.dumps([*counts], 2) + data

    def zipped(self, pickled: bytes) -> bytes:
        sums = struct.pack("<3I2H", zlib.crc32(pickled), len(pickled), len(pickled), len(self.name), 0)
        local = b"PK\3\4" + struct.pack("<5H", 20, 0, 0, 0, 33) + sums + self.name + pickled
        entry = b"PK\1\2" + struct.pack("<6H", 20, 20, 0, 0, 0, 33) + sums
        entry += struct.pack("<3H2I", 0, 0, 0, 0, len(self.members)) + self.name
        directory, count = self.directory + entry, self.count + 1
        end = struct.pack("<4H2IH", 0, 0, count, count, len(directory), len(self.members) + len(local), 0)
        return self.members + local + directory + b"PK\5\6" + end

    def in_stream(self, pickled: bytes) -> bytes:
        return HEAD + pickled + self.after_stream


HEAD = b"".join(pickle.dumps(head, 2) for head in HEADS)
CONSTANTS = tuple(bytes([code]) for code in b"KMJGXN\x88\x89\x8a")  # opcodes


def mutated(codes: list[bytes], draw: random.Random) -> bytes:
    """The pickle with some opcodes changed; now and then one piece is repeated many times."""
    codes = list(codes)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 4, 16))):
        place, length = draw.randrange(len(codes)), draw.choice((1, 1, 2, 8, 30))
        kind = draw.randrange(8)
        if kind >= 6:
            places = [at for at, code in enumerate(codes) if code[:1] in CONSTANTS]
            if places:
                codes[draw.choice(places)] = draw.choice([codes[draw.choice(places)], draw.choice(VALUES)])
        elif kind == 0:
            del codes[place : place + length]
        elif kind == 1:
            codes[place:place] = codes[place : place + length]
        elif kind == 2:
            codes[place:place] = [draw.choice(PARTS) for _ in range(length)]
        elif kind == 3:
            other = draw.randrange(len(codes))
            codes[place], codes[other] = codes[other], codes[place]
        elif kind == 4:
            code = bytearray(codes[place])
            code[draw.randrange(len(code))] = draw.randrange(256)
            codes[place] = bytes(code)
        else:
            piece = [draw.choice(PARTS)] if draw.random() < 0.5 else codes[place : place + length]
            many = draw.random()
            codes[place:place] = piece * (50_000 if many < 0.002 else 1000 if many < 0.02 else draw.choice((2, 10, 60)))
        codes = codes or [b"."]
    return b"".join(codes)[: 8 << 20]


class Fuzzer:
    """Pickles of torch.save that are changed at random."""

    suffix = ".th"

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        self.olds = [Old(path.read_bytes()) for path in sorted(GOLDEN.glob("*.th"))]
        self.weights = [1 / len(old.opcodes) for old in self.olds]  # an opcode of one as often as of another
        self.descriptor = os.memfd_create("fuzzed")
        self.path = f"/proc/self/fd/{self.descriptor}"
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        for old in self.olds:  # modules are loaded when first used, which takes longer than a file
            for form in (old.zipped, old.in_stream):
                self._write(form(b"".join(old.opcodes)))
                load_legacy(self.path)
                self._convert()

    def draw(self, seed: int) -> bytes:
        draw = random.Random(seed)
        (old,) = draw.choices(self.olds, self.weights)
        pickled = mutated(old.opcodes, draw)
        data = old.in_stream(pickled) if draw.random() < 0.4 else old.zipped(pickled)
        container = draw.random()
        if container < 0.03 and len(data) < 1 << 18:  # what is decompressed has a limit of its own
            return HEAD + pickle.dumps({"compressed": zlib.compress(data, 1)}, 2) + pickle.dumps([], 2)
        if container < 0.06:
            spoilt, place = bytearray(data), draw.randrange(len(data))
            spoilt[place : place + draw.choice((0, 1, 4))] = draw.randbytes(draw.choice((0, 1, 4)))
            return bytes(spoilt)
        return data

    def read(self, data: bytes) -> bool:
        self._write(data)
        try:
            with bounded(len(data), SECONDS_PER_MEGABYTE * len(data) / 2**20):
                load_legacy(self.path)
                if zlib.crc32(data) % 16 == 0:
                    self._convert()
        except ValueError as error:
            if isinstance(error.__cause__, TooSlowError | MemoryError):
                raise error.__cause__ from None
            return False
        return True

    def _write(self, data: bytes) -> None:
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, data, 0)

    def _convert(self) -> None:
        """What is converted can be read."""
        target = Path(self.folder.name, "converted")
        try:
            convert(self.path, target)
        except ValueError as error:
            if isinstance(error.__cause__, TooSlowError | MemoryError):
                raise error.__cause__ from None
            return
        try:
            read_packed(target)
        except ValueError as error:
            raise AssertionError("convert wrote what cannot be read") from error


if __name__ == "__main__":
    main(Fuzzer)
