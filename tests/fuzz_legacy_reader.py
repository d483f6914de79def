"""Feeds the reader of diffq's and Demucs' old files pickles of every kind: each is read, or refused with a ValueError.

    python tests/fuzz_legacy_reader.py [runs] [seed]

The pickles of the golden files are taken apart into opcodes, some are dropped, doubled, moved, changed or repeated up
to megabytes, and the result goes into either container of torch.save. A run fails on any other error, and on more
memory or time than `support.fuzz_limits` allows; it then leaves the file that did it in the working folder.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import random
import struct
import sys
import time
import warnings
import zipfile
from pathlib import Path

import torch

from diffq_fast.legacy.state import load_legacy
from support.fuzz_limits import TooSlowError, bounded, thrice
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


def opcodes(pickled: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(pickled) if place is not None]
    return [pickled[a:b] for a, b in zip(places, [*places[1:], len(pickled)], strict=True)]


class Old:
    """A file of torch.save taken apart: the opcodes of its pickle, and its storages."""

    def __init__(self, data: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            root = next(name for name in names if name.endswith("/data.pkl"))[: -len("data.pkl")]
            self.opcodes = opcodes(archive.read(root + "data.pkl"))
            self.storages = {name: archive.read(name) for name in names if name.startswith(root + "data/")}
        self.root = root

    def zipped(self, pickled: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(self.root + "data.pkl", pickled)
            for name, data in self.storages.items():
                archive.writestr(name, data)
        return buffer.getvalue()


def in_stream(pickled: bytes) -> bytes:
    return b"".join(pickle.dumps(head, 2) for head in HEADS) + pickled + pickle.dumps([], 2)


def mutated(codes: list[bytes], draw: random.Random) -> bytes:
    """The pickle with some opcodes changed; now and then one piece is repeated many times."""
    codes = list(codes)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place, length = draw.randrange(len(codes)), draw.choice((1, 1, 2, 8, 30))
        kind = draw.randrange(6)
        if kind == 0:
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
            codes[place:place] = piece * draw.choice((10, 60, 1000, 1000, 50_000))
        codes = codes or [b"."]
    return b"".join(codes)[: 8 << 20]


def refused(data: bytes) -> bool:
    try:
        with bounded(len(data), SECONDS_PER_MEGABYTE * len(data) / 2**20):
            load_legacy(io.BytesIO(data))
    except ValueError as error:
        if isinstance(error.__cause__, TooSlowError | MemoryError):
            raise error.__cause__ from None
        return True
    return False


def run(runs: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    olds = [Old(path.read_bytes()) for path in sorted(GOLDEN.glob("*.th"))]
    outcomes: list[bool] = []
    slowest, start = 0.0, time.perf_counter()
    for index in range(seed, seed + runs):
        draw = random.Random(index)
        old = draw.choice(olds)
        pickled = mutated(old.opcodes, draw)
        data = in_stream(pickled) if draw.random() < 0.4 else old.zipped(pickled)
        begin = time.process_time()
        try:
            thrice(lambda: outcomes.append(refused(data)))  # noqa: B023 (called at once)
        except BaseException:
            name = f"refute_{hashlib.sha256(data).hexdigest()[:12]}.th"
            Path(name).write_bytes(data)
            print(f"run {index}: {name}", file=sys.stderr)
            raise
        slowest = max(slowest, time.process_time() - begin)
    read = outcomes.count(False)
    speed = runs / (time.perf_counter() - start)
    print(f"{runs} files without a finding, {read} of them read; {speed:.0f} a second, the slowest {slowest:.2f} s")
    if runs >= 1000 and not 0 < read < runs:
        raise AssertionError("expected some files that are read and some that are not")


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
