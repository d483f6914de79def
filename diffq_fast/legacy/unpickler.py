"""Unpickle what ``torch.save`` wrote, without running what the pickle asks to run.

A pickle is a program: it names functions and calls them. This reader knows seven names (the rebuilders of
tensors and parameters, ``OrderedDict``, ``Fraction``, ``_codecs.encode``) and the storage types; every other
name becomes an *inert* class of that name, which accepts any arguments, does nothing and is never imported.
Tensors must lie inside their storages; dictionary keys must be short plain values, whose hashes nobody can make
collide; what is built is counted, and what was built is measured as it would be written out
(:mod:`diffq_fast.legacy.written_out`). So no pickle makes the reader, or who looks at its values, work without end,
and none takes more memory than a small multiple of its length.
"""

from __future__ import annotations

import collections
import fractions
import io
import pickle
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..files.safetensors_reader import MAX_DIMENSIONS
from .written_out import check_written_out

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_FRACTION = re.compile(r"[+-]?\d{1,100}(/\d{1,100})?")
_PLAIN_KEYS = (str, bytes, int, float, type(None))
_MAX_KEY = 2**31  # of whole numbers as keys; multiples of 2**61 - 1 all have one hash
_MAX_TUPLE_KEYS = 1000  # of one file; the hash of a tuple of numbers can be foreseen
_MAX_NUMBER_KEYS = 10_000  # of one file: small ones can still be chosen to fall into one part of a dictionary
_MAX_KEY_PARTS = 16  # of a tuple, whose hash is made anew at each use
_MAX_TEXT = 4096  # characters of a text as a key, or as a name: equal ones are compared, names are put together
_LARGEST = 2**63  # of the sizes and strides of a tensor
_MAX_FRACTION_BITS = 1024
_MAX_MARKS = 1000  # open at once
COST_OF_CLASS = 1500  # bytes
_COSTS = {  # bytes of what an opcode builds
    **dict.fromkeys(("EMPTY_LIST", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), 60),
    "EMPTY_DICT": 70,
    "EMPTY_SET": 220,
    "MEMOIZE": 100,
    **dict.fromkeys(("PERSID", "BINPERSID"), 400),
}


class Inert:
    """Stands in for the class or function ``legacy_name``: keeps its arguments and does nothing."""

    legacy_name = ""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.args, self.kwargs = args, kwargs
        self.items: list[object] = []
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.__dict__.setdefault("items", []).append((key, value))

    def append(self, value: object) -> None:
        self.__dict__.setdefault("items", []).append(value)

    def extend(self, values: Iterable[object]) -> None:
        self.__dict__.setdefault("items", []).extend(values)

    def parts_of_inert(self) -> tuple[object, ...]:
        """What it keeps."""
        kept = self.__dict__
        return tuple(kept[name] for name in ("args", "kwargs", "items", "state") if name in kept)

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        return type(self)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<inert {self.legacy_name}>"


def inert_class(legacy_name: str) -> type[Inert]:
    """A new inert class for the dotted name ``legacy_name``."""
    return type("Inert", (Inert,), {"legacy_name": legacy_name, "__module__": __name__})


def legacy_name(klass: object) -> str:
    """The dotted name of an inert class, of a real one, or the string itself."""
    if isinstance(klass, str):
        return klass
    if isinstance(klass, type):
        return klass.legacy_name if issubclass(klass, Inert) else f"{klass.__module__}.{klass.__qualname__}"
    raise ValueError(f"legacy_name: klass must be a class or its dotted name, got {type(klass).__name__}")


# -- the names that a pickle may use -------------------------------------------------------------------------


def rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A view of the flat ``storage``; refused when it reaches outside or repeats elements."""
    lists = isinstance(size, list | tuple) and isinstance(stride, list | tuple) and len(size) == len(stride)
    short = lists and len(size) <= MAX_DIMENSIONS
    sizes_fit = short and all(isinstance(n, int) and 0 <= n < _LARGEST for n in (offset, *size, *stride))
    if not sizes_fit or not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor whose storage, offset, size or stride is of the wrong kind")
    count, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        count *= length
        last += max(length - 1, 0) * step
    if count == 0 and max(size) < 2**31:
        return storage.new_empty(tuple(size))
    if last >= storage.numel() or count > storage.numel():
        raise pickle.UnpicklingError(f"a tensor of size {tuple(size)} in a storage of {storage.numel()} elements")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_tensor_v2(storage: Tensor, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
    return rebuild_tensor(storage, offset, size, stride)


def _rebuild_parameter(data: Tensor, *_: object) -> Tensor:
    return data


def _fraction(*parts: object) -> fractions.Fraction:
    """A ``Fraction`` from the forms in which it is pickled; not from "1e999999999", which would take forever."""
    if len(parts) == 1 and isinstance(parts[0], str) and _FRACTION.fullmatch(parts[0]):
        return fractions.Fraction(parts[0])
    if parts and all(type(part) is int and part.bit_length() <= _MAX_FRACTION_BITS for part in parts):
        return fractions.Fraction(*parts)  # type: ignore[call-overload]
    raise pickle.UnpicklingError("a Fraction of something else than short numbers")


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """``_codecs.encode`` as pickle protocol 2 uses it for bytes; other codecs are modules to import."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("_codecs.encode with another encoding than latin1")
    return text.encode("latin1")


