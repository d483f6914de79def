"""Pack an ordinary safetensors checkpoint, and unpack a packed file into one; no model class is needed."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import BinaryIO

import torch
from torch import Tensor

from ..files.atomic_file import check_output
from ..files.budget import Budget
from ..files.safetensors_reader import (
    Header,
    Progress,
    file_error,
    open_file,
    printable,
    read_header,
    read_tensor,
)
from ..files.safetensors_writer import TensorSource, write_safetensors
from ..files.tensor_bytes import DTYPE_NAMES, DTYPES, tensor_bytes, tensor_from_bytes
from ..reference.logit_rule import LogitRule
from ..reference.quantize import PACKABLE
from ..reference.sizes import MAX_WIDTH, group_count
from .contents import PackedContents, matching, read_packed, write_packed
from .header import FORMAT
from .ranges import RangeOptions
from .tensor import PackedTensor, pack_weight

MEGABYTE = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """An open, ordinary safetensors file; tensors are read one by one."""

    path: str
    header: Header
    file: BinaryIO

    def tensor(self, name: str) -> Tensor:
        entry = self.header.tensors[name]
        try:
            return tensor_from_bytes(read_tensor(self.file, self.header, entry), DTYPES[entry.dtype], entry.shape)
        except ValueError as error:
            raise file_error(self.path, name, str(error)) from None

    def count(self, name: str) -> int:
        return torch.Size(self.header.tensors[name].shape).numel()

    def packable(self, name: str) -> bool:
        return DTYPES[self.header.tensors[name].dtype] in PACKABLE


@contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """Open an ordinary safetensors file; PackedFileError if it is damaged or already packed."""
    path = os.fspath(path)
    with open_file(path) as file:
        header = read_header(file, path)
        if header.metadata.get("format") == FORMAT:
            raise file_error(path, "header", "this file is packed already; `diffq-fast unpack` makes it ordinary")
        yield Checkpoint(path, header, file)


def has_logits(path: str | os.PathLike[str], suffix: str) -> bool:
    """Whether the checkpoint holds a tensor NAME and its logits NAME + suffix."""
    with open_checkpoint(path) as checkpoint:
        return bool(_weights_with_logits(checkpoint, suffix))


def pack_with_logits(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    rule: LogitRule,
    *,
    group_size: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Pack the checkpoint of a model trained with DiffQuantizer: widths from its logits, which are left out.

    Args:
        rule: the quantizer's min_bits, max_bits, extra_bits, param and suffix.
        group_size: as trained; None infers it from the number of logits, where only one fits.

    Raises:
        ValueError: no logits, a group size that does not fit or is not certain, NaN or infinity; named.
    """
    check_output("pack", target, source)
    with open_checkpoint(source) as checkpoint:
        names = _weights_with_logits(checkpoint, rule.suffix)
        if not names:
            raise ValueError(f"pack: {checkpoint.path}: no tensor has logits named NAME{rule.suffix}")
        counts = {name: (checkpoint.count(name), checkpoint.count(name + rule.suffix)) for name in names}
        group_size = find_group_size(counts, group_size)
        widths = {}
        for name in names:
            if not checkpoint.header.tensors[name + rule.suffix].shape:
                scale = f"{name + rule.suffix} is one number, a scale of LSQ and not the logits of DiffQuantizer"
                raise ValueError(f"pack: {checkpoint.path}: {scale}; save the model with diffq_fast.save")
            logits = checkpoint.tensor(name + rule.suffix).reshape(-1)
            if not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
                raise ValueError(f"pack: {name + rule.suffix}: expected finite logits, found {logits.dtype} or NaN")
            widths[name] = rule.widths(logits)
        arguments = {name: value for name, value in vars(rule).items() if value != getattr(LogitRule(), name)}
        info = {"class": "DiffQuantizer", "arguments": {"group_size": group_size} | arguments}
        packed = _pack_all(checkpoint, widths, OneWidth(MAX_WIDTH, group_size), progress)
        left_out = {*names, *(name + rule.suffix for name in names)}
        plain = {name: checkpoint.tensor(name) for name in checkpoint.header.tensors if name not in left_out}
        write_packed(target, PackedContents(packed, plain, quantizer=info))


@dataclass(frozen=True)
class OneWidth:
    """How to pack a checkpoint at one width.

    bits: 1 … 16. group_size, range_scope: "group" keeps a (lo, hi) for each `group_size` elements.
    min_size: MB of float32 (2^20 bytes); smaller tensors, integers and float64 are kept as they are.
    exclude: fnmatch patterns on the whole name or its last part.
    ranges: clipped where that lowers the squared error, or kept in 16 bits; None: as they are.
    """

    bits: int
    group_size: int = 0
    range_scope: str = "tensor"
    min_size: float = 0.01
    exclude: Sequence[str] = ()
    ranges: RangeOptions | None = None

    def chooses(self, name: str, count: int) -> bool:
        """Whether a tensor of this name and number of elements is one to pack."""
        excluded = any(fnmatchcase(part, each) for part in (name, name.split(".")[-1]) for each in self.exclude)
        return not excluded and count > self.min_size * MEGABYTE / 4


