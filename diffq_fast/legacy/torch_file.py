"""The two containers of ``torch.save``: the zip file (since torch 1.6) and the stream of pickles before it.

Read here and not by ``torch.load``, so that nothing in them is believed: tensors must lie inside their
storages, storages inside the file, and nothing is decompressed. No file makes the reader allocate more than
its length warrants.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .unpickler import RestrictedUnpickler, rebuild_tensor

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001


def _as_tensor(data: bytearray, dtype: torch.dtype) -> Tensor:
    if not data:
        return torch.empty(0, dtype=dtype, device="cpu")
    if dtype == torch.bool:
        return torch.frombuffer(data, dtype=torch.uint8).ne(0)
    return torch.frombuffer(data, dtype=dtype)


def read_zip(file: BinaryIO) -> Any:
    """The object in torch's zip container, whose members must be stored, not compressed."""
    file_bytes = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        roots = [name[: -len("data.pkl")] for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1 or roots[0] + "constants.pkl" in members:
            raise pickle.UnpicklingError("a zip file that torch.save did not write (a TorchScript archive, perhaps)")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise pickle.UnpicklingError("a zip file with compressed members; torch.save stores them")
        if sum(max(info.file_size, info.compress_size) for info in members.values()) > file_bytes:
            raise pickle.UnpicklingError("a zip file whose members are longer than the file")
        if roots[0] + "byteorder" in members and archive.read(roots[0] + "byteorder") != b"little":
            raise pickle.UnpicklingError("a file from a big-endian machine; save it again on a little-endian one")
        storages: dict[str, Tensor] = {}

        def load_storage(pid: tuple) -> Tensor:
            _, storage_type, key, _, count = pid[:5]
            if key not in storages:
                data = bytearray(archive.read(f"{roots[0]}data/{key}"))
                if len(data) != count * storage_type.dtype.itemsize:
                    raise pickle.UnpicklingError(f"storage {key!r:.20} of {len(data)} bytes, expected {count} elements")
                storages[key] = _as_tensor(data, storage_type.dtype)
            return storages[key]

        return RestrictedUnpickler(io.BytesIO(archive.read(roots[0] + "data.pkl")), load_storage).load()


def read_stream(file: BinaryIO) -> Any:
    """The object in torch's older container: magic, protocol, system, object, the storages' bytes."""
    file_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    for expected in (_TORCH_MAGIC, _TORCH_PROTOCOL):
        if RestrictedUnpickler(file).load() != expected:
            raise pickle.UnpicklingError("a pickle that torch.save did not write")
    system = RestrictedUnpickler(file).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise pickle.UnpicklingError("a file from a big-endian machine; save it again on a little-endian one")
    storages: dict[str, Tensor] = {}
    allocated = 0

    def load_storage(pid: tuple) -> Tensor:
        nonlocal allocated
        _, storage_type, key, _, count = pid[:5]
        if key not in storages:
            allocated += count * storage_type.dtype.itemsize
            if allocated > file_bytes:
                raise pickle.UnpicklingError(f"storages of {allocated:,} bytes in a file of {file_bytes:,}")
            storages[key] = torch.zeros(count, dtype=storage_type.dtype, device="cpu")
        view = pid[5] if len(pid) > 5 else None
        return storages[key] if view is None else rebuild_tensor(storages[key], view[1], (view[2],), (1,))

    result = RestrictedUnpickler(file, load_storage).load()
    for key in RestrictedUnpickler(file).load():
        storage = storages.pop(key if isinstance(key, str) else "")
        count = int.from_bytes(file.read(8), "little")
        data = bytearray(file.read(storage.numel() * storage.element_size()))
        if count != storage.numel() or len(data) != storage.numel() * storage.element_size():
            raise pickle.UnpicklingError(f"storage {key!r:.20}: expected {storage.numel()} elements, found {count}")
        storage.copy_(_as_tensor(data, storage.dtype))
    if storages:
        raise pickle.UnpicklingError(f"{len(storages)} storages are missing")
    return result


def read_torch_file(file: BinaryIO, name: str) -> Any:
    """What ``torch.save`` put into ``file``, with every unknown class inert.

    Raises ValueError, naming the file ``name``, for anything that is not a whole file of ``torch.save``.
    """
    file.seek(0)
    head = file.read(4)
    try:
        if head == b"PK\x03\x04":
            return read_zip(file)
        if head[:1] == b"\x80":
            return read_stream(file)
        raise pickle.UnpicklingError("neither a zip file nor a pickle")
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name}: not a readable torch.save file; damaged, truncated or hostile ({problem:.300})"
        ) from error
