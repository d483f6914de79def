"""Unpickle what ``torch.save`` wrote, without running what the pickle asks to run.

A pickle is a program: it names functions and calls them. This reader knows seven names (the rebuilders of
tensors and parameters, ``OrderedDict``, ``Fraction``, ``_codecs.encode``) and the storage types; every other
name becomes an *inert* class of that name, which accepts any arguments, does nothing and is never imported.
Tensors must lie inside their storages, and dictionary keys must be plain values, so that no pickle makes the
reader work without end.
"""

from __future__ import annotations

import collections
import fractions
import pickle
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

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
    sizes_fit = len(size) == len(stride) and all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
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
    if parts and all(type(part) is int for part in parts):
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


def _check_keys(keys: Iterable[object]) -> None:
    """Hashing (t, t) nested 40 times takes 2**40 steps: keys are plain, or flat tuples of plain values."""
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, (*_PLAIN_KEYS, type)) for part in parts):
            raise pickle.UnpicklingError(f"a dictionary key or set element of type {type(key).__name__}")


class RestrictedUnpickler(pickle._Unpickler):
    """The unpickler of the module's docstring.

    Built on the standard library's Python unpickler: the C one allocates its memo as large as a pickle says,
    and lets a pickle set attributes of the classes and functions that it names.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, load_storage: Callable[[tuple], Tensor] | None = None) -> None:
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage
        self._inert: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _KNOWN:
            return _KNOWN[full]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        return self._inert.setdefault(full, inert_class(full))

    def persistent_load(self, pid: Any) -> Tensor:
        if self._load_storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is no storage")
        _, storage_type, key, _, count = pid[:5]
        if (
            not isinstance(storage_type, _StorageType)
            or not isinstance(key, str)
            or type(count) is not int
            or count < 0
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


def _load_reduce(self: Any) -> None:
    function, arguments = self.stack[-2:]
    if function is collections.OrderedDict and arguments:
        _check_keys(key for key, _ in arguments[0])
    pickle._Unpickler.load_reduce(self)  # type: ignore[attr-defined]


def _checking_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """The opcode ``load``, after a look at the keys that are about to be hashed."""

    def checked(self: Any) -> None:
        _check_keys(self.stack[keys])
        load(self)

    return checked


def _restrict(dispatch: dict[int, Callable[[Any], None]]) -> None:
    refused = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.INST, pickle.OBJ)
    for opcode in (*refused, pickle.EXT1, pickle.EXT2, pickle.EXT4):  # torch.save writes none of them
        del dispatch[opcode[0]]
    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.REDUCE[0]] = _load_reduce
    hashing = {
        pickle.SETITEM: slice(-2, -1),
        pickle.SETITEMS: slice(0, None, 2),  # the stack holds what came since the mark: key, value, key, …
        pickle.DICT: slice(0, None, 2),
        pickle.ADDITEMS: slice(None),
        pickle.FROZENSET: slice(None),
    }
    for opcode, keys in hashing.items():
        dispatch[opcode[0]] = _checking_keys(dispatch[opcode[0]], keys)


_restrict(RestrictedUnpickler.dispatch)