def pack_at_bits(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: OneWidth,
    progress: Progress | None = None,
) -> tuple[list[str], list[str]]:
    """Pack any checkpoint at one width: every floating tensor above a size that no pattern excludes.

    Returns the names of the packed tensors, and of the float64 ones, which are kept as they are for that alone.
    """
    check_output("pack", target, source)
    with open_checkpoint(source) as checkpoint:
        widths, double = {}, []
        for name in checkpoint.header.tensors:
            if not options.chooses(name, checkpoint.count(name)):
                continue
            if checkpoint.header.tensors[name].dtype == "F64":
                double.append(name)
            if checkpoint.packable(name):
                groups = group_count(checkpoint.count(name), options.group_size)
                widths[name] = torch.full((groups,), options.bits, dtype=torch.uint8, device="cpu")
        info = {"class": "none", "arguments": {"bits": options.bits}}
        packed = _pack_all(checkpoint, widths, options, progress)
        plain = {name: checkpoint.tensor(name) for name in checkpoint.header.tensors if name not in widths}
        write_packed(target, PackedContents(packed, plain, quantizer=info))
        return list(widths), double


def unpack_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    max_bytes: int | None = None,
    names: Collection[str] | None = None,
) -> None:
    """Write a packed file's state dict as an ordinary safetensors file: every name, tied ones as copies.

    Args:
        names: names, or fnmatch patterns, of the entries to unpack; the others are neither read nor decoded.
        max_bytes: of the new file's tensors; ten times what they take without the copies, and 64 MiB, when left out.

    Raises:
        BudgetError: the copies take more, and nothing was written. ValueError: a name matches no entry.
    """
    check_output("unpack", target, source)
    contents = read_packed(source, names=names)
    entries = contents.entries()
    if names is not None:  # what an entry is tied to was read, and need not be asked for
        wanted = matching(entries, names, contents.path)
        entries = {name: entry for name, entry in entries.items() if name in wanted}
    sizes = {name: math.prod(entry.shape) * entry.dtype.itemsize for name, entry in entries.items()}
    stored = sum({entries[name].stored_name: size for name, size in sizes.items()}.values())
    budget = Budget(os.fspath(source), stored, max_bytes)
    sources = []
    for name, entry in entries.items():
        budget.take(sizes[name], printable(name))
        data = partial(lambda name: tensor_bytes(contents.tensor(name)), name)
        sources.append(TensorSource(name, DTYPE_NAMES[entry.dtype], entry.shape, data))
    write_safetensors(target, sources, {"format": "pt"}, progress=progress)


def find_group_size(counts: Mapping[str, tuple[int, int]], group_size: int | None = None) -> int:
    """The one group size that fits all weights: `counts` has the elements and the logits of each, by name.

    Raises ValueError if `group_size`, or every group size, contradicts a weight, or if several fit.
    """
    if group_size is not None:
        for name, (count, groups) in counts.items():
            if group_count(count, group_size) != groups:
                expected = f"group_size {group_size} gives {group_count(count, group_size):,} groups"
                raise ValueError(f"pack: {name}: {expected} in {count:,} elements, found {groups:,} logits")
        return group_size
    low, high, last = 1, None, ""
    for name, (count, groups) in counts.items():
        if groups != 1 or count == 0:
            if not 0 < groups <= count:
                raise ValueError(f"pack: {name}: {groups:,} logits cannot be one per group of {count:,} elements")
            high = min(high or count, -(-count // (groups - 1)) - 1)
        low = max(low, -(-count // groups))
        if high is not None and low > high:
            seen = f"{name}: {groups:,} logits for {count:,} elements"
            raise ValueError(f"pack: {seen} need another group size than {last}; one size must fit all weights")
        last = name
    if high is None:
        return 0
    if low != high:
        raise ValueError(f"pack: every group size from {low} to {high} fits the logits; give --group-size")
    return low


def _weights_with_logits(checkpoint: Checkpoint, suffix: str) -> list[str]:
    names = checkpoint.header.tensors
    return [name for name in names if name + suffix in names and checkpoint.packable(name)]


def _pack_all(
    checkpoint: Checkpoint,
    widths: Mapping[str, Tensor],
    options: OneWidth,
    progress: Progress | None,
) -> dict[str, PackedTensor]:
    packed: dict[str, PackedTensor] = {}
    total, done = sum(checkpoint.header.tensors[name].byte_count for name in widths), 0
    for name, width in widths.items():
        weight = checkpoint.tensor(name)
        size, scope = options.group_size, options.range_scope
        packed[name] = pack_weight(weight, width, group_size=size, range_scope=scope, name=name, options=options.ranges)
        done += checkpoint.header.tensors[name].byte_count
        if progress is not None:
            progress(name, done, total)
    return packed
