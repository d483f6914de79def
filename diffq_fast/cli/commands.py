"""The command line: `diffq-fast inspect | verify | diff | bench | pack | unpack | export | convert | doctor`.

Exit codes: 0 all is well, 1 a damaged file or a failure, 2 wrong usage, 130 interrupted; `diff`, like that of the
system, answers 0 where both files are equal, 1 where they differ, and 2 to every failure. Results go to stdout,
errors and progress to stderr; with --json the result, or {"error": …}, is a JSON object on stdout. Torch is imported
by the commands that compute, so `inspect` answers at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from .._version import __version__
from ..files.atomic_file import check_output
from ..files.safetensors_reader import MAX_ELEMENTS, begins_like_safetensors, escaped, printable
from ..packed.report import inspect
from ..packed.report_page import write_page
from ..reference.sizes import MAX_WIDTH
from . import coded
from .convert import add_arguments as add_convert_arguments
from .convert import convert_file
from .export import add_arguments as add_export_arguments
from .export import export_file
from .looking import add_bench_arguments, add_diff_arguments, compare_files, measure_file


class UsageError(Exception):
    """Arguments that do not go together: exit code 2."""


class ProgressLine:
    """A line on stderr that shows how far a command has come, where it is asked for or stderr is a terminal."""

    def __init__(self, verb: str, wanted: bool) -> None:
        self.verb = verb
        self.shown = wanted or sys.stderr.isatty()
        self.percent = -1

    def __call__(self, name: str, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if self.shown and percent != self.percent:
            self.percent = percent
            print(
                f"\r{self.verb} {percent:3d} %  {printable(name)[:60]:<60}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self.percent >= 0:
            print(file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()  # a full disk shows here
        return code
    except UsageError as error:
        _print_error(arguments, error)
        arguments.parser.error(escaped(str(error)))
        return 2
    except KeyboardInterrupt:
        print(f"diffq-fast {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()  # nobody reads it any more
        return 1
    except Exception as error:
        told = isinstance(error, ValueError | TypeError | OSError | ImportError)
        text = str(error) if told else f"{type(error).__name__}: {error}"
        print(f"diffq-fast {arguments.command}: {escaped(text)}", file=sys.stderr)
        _print_error(arguments, text)
        return arguments.failure


def _print_error(arguments: argparse.Namespace, error: object) -> None:
    try:
        if arguments.json:
            print(json.dumps({"error": str(error)}))
        sys.stdout.flush()
    except OSError:  # standard output is what failed
        _drop_output()


def _drop_output() -> None:
    """What is still to be written to standard output goes nowhere, also at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diffq-fast", description="Look into, check, make and unpack packed model files."
    )
    parser.add_argument("--version", action="version", version=f"diffq-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, parser=added, failure=1)
        added.add_argument("--json", action="store_true", help="print the result as JSON")
        return added

    added = command("inspect", run_inspect, "Show what a packed file holds and what it costs; levels are not read.")
    added.add_argument("file")
    added.add_argument("--plot", metavar="PNG", help="draw the widths to an image (needs matplotlib)")
    added.add_argument("--html", metavar="HTML", help="write a page with tables and pictures, which needs nothing else")
    added = command("verify", run_verify, "Check every checksum and decode every weight.")
    added.add_argument("file")
    _add_progress(added)
    text = "Say which tensors of two files differ, and by how much; 0: none, 1: some, 2: a failure."
    added = command("diff", run_diff, text)
    add_diff_arguments(added)
    _add_progress(added)
    text = "Measure how fast a file is read, decoded, unpacked and multiplied with here, against float32."
    added = command("bench", run_bench, text)
    add_bench_arguments(added)
    _add_progress(added)
    added = command("pack", run_pack, "Pack an ordinary checkpoint: by its logits, or to a size or quality.")
    _add_pack_arguments(added)
    text = "Write a packed file as an ordinary safetensors checkpoint: all names, tied ones as copies."
    added = command("unpack", run_unpack, text)
    added.add_argument("file")
    added.add_argument("output")
    text = "unpack only the entries whose name matches; may be repeated; the others are not even read"
    added.add_argument("--names", action="append", metavar="PATTERN", help=text)
    _add_max_bytes(added)
    _add_progress(added)
    text = "Write a packed file for another runtime, and say which error that introduces."
    added = command("export", run_export, text)
    add_export_arguments(added)
    _add_max_bytes(added)
    _add_progress(added)
    text = "Convert a file of diffq or Demucs to a packed file, without running what it names."
    added = command("convert", run_convert, text)
    add_convert_arguments(added)
    _add_max_bytes(added)
    command("doctor", run_doctor, "Say which backends are active, and why or why not.")
    return parser


def _add_max_bytes(parser: argparse.ArgumentParser) -> None:
    text = "refuse a file whose tensors take more (default: ten times what it holds, and 64 MiB)"
    parser.add_argument("--max-bytes", type=int, metavar="N", help=text)


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--progress", action="store_true", help="show progress even where stderr is no terminal")


def _add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    text = "checkpoint: safetensors, torch.save's .bin or .pt, a *.index.json of shards, or a folder with one of these"
    parser.add_argument("file", help=text)
    parser.add_argument("output", nargs="?", help="packed file to write; not needed with --dry-run")
    _add_progress(parser)
    size = "elements per group; default: inferred from the logits, or one group with --bits"
    parser.add_argument("--group-size", type=int, metavar="G", help=size)
    trained = parser.add_argument_group("a checkpoint with logits (as given to DiffQuantizer)")
    trained.add_argument("--suffix", help="logits of NAME are NAME + suffix (default _diffq)")
    trained.add_argument("--min-bits", type=float, help="(default 2)")
    trained.add_argument("--max-bits", type=float, help="(default 15)")
    trained.add_argument("--param", choices=("bits", "noise"), help="(default bits)")
    trained.add_argument("--extra-bits", type=float, help="(default 0)")
    coded.add_arguments(parser)
    plain = parser.add_argument_group("post-training packing, coded or of fixed width")
    plain.add_argument(
        "--bits", type=int, metavar="B", help="mean bits of a weight, or with fixed coding its width, 1 to 16"
    )
    scope = "fixed coding: one range per tensor (default) or group"
    plain.add_argument("--range-scope", choices=("tensor", "group"), help=scope)
    text = "fixed coding: clip ranges where that lowers the squared error"
    plain.add_argument("--clip", action="store_true", default=None, help=text)
    text = "fixed coding with --range-scope group: keep a group's range in 16 bits, in format version 2"
    plain.add_argument("--short-ranges", action="store_true", default=None, help=text)
    plain.add_argument("--min-size", type=float, metavar="MB", help="keep smaller tensors as they are (default 0.01)")
    help_exclude = "keep tensors whose name, or its last part, matches; may be repeated"
    plain.add_argument("--exclude", action="append", metavar="PATTERN", help=help_exclude)


def run_inspect(arguments: argparse.Namespace) -> int:
    report = inspect(arguments.file)
    if arguments.plot:
        check_output("inspect", arguments.plot, arguments.file)
        report.plot(arguments.plot)
    if arguments.html:
        write_page(arguments.file, arguments.html)
    print(report.to_json() if arguments.json else report.table())
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    from ..packed.contents import read_packed

    with ProgressLine("verifying", arguments.progress) as progress:
        contents = read_packed(arguments.file, progress)
        for packed in contents.packed.values():
            packed.unpack()
    size, weights, plain = os.path.getsize(arguments.file), len(contents.packed), len(contents.plain)
    text = f"{arguments.file}: all {size:,} bytes are sound: {weights} weights, {plain} plain tensors"
    _print(arguments, {"ok": True, "weights": weights, "plain": plain, "bytes": size}, text)
    return 0


def run_diff(arguments: argparse.Namespace) -> int:
    with ProgressLine("comparing", arguments.progress) as progress:
        equal, result, text = compare_files(arguments, progress)
    _print(arguments, result, text)
    return 0 if equal else 1


def run_bench(arguments: argparse.Namespace) -> int:
    if arguments.repetitions < 1:
        raise UsageError(f"--repetitions must be 1 or more, got {arguments.repetitions}")
    with ProgressLine("measuring", arguments.progress) as progress:
        result, text = measure_file(arguments, progress)
    _print(arguments, result, text)
    return 0


def run_pack(arguments: argparse.Namespace) -> int:
    trained = _given(arguments, "suffix", "min_bits", "max_bits", "param", "extra_bits")
    plain = _given(arguments, "range_scope", "min_size", "exclude", "clip", "short_ranges")
    size = _given(arguments, "group_size")
    of_coded = _given(arguments, *coded.NAMES)
    if size.get("group_size", 0) < 0:
        raise UsageError(f"--group-size must be 0 (one group) or positive, got {size['group_size']}")
    if size.get("group_size", 0) >= MAX_ELEMENTS:
        raise UsageError(f"--group-size must be below 2**60, got {size['group_size']}; 0 is one group")
    if arguments.output is None and not arguments.dry_run:
        raise UsageError("expected the packed file to write, or --dry-run")
    fixed = arguments.coding == "fixed" or (
        arguments.bits is not None and bool(_given(arguments, "range_scope", "clip", "short_ranges") | size)
    )
    if fixed and of_coded:
        raise UsageError(f"{_options(of_coded)} go with coded levels, not with fixed widths")
    if fixed and arguments.bits is None:
        raise UsageError("--coding fixed needs the width: --bits")
    if fixed:
        _pack_at_bits(arguments, trained, plain | size)
    elif not of_coded and arguments.bits is None and (trained or size or _has_logits(arguments.file)):
        _pack_with_logits(arguments, trained, plain, size)
    else:
        return _pack_coded(arguments, trained, size)
    report = inspect(arguments.output)
    text = f"{arguments.output}: {report.file_bytes:,} bytes, {report.bits_per_weight:.2f} bits per weight"
    _print(arguments, report.to_dict(), f"{text}, {len(report.weights)} weights packed")
    return 0


def _has_logits(path: str) -> bool:
    """Whether this is a safetensors file with a trained quantizer's logits; other checkpoints have none to go by."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        if not begins_like_safetensors(file.read(9)):
            return False
    from ..packed.checkpoint import has_logits

    return has_logits(path, "_diffq")


def _pack_coded(arguments: argparse.Namespace, trained: Mapping[str, Any], size: Mapping[str, Any]) -> int:
    if trained:
        raise UsageError(f"{_options(trained)} describe logits and do not go with coded levels")
    if size:
        raise UsageError("--group-size goes with logits or fixed widths; steps of coded levels are by row")
    ranges = _given(arguments, "range_scope", "clip", "short_ranges")
    if ranges:
        raise UsageError(f"{_options(ranges)} go with --coding fixed or --bits: coded levels have no ranges")
    if math.isnan(arguments.min_size or 0):
        raise UsageError("--min-size must be a number of MB, got nan")
    of_coded = _given(arguments, *coded.NAMES)
    targets = _given(arguments, "bits", "bits_per_weight", "target_mb", "quality")
    if len(targets) > 1:
        raise UsageError(f"expected one of {_options(targets)}")
    if arguments.bits is not None and not 1 <= arguments.bits <= MAX_WIDTH:
        raise UsageError(f"--bits must be between 1 and {MAX_WIDTH}, got {arguments.bits}")
    if arguments.plot and not arguments.dry_run:
        raise UsageError("--plot draws the curve of --dry-run")
    if _has_logits(arguments.file):
        chosen = _options(targets | of_coded) or "--coding"
        raise UsageError(f"{arguments.file} holds logits, which say the widths; leave {chosen} out")
    verb = "measuring" if arguments.dry_run else "packing"
    with ProgressLine(verb, arguments.progress) as progress:
        if arguments.dry_run:
            result, text, notes = coded.dry_run(arguments, progress)
        else:
            quality, text, notes = coded.pack_coded(arguments, progress)
            result = inspect(arguments.output).to_dict() | {"quality": quality}
    for note in notes:
        print(f"diffq-fast pack: {note}", file=sys.stderr)
    _print(arguments, result, text)
    return 0


def _pack_at_bits(arguments: argparse.Namespace, trained: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    if trained:
        raise UsageError(f"{_options(trained)} describe logits and do not go with --bits")
    if math.isnan(plain.get("min_size", 0)):
        raise UsageError("--min-size must be a number of MB, got nan")
    if not 1 <= arguments.bits <= MAX_WIDTH:
        raise UsageError(f"--bits must be between 1 and {MAX_WIDTH}, got {arguments.bits}")
    if plain.get("range_scope") == "group" and not plain.get("group_size"):
        raise UsageError("--range-scope group needs a --group-size above 0")
    if plain.get("short_ranges") and plain.get("range_scope") != "group":
        raise UsageError("--short-ranges needs --range-scope group")
    from ..packed.checkpoint import OneWidth, has_logits, pack_at_bits
    from ..packed.ranges import GROUPS_PER_UNIT, RangeOptions

    if has_logits(arguments.file, "_diffq"):
        raise UsageError(f"{arguments.file} holds logits, which say the widths; leave --bits out")
    with ProgressLine("packing", arguments.progress) as progress:
        clip, short = bool(plain.get("clip")), bool(plain.get("short_ranges"))
        others = {name: value for name, value in plain.items() if name not in ("clip", "short_ranges")}
        ranges = RangeOptions(clip, GROUPS_PER_UNIT if short else 0)
        options = OneWidth(arguments.bits, **others, ranges=ranges)
        packed, double = pack_at_bits(arguments.file, arguments.output, options, progress)
    if double:
        names = ", ".join(map(printable, double[:3])) + (", …" if len(double) > 3 else "")
        note = f"{len(double)} float64 tensors are kept as they are, unpacked ({names}); convert them to float32 first"
        print(f"diffq-fast pack: {note}", file=sys.stderr)
    elif not packed:
        note = "no tensor was packed: none is floating, above --min-size and not excluded"
        print(f"diffq-fast pack: {note}", file=sys.stderr)


def _pack_with_logits(
    arguments: argparse.Namespace,
    trained: Mapping[str, Any],
    plain: Mapping[str, Any],
    size: Mapping[str, Any],
) -> None:
    if plain:
        raise UsageError(f"{_options(plain)} only go with --bits")
    from ..packed.checkpoint import has_logits, pack_with_logits
    from ..reference.logit_rule import MOST_BITS, LogitRule

    rule = LogitRule(**trained)
    if not 0 < rule.min_bits < rule.max_bits <= 15:
        raise UsageError(f"expected 0 < --min-bits < --max-bits <= 15, got {rule.min_bits:g} and {rule.max_bits:g}")
    if not abs(rule.extra_bits) <= MOST_BITS:
        raise UsageError(f"--extra-bits must be between -{MOST_BITS} and {MOST_BITS}, got {rule.extra_bits:g}")
    if not rule.suffix:
        raise UsageError("--suffix must not be empty")
    if not has_logits(arguments.file, rule.suffix):
        raise UsageError(f"{arguments.file} has no logits NAME{rule.suffix}; give --suffix, or --bits-per-weight")
    with ProgressLine("packing", arguments.progress) as progress:
        pack_with_logits(arguments.file, arguments.output, rule, **size, progress=progress)


def run_unpack(arguments: argparse.Namespace) -> int:
    from ..packed.checkpoint import unpack_file

    with ProgressLine("unpacking", arguments.progress) as progress:
        limits = {"max_bytes": arguments.max_bytes, "names": arguments.names}
        unpack_file(arguments.file, arguments.output, progress, **limits)
    size = os.path.getsize(arguments.output)
    _print(arguments, {"output": arguments.output, "bytes": size}, f"{arguments.output}: {size:,} bytes")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    if (arguments.to == "onnx") != (arguments.graph is not None):
        raise UsageError("--graph goes with --to onnx" if arguments.graph else "--to onnx needs --graph MODEL.onnx")
    with ProgressLine("exporting", arguments.progress) as progress:
        result, text = export_file(arguments, progress)
    _print(arguments, result, text)
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    result, text = convert_file(arguments)
    lines = [line if line.isprintable() else ascii(line) for line in text.splitlines()]
    _print(arguments, result, "\n".join(lines))
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a warning would say is part of the answer
        from ..backends import backend_info

        info = backend_info()
    _print(arguments, info, "\n".join(_describe(info)))
    return 0


def _describe(info: Mapping[str, Any], indent: str = "") -> list[str]:
    """A line for each entry; that of a backend says whether it is active, and why or why not."""
    lines = []
    for name, value in info.items():
        if not isinstance(value, Mapping):
            lines.append(f"{indent}{name:<12}{value}")
        elif "active" in value:
            state = "active" if value["active"] else "not active"
            details = [f"{key}: {each}" for key, each in value.items() if key not in ("active", "reason")]
            reason = [str(value["reason"])] if value.get("reason") else []
            lines.append(f"{indent}{name:<12}{'; '.join([state, *reason, *details])}")
        else:
            lines += [f"{indent}{name}", *_describe(value, indent + "  ")]
    return lines


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were on the command line."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _options(names: Mapping[str, Any]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _print(arguments: argparse.Namespace, result: Any, text: str) -> None:
    print(json.dumps(result, indent=2) if arguments.json else text)
