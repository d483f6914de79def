"""Products of ggml's CPU backend, from the libraries in pywhispercpp: ``pip install --no-deps pywhispercpp``.

Which instructions they use was chosen when they were built: those of version 1.5.1 know AVX2, and not AVX-512.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

F32, Q4_0 = 0, 2  # ggml's numbers of these types
BLOCK = 32  # levels of a block of q4_0, which begins with a float16 scale
CONTEXT_BYTES = 1 << 20  # for what describes tensors and a graph
POINTERS = (
    "ggml_init",
    "ggml_new_tensor_2d",
    "ggml_mul_mat",
    "ggml_new_graph",
    "ggml_backend_cpu_init",
    "ggml_backend_cpu_reg",
    "ggml_backend_cpu_buffer_type",
    "ggml_backend_reg_dev_get",
    "ggml_backend_reg_get_proc_address",
    "ggml_backend_alloc_ctx_tensors_from_buft",
)


class Options(ctypes.Structure):
    """Of a context: bytes, memory that it shall use, and whether tensors get their memory elsewhere."""

    _fields_ = (("bytes", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("elsewhere", ctypes.c_bool))


class GgmlProduct:
    """Vectors times a square matrix of q4_0, in the layout that the CPU backend repacks it to; one thread."""

    def __init__(self, size: int, blocks: np.ndarray) -> None:
        """``blocks``: uint8, row by row."""
        self.size = size
        weights = _context()
        self.weight = _tensor(weights, Q4_0, (size, size))
        _allocate(weights, _repacked())
        _put(self.weight, blocks)
        self._graphs: dict[int, Any] = {}

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32 ``[vectors, size]``"""
        library, count = _library(), len(vectors)
        if count not in self._graphs:
            self._graphs[count] = self._graph(count)
        inputs, outputs, graph = self._graphs[count]
        made = np.empty_like(vectors)
        _put(inputs, vectors)
        failed = library.ggml_backend_graph_compute(_backend(), graph)
        if failed:
            raise RuntimeError(f"ggml_backend_graph_compute: {failed}")
        library.ggml_backend_tensor_get(outputs, *_bytes(made))
        return made

    def _graph(self, count: int) -> tuple[Any, Any, Any]:
        library, context = _library(), _context()
        inputs = _tensor(context, F32, (self.size, count))
        outputs = _pointer(library.ggml_mul_mat(context, self.weight, inputs))
        graph = _pointer(library.ggml_new_graph(context))
        library.ggml_build_forward_expand(graph, outputs)
        _allocate(context, _pointer(library.ggml_backend_cpu_buffer_type()))
        return inputs, outputs, graph


@cache
def _library() -> ctypes.CDLL:
    """The CPU backend, and through it what it is linked with."""
    found = util.find_spec("pywhispercpp")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("ggml's products need its libraries: pip install --no-deps pywhispercpp")
    library = ctypes.CDLL(str(Path(found.origin).parents[1] / "libggml-cpu.so"))
    for name in POINTERS:
        getattr(library, name).restype = ctypes.c_void_p
    library.ggml_init.argtypes = [Options]
    return library


@cache
def _backend() -> ctypes.c_void_p:
    backend = _pointer(_library().ggml_backend_cpu_init())
    _library().ggml_backend_cpu_set_n_threads(backend, 1)
    return backend


@cache
def _repacked() -> ctypes.c_void_p:
    """The first of the backend's buffer types that change the order of what is put in."""
    library = _library()
    registry = _pointer(library.ggml_backend_cpu_reg())
    address = library.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    types = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
    found = types(_pointer(library.ggml_backend_reg_dev_get(registry, ctypes.c_size_t(0))))
    if not found or not found[0]:
        raise RuntimeError("ggml: expected a buffer type that repacks weights, got none")
    return ctypes.c_void_p(found[0])


def _context() -> ctypes.c_void_p:
    return _pointer(_library().ggml_init(Options(CONTEXT_BYTES, None, True)))


def _tensor(context: ctypes.c_void_p, kind: int, shape: tuple[int, int]) -> ctypes.c_void_p:
    """``shape``: columns first."""
    return _pointer(_library().ggml_new_tensor_2d(context, kind, *map(ctypes.c_int64, shape)))


def _allocate(context: ctypes.c_void_p, buffer_type: ctypes.c_void_p) -> None:
    _pointer(_library().ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type))


def _pointer(address: int | None) -> ctypes.c_void_p:
    if not address:
        raise RuntimeError("ggml: expected an address, got none")
    return ctypes.c_void_p(address)


def _put(tensor: ctypes.c_void_p, values: np.ndarray) -> None:
    _library().ggml_backend_tensor_set(tensor, *_bytes(values))


def _bytes(array: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]:
    """Where they are, the first, and how many."""
    return ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(array.nbytes)
