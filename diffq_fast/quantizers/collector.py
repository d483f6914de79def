"""Python's garbage collector, out of the way while a quantizer is attached.

With thousands of weights, an attachment makes many objects that all stay: the collector would look through all of them
again and again, and find nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Context without garbage collection, which goes on behind it if it did before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
