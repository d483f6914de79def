"""The command line, called in this process."""

from __future__ import annotations

from diffq_fast.cli import main


def run(capsys, *arguments):
    """Exit code, stdout and stderr."""
    try:
        code = main([str(each) for each in arguments])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()
