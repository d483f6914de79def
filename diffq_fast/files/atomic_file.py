"""Write a file all at once: a reader of the path sees the old file or the whole new one, never a part."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success it is synced to disk and takes the path's place.

    An exception inside the block removes the temporary file and leaves the path as it was; so does a crash,
    apart from a file `.NAME.*.tmp` beside it. A link is followed; the mode of a replaced file is kept.

    Raises:
        ValueError: `path` exists and is not a regular file.
    """
    target = Path(os.path.realpath(path))
    old = target.stat() if target.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise ValueError(f"save: {os.fspath(path)} is not a regular file; give the path of a new or ordinary file")
    temporary = target.with_name(f".{_cut(target.name)}.{secrets.token_hex(6)}.tmp")
    try:
        with _created(temporary, path) as file:
            if old is not None:
                temporary.chmod(stat.S_IMODE(old.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def check_output(who: str, output: str | os.PathLike[str], *sources: str | os.PathLike[str]) -> None:
    """Refuse an output that is a folder, or one of the files that it is made of, before any work is done.

    Raises:
        ValueError: naming `who` and the output.
    """
    if os.path.isdir(output):
        raise ValueError(f"{who}: the output {os.fspath(output)} is a folder; give the path of a file")
    for source in sources:
        if os.path.exists(output) and os.path.exists(source) and os.path.samefile(output, source):
            raise ValueError(f"{who}: the output {os.fspath(output)} is the input itself; give another path")


def _cut(name: str) -> str:
    """The beginning of a name, in whole characters, short enough for what is added to it: systems allow 255 bytes."""
    return os.fsencode(name)[:200].decode("utf-8", "ignore")


def _created(temporary: Path, path: str | os.PathLike[str]) -> BinaryIO:
    """Open the temporary file; an error names the path that the caller gave."""
    try:
        return open(temporary, "xb+")
    except OSError as error:
        raise OSError(error.errno, f"cannot write here: {error.strerror}", os.fspath(path)) from None


def _sync_folder(folder: Path) -> None:
    """Make sure that the new name survives a power cut too; systems that cannot open a folder do not need this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
