"""A real browser, where the machine has one: Debian's `chromium`, Chrome, or what `DIFFQ_FAST_BROWSER` names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser() -> str | None:
    """The path of a Chromium, or None."""
    return os.environ.get("DIFFQ_FAST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


def dumped_page(page: Path, folder: Path, *options: str) -> str:
    """What the browser makes of a page once its scripts have run, as HTML. `folder`: for the browser's own files."""
    program = browser()
    assert program is not None
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", *options]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout
