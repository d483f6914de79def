"""Files built to break readers: a good packed file, changed at will and sealed again with right checksums."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

KEY = b'"header_crc32":"'


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def header_bytes(text: str | bytes) -> bytes:
    """Length and header, with its checksum filled in where it has a place for one."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    prefix = len(raw).to_bytes(8, "little")
    at = raw.find(KEY) + len(KEY)
    if at >= len(KEY):
        zeroed = raw[:at] + b"00000000" + raw[at + 8 :]
        raw = raw[:at] + f"{zlib.crc32(prefix + zeroed):08x}".encode() + raw[at + 8 :]
    return prefix + raw


class Forgery:
    """A packed file taken apart: change the fields, then write it with right offsets and checksums."""

    def __init__(self, source: str | Path | bytes) -> None:
        blob = source if isinstance(source, bytes) else Path(source).read_bytes()
        length = int.from_bytes(blob[:8], "little")
        self.tensors = json.loads(blob[8 : 8 + length])
        self.metadata = self.tensors.pop("__metadata__")
        self.layout = json.loads(self.metadata["layout"])
        self.data = {
            name: blob[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]]
            for name, entry in self.tensors.items()
        }

    @classmethod
    def empty(cls, source: str | Path | bytes) -> Forgery:
        """Without a tensor or a layout."""
        forgery = cls(source)
        forgery.tensors, forgery.data, forgery.layout = {}, {}, {"weights": {}}
        return forgery

    def add_weight(self, name: str, count: int, group_size: int = 0, width: int = 1) -> None:
        """A flat weight of `count` elements, all of one width, in the range 0 … 1."""
        words = width * -(-count // 32)
        fields = {
            "shape": [count],
            "dtype": "F32",
            "group_size": group_size,
            "range": "tensor",
            "widths": ["one", width],
        }
        self.layout["weights"][name] = fields
        self.set_data(name + ".range", bytes(6) + b"\x80\x3f", "F32")
        self.set_data(name + ".words", b"\x55" * (4 * words), "U32")

    def set_data(self, name: str, data: bytes, dtype: str = "U8", shape: list[int] | None = None) -> None:
        """Add or replace a tensor; without a shape it is flat."""
        size = {"U8": 1, "BOOL": 1, "F16": 2, "F32": 4, "U32": 4, "I64": 8}[dtype]
        self.tensors[name] = {"dtype": dtype, "shape": [len(data) // size] if shape is None else shape}
        self.data[name] = data

    def drop(self, name: str) -> None:
        del self.tensors[name], self.data[name]

    def write(self, path: Path, change_text: Callable[[str], str] | None = None) -> Path:
        path.write_bytes(self.blob(change_text))
        return path

    def blob(self, change_text: Callable[[str], str] | None = None) -> bytes:
        """`change_text` may spoil the header's JSON text; its checksum is right afterwards."""
        position = 0
        for name in self.tensors:
            self.tensors[name]["data_offsets"] = [position, position + len(self.data[name])]
            position += len(self.data[name])
        metadata = self.metadata | {
            "layout": self.layout if isinstance(self.layout, str) else compact(self.layout),
            "crc32": compact([f"{zlib.crc32(self.data[name]):08x}" for name in self.tensors]),
        }
        text = compact({"__metadata__": metadata} | self.tensors)
        text += " " * (-len(text.encode()) % 8)
        text = change_text(text) if change_text else text
        return header_bytes(text) + b"".join(self.data.values())
