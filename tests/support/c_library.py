"""The C library through ctypes, as csrc/include/diffq_fast.h declares it; its memory is counted."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from .paths import ROOT

OK, BAD_ARGUMENT, CANNOT_OPEN, BAD_FILE, OUT_OF_MEMORY, NOT_FOUND, UNSUPPORTED = range(7)
VARIABLE = "DIFFQ_FAST_C_LIBRARY"
BUILT = ROOT / "build" / "tests" / "libdiffq_fast.so"  # where `make test` leaves it

_Allocate = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_size_t)
_Release = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)


class _Error(ctypes.Structure):
    _fields_ = (("status", c_int), ("message", c_char * 1024))


class _Allocator(ctypes.Structure):
    _fields_ = (("allocate", _Allocate), ("release", _Release), ("context", c_void_p))


class _Options(ctypes.Structure):
    _fields_ = (("allocator", POINTER(_Allocator)), ("lazy", c_int))


class Tensor(ctypes.Structure):
    """What diffq_fast_describe says of an entry."""

    _fields_ = (
        ("name", c_void_p),
        ("name_bytes", c_size_t),
        ("tied_to", c_char_p),
        ("dtype", c_char_p),
        ("stored_dtype", c_char_p),
        ("shape", POINTER(c_int64)),
        ("rank", c_size_t),
        ("count", c_int64),
        ("stored_bytes", c_int64),
        ("group_size", c_int64),
        ("packed", c_int),
        ("coded", c_int),
        ("least_bits", c_int),
        ("most_bits", c_int),
    )

    def sizes(self) -> tuple[int, ...]:
        return tuple(self.shape[: self.rank]) if self.rank else ()


class CError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def library_path() -> Path | None:
    """The library that is to be tested: the one that the environment names, which must be there, or a built one."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named)
    return BUILT if BUILT.exists() else None


class CountedMemory:
    """Bytes in use, and the most there ever were."""

    def __init__(self) -> None:
        self.used = self.most = 0
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = c_void_p, [c_size_t], [c_void_p]

        def allocate(_: int, size: int) -> int:
            self.used += size
            self.most = max(self.most, self.used)
            return libc.malloc(size)

        def release(_: int, block: int, size: int) -> None:
            self.used -= size
            libc.free(block)

        self.allocator = _Allocator(_Allocate(allocate), _Release(release), None)


class CFile:
    """An open file."""

    def __init__(self, library: ctypes.CDLL, handle: c_void_p, source: Path | bytes) -> None:
        self._library, self._handle, self._kept = library, handle, source  # bytes are read where they lie

    def close(self) -> None:
        self._library.diffq_fast_close(self._handle)

    def __len__(self) -> int:
        return self._library.diffq_fast_count(self._handle)

    def _call(self, name: str, *arguments: Any) -> None:
        error = _Error()
        status = getattr(self._library, name)(self._handle, *arguments, byref(error))
        assert status == error.status
        if status != OK:
            raise CError(status, error.message.decode())

    def describe(self, index: int) -> Tensor:
        tensor = Tensor()
        self._call("diffq_fast_describe", c_size_t(index), byref(tensor))
        return tensor

    def names(self) -> list[str]:
        tensors = [self.describe(index) for index in range(len(self))]
        return [ctypes.string_at(tensor.name, tensor.name_bytes).decode() for tensor in tensors]

    def find(self, name: str) -> int:
        index = c_size_t()
        self._call("diffq_fast_find", name.encode(), byref(index))
        return index.value

    def read(self, index: int) -> np.ndarray:
        """float32, of the tensor's shape."""
        tensor = self.describe(index)
        values = np.full(tensor.count, np.nan, dtype=np.float32)
        self._call("diffq_fast_read_float32", c_size_t(index), _floats(values), c_size_t(values.size))
        return values.reshape(tensor.sizes())

    def data(self, index: int) -> bytes:
        data, size = c_void_p(), c_size_t()
        self._call("diffq_fast_plain_data", c_size_t(index), byref(data), byref(size))
        return ctypes.string_at(data, size.value) if size.value else b""

    def product(self, index: int, vectors: np.ndarray) -> np.ndarray:
        """float32 `[vectors, rows]`, and the rows looked up must be those that are read."""
        matrix = c_void_p()
        self._call("diffq_fast_matrix_open", c_size_t(index), byref(matrix))
        try:
            rows = self._library.diffq_fast_matrix_rows(matrix)
            results = np.full((len(vectors), rows), np.nan, dtype=np.float32)
            status = self._library.diffq_fast_matrix_multiply(
                matrix, _floats(vectors), c_size_t(len(vectors)), _floats(results), None
            )
            assert status == OK
            return results
        finally:
            self._library.diffq_fast_matrix_close(matrix)


class CLibrary:
    """The functions of the library at a path."""

    def __init__(self, path: Path) -> None:
        self._library = library = ctypes.CDLL(str(path))
        library.diffq_fast_version.restype = c_char_p
        for name in ("count", "matrix_rows", "matrix_columns", "matrix_bytes"):
            function = getattr(library, f"diffq_fast_{name}")
            function.restype, function.argtypes = c_size_t, [c_void_p]
        for name in ("close", "matrix_close"):
            getattr(library, f"diffq_fast_{name}").argtypes = [c_void_p]

    @property
    def version(self) -> str:
        return self._library.diffq_fast_version().decode()

    def open_file(self, source: Path | bytes, memory: CountedMemory | None = None, lazy: bool = False) -> CFile:
        """An open file, from its path or its bytes; CError where it is refused."""
        options, handle, error = _Options(None, lazy), c_void_p(), _Error()
        if memory is not None:
            options.allocator = ctypes.pointer(memory.allocator)
        if isinstance(source, bytes):
            given = (source, c_size_t(len(source)))
            status = self._library.diffq_fast_open_memory(*given, byref(options), byref(handle), byref(error))
        else:
            path = os.fsencode(source)
            status = self._library.diffq_fast_open_path(path, byref(options), byref(handle), byref(error))
        if status != OK:
            raise CError(status, error.message.decode())
        return CFile(self._library, handle, source)

    @contextmanager
    def open(self, source: Path | bytes, lazy: bool = False) -> Iterator[CFile]:
        """The same, closed behind the block."""
        file = self.open_file(source, lazy=lazy)
        try:
            yield file
        finally:
            file.close()


def _floats(values: np.ndarray) -> Any:
    return values.ctypes.data_as(POINTER(c_float))
