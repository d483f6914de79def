"""The command line `diffq-fast`.

Each command reads its arguments, calls one function of the rooms below, and prints text or JSON.
"""

from .commands import main

__all__ = ["main"]
