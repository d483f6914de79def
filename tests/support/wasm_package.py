"""The JavaScript package that csrc/wasm/build.sh makes, and Node to run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .paths import ROOT

VARIABLE = "DIFFQ_FAST_WASM"
BUILT = ROOT / "build" / "wasm"  # where csrc/wasm/build.sh leaves it


def package_path() -> Path | None:
    """The package that is to be tested: the one that the environment names, which must be there, or a built one."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named)
    return BUILT if (BUILT / "diffq_fast.wasm").exists() else None


def why_not() -> str | None:
    """What the tests lack, or None."""
    if shutil.which("node") is None:
        return "needs Node: apt-get install nodejs"
    if package_path() is None:
        return f"the package is not built: `bash csrc/wasm/build.sh` builds it, or {VARIABLE} says where it is"
    return None


def run_node(script: Path, *arguments: str, text: str = "", options: tuple[str, ...] = ()) -> str:
    """What a script prints; it must succeed."""
    environment = os.environ | {VARIABLE: str(package_path())}
    command = ["node", *options, str(script), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def read_files(paths: Iterable[Path], most_elements: int) -> list[dict[str, Any]]:
    """What JavaScript makes of each file."""
    script, text = ROOT / "csrc" / "wasm" / "tests" / "read_files.js", "".join(f"{path}\n" for path in paths)
    printed = run_node(script, str(package_path()), str(most_elements), text=text)
    return [json.loads(line) for line in printed.splitlines()]
