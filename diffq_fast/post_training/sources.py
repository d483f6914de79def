"""Checkpoints as they come: safetensors, sharded by an index, or of ``torch.save``; one tensor in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..files.safetensors_reader import (
    FileError,
    Header,
    begins_like_safetensors,
    file_error,
    open_file,
    printable,
    read_header,
    read_json,
    read_tensor,
)
from ..files.tensor_bytes import DTYPES, tensor_from_bytes, tied_names
from ..legacy.torch_file import read_torch_file
from ..packed.header import FORMAT

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
NESTS = ("state_dict", "model_state_dict", "model_state", "model", "state", "module")
MAX_INDEX_BYTES = 100_000_000


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        return torch.Size(self.shape).numel()


class SafetensorsShard:
    """An open safetensors file; each tensor is read when it is asked for, and not kept."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._header: Header = read_header(file, path)
        if self._header.metadata.get("format") == FORMAT:
            raise file_error(path, "header", "this file is packed already; `diffq-fast unpack` makes it ordinary")
        self.entries = {name: Entry(each.shape, DTYPES[each.dtype]) for name, each in self._header.tensors.items()}
        self.ties: dict[str, str] = {}

    def tensor(self, name: str) -> Tensor:
        entry = self._header.tensors[name]
        try:
            return tensor_from_bytes(read_tensor(self._file, self._header, entry), DTYPES[entry.dtype], entry.shape)
        except FileError:
            raise
        except ValueError as error:
            raise file_error(self.path, name, str(error)) from None


class TorchShard:
    """A file of ``torch.save``, read by the reader that runs nothing. Its tensors are in memory until ``release``.

    ties: name -> the first name of the same tensor.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._tensors: dict[str, Tensor] | None = None
        tensors = self._read()
        self.ties = tied_names(tensors)
        self.entries = {name: Entry(tuple(each.shape), each.dtype) for name, each in tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self._read()[name].contiguous()

    def release(self) -> None:
        """Forget the tensors; they are read again when one is asked for."""
        self._tensors = None

    def _read(self) -> dict[str, Tensor]:
        if self._tensors is None:
            self._tensors = _state_dict(read_torch_file(self._file, self.path), self.path)
        return self._tensors


class Source:
    """A checkpoint of one or more shards. Names are in the shards' order; a tied name is in ``ties`` alone."""

    def __init__(self, path: str, shards: Mapping[str, SafetensorsShard | TorchShard]) -> None:
        self.path = path
        self._shards = shards
        self.ties = {alias: name for alias, name in _all_ties(shards).items() if alias in shards and name in shards}
        self.entries = {name: shards[name].entries[name] for name in shards if name not in self.ties}

    @property
    def paths(self) -> list[str]:
        """The files that it is read from."""
        return list({str(_found(Path(self.path))): None} | {shard.path: None for shard in self._shards.values()})

    def tensor(self, name: str) -> Tensor:
        """The tensor, read now. Of files of torch.save only the one that was read last is kept in memory."""
        shard = self._shards[name]
        for other in {id(each): each for each in self._shards.values()}.values():
            if isinstance(other, TorchShard) and other is not shard:
                other.release()
        return shard.tensor(name)


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a checkpoint: a safetensors file, a file of ``torch.save``, an index of shards, or a folder with one.

    Raises:
        ValueError: the file is none of these, damaged or packed already, or the index names what is not there.
        OSError: a file cannot be read.
    """
    text = os.fspath(path)
    place = _found(Path(text))
    with ExitStack() as stack:
        if place.suffix == ".json":
            shards = _open_shards(place, stack)
        else:
            shard = _open_shard(place, stack)
            shards = dict.fromkeys(shard.entries, shard)
        yield Source(text, shards)


def _found(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (*INDEX_NAMES, *FILE_NAMES):
        if (path / name).is_file():
            return path / name
    raise ValueError(f"pack: {path}: expected one of {', '.join((*INDEX_NAMES, *FILE_NAMES))} in this folder")


def _open_shard(path: Path, stack: ExitStack) -> SafetensorsShard | TorchShard:
    file = stack.enter_context(open_file(path))
    head = file.read(9)
    if begins_like_safetensors(head) or path.suffix == ".safetensors":
        return SafetensorsShard(str(path), file)
    return TorchShard(str(path), file)


def _open_shards(index: Path, stack: ExitStack) -> dict[str, SafetensorsShard | TorchShard]:
    """The shard of each name, as the index has it, by name."""
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"pack: {index}: an index of {index.stat().st_size:,} bytes, at most {MAX_INDEX_BYTES:,}")
    weight_map = read_json(index.read_bytes(), str(index), "index", floats=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"pack: {index}: expected an object weight_map: tensor name to file name")
    opened: dict[str, SafetensorsShard | TorchShard] = {}
    for file_name in dict.fromkeys(weight_map.values()):
        if Path(file_name).name != file_name or file_name in ("", "..") or "\0" in file_name:
            raise ValueError(f"pack: {index}: shard {printable(file_name)!r} is no file name beside the index")
        opened[file_name] = _open_shard(index.with_name(file_name), stack)
        if isinstance(opened[file_name], TorchShard):
            opened[file_name].release()  # type: ignore[union-attr]
    shards = {}
    for name, file_name in weight_map.items():
        if name not in opened[file_name].entries:
            raise ValueError(f"pack: {index}: {printable(name)} is not in {file_name}, where the index has it")
        shards[name] = opened[file_name]
    return shards


def _all_ties(shards: Mapping[str, SafetensorsShard | TorchShard]) -> dict[str, str]:
    ties: dict[str, str] = {}
    for shard in {id(each): each for each in shards.values()}.values():
        ties |= shard.ties
    return ties


def _state_dict(value: object, path: str) -> dict[str, Tensor]:
    """The tensors of a state dict, which may be an entry of what was saved, as training scripts have it."""
    for nest in NESTS:
        if isinstance(value, Mapping) and isinstance(value.get(nest), Mapping):
            value = value[nest]
            break
    if not isinstance(value, Mapping):
        raise ValueError(f"pack: {path}: expected a state dict, found {type(value).__name__}")
    tensors = {name: each for name, each in value.items() if isinstance(name, str) and isinstance(each, Tensor)}
    if not tensors:
        raise ValueError(f"pack: {path}: expected a state dict, found no tensor under a name")
    return tensors
