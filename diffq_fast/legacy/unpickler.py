"""Unpickle what ``torch.save`` wrote, without running what the pickle asks to run.

A pickle is a program: it names functions and calls them. This reader knows seven names (the rebuilders of
tensors and parameters, ``OrderedDict``, ``Fraction``, ``_codecs.encode``) and the storage types; every other
name becomes an *inert* class of that name, which accepts any arguments, does nothing and is never imported.
Tensors must lie inside their storages, only lists, dicts and sets can be filled, and whatever takes longer than a step
is counted (:mod:`.budget`), so that no pickle makes the reader work without end.
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

from ..files.safetensors_reader import MAX_DIMENSIONS
from .budget import MAX_NAME, Budget

TENSOR_STEPS = 10  # what making a tensor takes, in time and memory
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
_LARGEST = 2**63  # of the whole numbers in a Fraction, a tensor's size or its stride


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


def make_fraction(*parts: object) -> fractions.Fraction:
    """A ``Fraction`` from the forms in which it is pickled; not from "1e999999999", which would take forever."""
    if len(parts) == 1 and isinstance(parts[0], str) and _FRACTION.fullmatch(parts[0]):
        return fractions.Fraction(parts[0])
    if 1 <= len(parts) <= 2 and all(type(part) is int and abs(part) < _LARGEST for part in parts):
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
    "fractions.Fraction": make_fraction,
    "_codecs.encode": _encode,
}


class _StorageType:
    """What ``torch.FloatStorage`` and its kin stand for in a persistent id."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Counted(dict):
    """The opcodes; each one that is looked up is a step."""

    def __init__(self, dispatch: dict[int, Callable[[Any], None]], budget: Budget) -> None:
        super().__init__(dispatch)
        self._budget = budget

    def __getitem__(self, opcode: int) -> Callable[[Any], None]:
        self._budget.spend(1)
        return super().__getitem__(opcode)


class RestrictedUnpickler(pickle._Unpickler):
    """The unpickler of the module's docstring.

    Built on the standard library's Python unpickler: the C one allocates its memo as large as a pickle says,
    and lets a pickle set attributes of the classes and functions that it names.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, budget: Budget, load_storage: Callable[[tuple], Tensor] | None = None) -> None:
        super().__init__(file, encoding="utf-8")
        self.budget = budget
        self.dispatch = _Counted(type(self).dispatch, budget)  # type: ignore[misc]
        self._load_storage = load_storage
        self._inert: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > MAX_NAME:
            raise pickle.UnpicklingError(f"a name of more than {MAX_NAME} characters")
        full = f"{module}.{name}"
        if full in _KNOWN:
            return _KNOWN[full]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        if full not in self._inert:
            self.budget.new_name(full)
            self._inert[full] = inert_class(full)
        return self._inert[full]

    def persistent_load(self, pid: Any) -> Tensor:
        if self._load_storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is no storage")
        _, storage_type, key, _, count = pid[:5]
        if (
            not isinstance(storage_type, _StorageType)
            or not isinstance(key, str)
            or len(key) > MAX_NAME
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
    """A number as text, or a bool; not one of many digits."""
    line = self.readline()
    if len(line) > 40:
        raise pickle.UnpicklingError("a number of many digits")
    self.append(line[:-1] == b"01" if line[:-1] in (b"00", b"01") else int(line))


def _load_reduce(self: Any) -> None:
    """Call a known function or an inert class; its arguments are counted, since one tuple may serve many calls."""
    function, arguments = self.stack[-2:]
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError(f"a call with a {type(arguments).__name__} of arguments")
    self.budget.spend(len(arguments))
    if function is collections.OrderedDict and arguments:
        pairs = arguments[0]
        whole = isinstance(pairs, list | tuple) and all(isinstance(pair, list | tuple) for pair in pairs)
        if not whole or len(arguments) > 1:
            raise pickle.UnpicklingError("an OrderedDict of something else than a list of pairs")
        self.budget.spend(len(pairs))
        self.budget.hash_keys(key for key, _ in pairs)
    elif function is _encode and arguments and isinstance(arguments[0], str):
        self.budget.encode(arguments[0])
    elif function in (rebuild_tensor, _rebuild_tensor_v2):
        self.budget.spend(TENSOR_STEPS)
    pickle._Unpickler.load_reduce(self)  # type: ignore[attr-defined]


def _load_newobj(self: Any) -> None:
    """Make an inert object or an empty OrderedDict, the only ones that are made without a call."""
    klass, arguments = self.stack[-2:]
    inert = isinstance(klass, type) and issubclass(klass, Inert | collections.OrderedDict)
    if not inert or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a new object of no class, or arguments that are no tuple")
    self.budget.spend(len(arguments))
    pickle._Unpickler.load_newobj(self)  # type: ignore[attr-defined]


def _checking_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """The opcode ``load``, after a look at the keys that are about to be hashed."""

    def checked(self: Any) -> None:
        self.budget.hash_keys(self.stack[keys])
        load(self)

    return checked


def _filling(load: Callable[[Any], None], place: int | None, kinds: tuple[type, ...]) -> Callable[[Any], None]:
    """The opcode ``load``, after a look at what it fills: at ``place`` on the stack, or below the mark for None.

    A tensor that is filled by one key would be written as a whole, at each of the opcodes.
    """

    def checked(self: Any) -> None:
        target = self.metastack[-1][-1] if place is None else self.stack[place]
        if not isinstance(target, kinds):
            raise pickle.UnpicklingError(f"it fills a {type(target).__name__}")
        load(self)

    return checked


def _restrict(dispatch: dict[int, Callable[[Any], None]]) -> None:
    refused = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX)
    numbers = (pickle.LONG, pickle.LONG4)  # of any length
    for opcode in (*refused, *numbers, pickle.EXT1, pickle.EXT2, pickle.EXT4):  # torch.save writes none of them
        del dispatch[opcode[0]]
    dispatch[pickle.INT[0]] = _load_int
    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.REDUCE[0]] = _load_reduce
    dispatch[pickle.NEWOBJ[0]] = _load_newobj
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
