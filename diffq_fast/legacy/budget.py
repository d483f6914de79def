"""What reading one stored object may cost, stated beforehand: no pickle makes its reader work without end.

A pickle names an object again in two bytes, so that its cost need not show in its length: a text encoded a thousand
times, a tuple passed to a thousand calls, keys that all fall into one place of a dict. Whatever takes longer than one
step is therefore paid for, and the whole is in proportion to the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable

FREE_STEPS = 100_000  # about 0.05 s
BYTES_PER_STEP = 8  # torch.save writes 7 to 9 bytes a step for the smallest tensors, and far more for others
MAX_KEY = 4096  # characters of a text as a key: equal ones are compared
MAX_PARTS = 16  # of a tuple as a key: its hash is made anew each time
MAX_NAMES = 1000  # of unknown classes: each is a new Python class of about 1.5 kB
MAX_NAME = 500  # characters
KEY_COSTS = 10_000  # of the keys that are no text, in a file: their hashes can be made to collide
KEY_BELOW = 2**60  # whole numbers from here on have the hashes of smaller ones


class Budget:
    """Counts down what is left for one file of `file_bytes` bytes; UnpicklingError when it is too little."""

    def __init__(self, file_bytes: int) -> None:
        self.steps = FREE_STEPS + file_bytes // BYTES_PER_STEP
        self.characters = file_bytes
        self.names = MAX_NAMES
        self.key_costs = KEY_COSTS

    def spend(self, steps: int) -> None:
        """Steps of the reader, each of about half a microsecond."""
        self.steps -= steps
        if self.steps < 0:
            raise pickle.UnpicklingError("more work than a file of its length is worth")

    def encode(self, text: str) -> None:
        """The characters of a text that becomes bytes; all such texts stand in the file."""
        self.characters -= len(text)
        if self.characters < 0:
            raise pickle.UnpicklingError("texts that become bytes again and again")

    def new_name(self, name: str) -> None:
        """The name of a class that is not known."""
        self.names -= 1
        if self.names < 0 or len(name) > MAX_NAME:
            raise pickle.UnpicklingError(f"more than {MAX_NAMES} classes, or a name of more than {MAX_NAME} characters")

    def hash_keys(self, keys: Iterable[object]) -> None:
        """Keys of dicts and elements of sets: plain, or flat tuples of plain values.

        Hashing (t, t) nested 40 times takes 2**40 steps. Texts and bytes have hashes that nobody can foresee; those of
        numbers are known, so that there may only be as many as are harmless when all of them collide.
        """
        for key in keys:
            if isinstance(key, str | bytes) and len(key) <= MAX_KEY:
                continue
            plain = isinstance(key, int | type(None) | type) and not (isinstance(key, int) and abs(key) >= KEY_BELOW)
            self.key_costs -= 1 if plain else 10
            if not plain and not _hashes_quickly(key):
                raise pickle.UnpicklingError(f"a dictionary key or set element of type {type(key).__name__}")
            if self.key_costs < 0:
                raise pickle.UnpicklingError("too many dictionary keys or set elements that are no text")


def _hashes_quickly(key: object) -> bool:
    """Whether this is a float, or a short flat tuple of short plain values."""
    parts = key if isinstance(key, tuple) else (key,)
    return len(parts) <= MAX_PARTS and all(
        isinstance(part, float | type(None) | type)
        or (isinstance(part, str | bytes) and len(part) <= MAX_KEY)
        or (isinstance(part, int) and abs(part) < KEY_BELOW)
        for part in parts
    )