_KNOWN: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "collections.OrderedDict": collections.OrderedDict,
    "fractions.Fraction": _fraction,
    "_codecs.encode": _encode,
}


class _StorageType:
    """What ``torch.FloatStorage`` and its kin stand for in a persistent id."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class Effort:
    """The memory that a pickle's objects take: its length bounds that, so that a short one cannot fill the memory."""

    def __init__(self, pickle_bytes: int) -> None:
        self.left = 20_000_000 + 20 * pickle_bytes
        self.tuple_keys, self.number_keys = _MAX_TUPLE_KEYS, _MAX_NUMBER_KEYS

    def spend(self, size: int) -> None:
        """Count so many bytes that are about to be built."""
        self.left -= size
        if self.left < 0:
            raise pickle.UnpicklingError("it builds far more objects than a file of its length holds")

    def check_keys(self, keys: Iterable[object]) -> None:
        """Hashing (t, t) nested 40 times takes 2**40 steps: keys are plain, or flat tuples of plain values.

        Keys with one hash make a dictionary quadratic: whole numbers are small, tuples few. Texts have hashes that
        differ from process to process.
        """
        for key in keys:
            parts = key if isinstance(key, tuple) else (key,)
            if not all(isinstance(part, (*_PLAIN_KEYS, type)) for part in parts):
                raise pickle.UnpicklingError(f"a dictionary key or set element of type {type(key).__name__}")
            if len(parts) > _MAX_KEY_PARTS or any(isinstance(p, str | bytes) and len(p) > _MAX_TEXT for p in parts):
                raise pickle.UnpicklingError("a dictionary key or set element that is long")
            self.number_keys -= isinstance(key, int | float)
            if self.number_keys < 0:
                raise pickle.UnpicklingError(f"more than {_MAX_NUMBER_KEYS:,} dictionary keys that are numbers")
            if any(isinstance(part, int) and abs(part) >= _MAX_KEY for part in parts):
                raise pickle.UnpicklingError("a whole number of more than 31 bits as a dictionary key")
            self.tuple_keys -= isinstance(key, tuple)
            if self.tuple_keys < 0:
                raise pickle.UnpicklingError(f"more than {_MAX_TUPLE_KEYS:,} dictionary keys that are tuples")


def _length_of(file: Any) -> int:
    """Bytes from here to the end."""
    position = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(position)
    return end - position


class _Bounded:
    """A file that is never asked for more than it can have: some pickles state lengths of 2**63."""

    def __init__(self, file: Any, left: int) -> None:
        self._file, self._left = file, left

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._left))

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def readline(self) -> bytes:
        return self._file.readline()


class RestrictedUnpickler(pickle._Unpickler):
    """The unpickler of the module's docstring.

    Built on the standard library's Python unpickler: the C one allocates its memo as large as a pickle says,
    and lets a pickle set attributes of the classes and functions that it names.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, load_storage: Callable[[tuple], Tensor] | None = None) -> None:
        self._file_bytes = _length_of(file)
        bounded = file if type(file) is io.BytesIO else _Bounded(file, self._file_bytes)  # memory gives what it has
        super().__init__(bounded, encoding="utf-8")
        self.effort = Effort(self._file_bytes)
        self._load_storage = load_storage
        self._inert: dict[str, type[Inert]] = {}

    def load(self) -> Any:
        value = super().load()
        check_written_out(value, 2**20 + 2 * self._file_bytes)
        return value

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > _MAX_TEXT:
            raise pickle.UnpicklingError(f"a name of more than {_MAX_TEXT:,} characters")
        full = f"{module}.{name}"
        if full in _KNOWN:
            return _KNOWN[full]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        if full not in self._inert:
            self.effort.spend(COST_OF_CLASS)
            self._inert[full] = inert_class(full)
        return self._inert[full]

    def persistent_load(self, pid: Any) -> Tensor:
        if self._load_storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is no storage")
        _, storage_type, key, _, count = pid[:5]
        if (
            not isinstance(storage_type, _StorageType)
            or not isinstance(key, str)
            or len(key) > _MAX_TEXT
            or type(count) is not int
            or not 0 <= count < _LARGEST
        ):
            raise pickle.UnpicklingError("a storage whose type, key or size is of the wrong kind")
        return self._load_storage(pid)


def _load_build(self: Any) -> None:
    """Set the state of inert objects only; that of an OrderedDict (a state_dict's ``_metadata``) is dropped."""
    target = self.stack[-2]
    if type(target) is collections.OrderedDict:
        self.stack.pop()
    elif isinstance(target, Inert):
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]
    else:
        raise pickle.UnpicklingError(f"it sets the state of a {type(target).__name__}")


def _load_int(self: Any) -> None:
    """A number as text, or a bool; not one of many digits, which is slow to look at wherever it is named again."""
    line = self.readline()
    if len(line) > 40:
        raise pickle.UnpicklingError("a number of many digits")
    self.append(line[:-1] == b"01" if line[:-1] in (b"00", b"01") else int(line))


def _load_reduce(self: Any) -> None:
    """Call a known function or an inert class. What is passed is counted: one tuple or text may serve many calls."""
    function, arguments = self.stack[-2:]
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError(f"a call with a {type(arguments).__name__} in place of arguments")
    self.effort.spend(400 + 8 * len(arguments))
    if function is collections.OrderedDict and arguments:
        pairs = arguments[0]
        if not isinstance(pairs, list | tuple) or not all(isinstance(pair, list | tuple) for pair in pairs):
            raise pickle.UnpicklingError("an OrderedDict of something else than a list of pairs")
        self.effort.spend(100 * len(pairs))
        self.effort.check_keys(key for key, _ in pairs)
    elif function is _encode and arguments and isinstance(arguments[0], str):
        self.effort.spend(len(arguments[0]))
    pickle._Unpickler.load_reduce(self)  # type: ignore[attr-defined]


def _checking_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """The opcode ``load``, after a look at the keys that are about to be hashed."""

    def checked(self: Any) -> None:
        hashed = self.stack[keys]
        self.effort.spend(60 * len(hashed))
        self.effort.check_keys(hashed)
        load(self)

    return checked


def _load_newobj(self: Any) -> None:
    """Make an object without a call, of an inert class or an OrderedDict; its arguments are counted."""
    klass, arguments = self.stack[-2:]
    known = isinstance(klass, type) and issubclass(klass, Inert | collections.OrderedDict)
    if not known or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a new object of no class, or arguments that are no tuple")
    self.effort.spend(400 + 8 * len(arguments))
    pickle._Unpickler.load_newobj(self)  # type: ignore[attr-defined]


def _filling(load: Callable[[Any], None], place: int | None, kinds: tuple[type, ...]) -> Callable[[Any], None]:
    """The opcode ``load``, after a look at what it fills: at ``place`` on the stack, or for None below the mark.

    A tensor that is filled by a key would be written as a whole, at each of these opcodes.
    """

    def checked(self: Any) -> None:
        target = self.metastack[-1][-1] if place is None else self.stack[place]
        if not isinstance(target, kinds):
            raise pickle.UnpicklingError(f"it fills a {type(target).__name__}")
        load(self)

    return checked


def _load_mark(self: Any) -> None:
    if len(self.metastack) >= _MAX_MARKS:
        raise pickle.UnpicklingError(f"more than {_MAX_MARKS:,} parts that are not closed")
    pickle._Unpickler.load_mark(self)  # type: ignore[attr-defined]


def _counting(load: Callable[[Any], None], cost: int) -> Callable[[Any], None]:
    """The opcode ``load``, which builds an object of about so many bytes."""

    def counted(self: Any) -> None:
        self.effort.spend(cost)
        load(self)

    return counted


def _restrict(dispatch: dict[int, Callable[[Any], None]]) -> None:
    refused = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX)
    for opcode in (*refused, pickle.LONG, pickle.EXT1, pickle.EXT2, pickle.EXT4):  # torch.save writes none of them
        del dispatch[opcode[0]]
    for name, cost in _COSTS.items():
        opcode = getattr(pickle, name)[0]
        dispatch[opcode] = _counting(dispatch[opcode], cost)
    dispatch[pickle.MARK[0]] = _load_mark
    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.REDUCE[0]] = _load_reduce
    dispatch[pickle.NEWOBJ[0]] = _load_newobj
    dispatch[pickle.INT[0]] = _load_int
    hashing = {
        pickle.SETITEM: slice(-2, -1),
        pickle.SETITEMS: slice(0, None, 2),  # the stack holds what came since the mark: key, value, key, …
        pickle.DICT: slice(0, None, 2),
        pickle.ADDITEMS: slice(None),
        pickle.FROZENSET: slice(None),
    }
    for opcode, keys in hashing.items():
        dispatch[opcode[0]] = _checking_keys(dispatch[opcode[0]], keys)
    filling: dict[bytes, tuple[int | None, tuple[type, ...]]] = {
        pickle.APPEND: (-2, (list, Inert)),
        pickle.APPENDS: (None, (list, Inert)),
        pickle.SETITEM: (-3, (dict, Inert)),
        pickle.SETITEMS: (None, (dict, Inert)),
        pickle.ADDITEMS: (None, (set,)),
    }
    for opcode, (place, kinds) in filling.items():
        dispatch[opcode[0]] = _filling(dispatch[opcode[0]], place, kinds)


_restrict(RestrictedUnpickler.dispatch)
