"""Calls the public functions with random arguments, right and wrong ones: each answers or raises a clear error.

    python tests/random_calls.py [calls] [seed]

A crash, or an error of another kind, ends it with the call that made it. For the sanitizer build, see CONTRIBUTING.md.
The operators below the functions, which check only what keeps them inside their memory, are called too.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import diffq_fast
import diffq_fast.functional as functional
from diffq_fast import bitpack, torch_pack
from diffq_fast.packed import save_load as packed_file
from diffq_fast.packed.contents import PackedContents
from diffq_fast.packed.tensor import pack_levels, pack_weight
from diffq_fast.reference.packed_rows import pack_rows
from support.random_arguments import Arguments

EXPECTED = (TypeError, ValueError)
OPERATOR_ERRORS = (*EXPECTED, RuntimeError, LookupError)  # a schema's; a missing choice, or a place that is none

ops = torch.ops.diffq_fast


def size(a: Arguments) -> dict[str, Any]:
    return {"group_size": a.group_size}


def both(a: Arguments) -> dict[str, Any]:
    return {"group_size": a.group_size, "range_scope": a.scope}


def step(a: Arguments) -> None:
    """One training step of one to three weights."""
    number = a.often(1, 0, 2, 3)
    weights, logits = [a.weight() for _ in range(number)], [a.logits() for _ in range(a.often(number, 1))]
    for tensor in [*weights, *logits]:
        if tensor.is_floating_point() and a.random.random() < 0.7:
            tensor.requires_grad_()
    streams = a.often(None, [0] * number, [2**32 - 1] * number, [-1] * number, [2**32] * number, [1])
    counts = a.often(None, torch.zeros(number, requires_grad=True), torch.zeros(number + 1), torch.zeros(number).int())
    dtype = a.often(None, torch.bfloat16, torch.float16, torch.float64, torch.int32)
    options = functional.NoiseOptions(**a.bounds(), **both(a), noise_kind=a.kind())
    others = {"streams": streams, "nonfinite": counts, "dtype": dtype}
    noisy = functional.add_noise(weights, logits, a.key(), options, **others).noisy
    used = [each for each in noisy if each.requires_grad][a.random.choice((0, 0, 1)) :]
    if used and not any(each.is_meta for each in used):
        torch.autograd.backward(used, [gradient(a, each) for each in used])


def gradient(a: Arguments, noisy: Tensor) -> Tensor:
    made = a.form(torch.randn(noisy.numel()))
    return (torch.ones(noisy.numel()) if made.is_meta else made).reshape(noisy.shape).to(noisy)


def planes(a: Arguments) -> Tensor:
    made = torch.randint(-100, 100, (a.often(2, 0), a.often(3, 0, 16, 17), a.often(32, 1, 70, 0)))
    made = made.to(a.often(torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32))
    return a.often(a.form(made.flatten()).reshape(made.shape), made, made[0] if len(made) else made)


def length(a: Arguments) -> int:
    return a.often(a.count, -1, 10**7, 2**63)


def packer(module: Any) -> Callable[[Arguments], None]:
    def packed_and_back(a: Arguments) -> None:
        options = {"block_size": a.often(32, 1, 0, -3)} if module is bitpack else {}
        made = module.pack(a.levels(), a.often(0, 4, 20), **options)
        flat = a.form(made.flatten()).flatten()
        made = flat.reshape(made.shape) if a.random.random() < 0.8 and flat.numel() == made.numel() else flat
        module.unpack(made.to(a.often(made.dtype, torch.int64, torch.float32)), a.often(None, length(a)))

    return packed_and_back


def container(a: Arguments, path: Path) -> None:
    packed = {"w": pack_weight(torch.randn(24), torch.tensor([2, 3, 2], dtype=torch.uint8))}
    plain = {"b": a.often(a.weight(), a.levels(), "text"), a.often("c", "w", "w.words", "__metadata__"): a.weight()}
    ties, half = a.often({}, {"v": "w"}, {"w": "v"}, {"b": "b"}), a.often((), ("b",), ("w",))
    half = dict.fromkeys(half, torch.float32)
    packed_file.write_packed(path, PackedContents(packed, plain, ties, half, a.often((), ("b",), ("x",))))
    read(a, path)


def weight_file(a: Arguments, path: Path) -> None:
    """A sound weight in a file, of which some bytes are changed now and then."""
    packed = pack_weight(a.weight(), a.widths(), **both(a))
    if a.random.random() < 0.3:
        packed = pack_levels(a.levels(), a.often(3, 0, 17), a.found().flatten(), dtype=torch.float32)
    packed_file.write_packed(path, PackedContents({"w": packed}, {}))
    if a.random.random() < 0.3:
        data = bytearray(path.read_bytes())
        data[a.random.randrange(len(data))] ^= 1 << a.random.randrange(8)
        path.write_bytes(data[: a.often(len(data), len(data) - 1, 7)])
    read(a, path)


def read(a: Arguments, path: Path) -> None:
    diffq_fast.inspect(path).table()
    packed_file.read_packed(path).state_dict()
    diffq_fast.load(path, a.often(None, nn.Linear(3, 2)))


def model_file(a: Arguments, path: Path) -> None:
    model, other = (nn.Linear(a.often(8, 1, 7), 4).to(a.often(torch.float32, torch.float16)) for _ in range(2))
    with torch.no_grad():
        model.weight[0, 0] = a.often(1.0, float("nan"))
    klass = a.random.choice((diffq_fast.DiffQuantizer, diffq_fast.UniformQuantizer, diffq_fast.LSQ))
    options = {"group_size": a.group_size} if klass is diffq_fast.DiffQuantizer else {"bits": a.often(4, 1, 16, 17, 0)}
    quantizer = klass(model, min_size=0, float16=a.often(False, True), **options)
    diffq_fast.save(quantizer, path, logits=a.often(False, True))
    diffq_fast.load(path, a.often(model, other))


def noise_options(a: Arguments) -> tuple[Any, ...]:
    limits = a.often((2.0, 15.0), (-1.0, 4.0), (0.5, 1e30), (float("nan"), 4.0))
    return (a.group_size, *limits, a.often("bits", "noise", "levels"), a.kind(), a.scope == "group")


def streams(a: Arguments) -> list[int]:
    return a.often([0], [], [0, 1], [-1], [2**32], [-(2**63)])


def extremes(a: Arguments) -> Tensor:
    places = torch.full((1, 4), a.often(0, -1, 10**9, 2**63 - 1), dtype=torch.int64)
    return a.often(places, torch.zeros(4), torch.zeros(0), places.to("meta"), places[:0])


def grouping(a: Arguments) -> tuple[int, bool]:
    return a.group_size, a.scope == "group"


def words_and_widths(a: Arguments) -> tuple[Tensor, Tensor]:
    widths = a.widths()
    return a.words(widths), widths


def block(a: Arguments) -> tuple[int, int, int]:
    """Width, rows and columns of bit planes."""
    return a.integer(3, 0, 16, 20), a.integer(64, 8, 5), a.integer(32, 70, 0)


def rows_in_memory(a: Arguments) -> tuple[Any, ...]:
    """Rows that stay packed: right, of another form, or with something else in them."""
    rows, columns, segment = a.integer(3, 1), a.integer(24, 8, 5), a.integer(8, 4)
    rows, columns, segment = (min(max(each, 1), 64) for each in (rows, columns, segment))
    segment = segment if columns % segment == 0 else columns
    widths = torch.randint(1, 17, (rows, columns // segment)).to(torch.uint8)
    data, starts, widths = pack_rows(torch.zeros((rows, columns), dtype=torch.int32), widths, segment)
    scales = torch.ones(a.often(rows * columns, 1, 0))
    form = [columns, segment, a.often(0, segment, 8, -1), a.often(0, 1), a.often(0, 3)]
    starts = a.often(starts, starts + 1000, -starts, starts[:1])
    return (
        *(a.form(a.often(data, data[:16], data[:0])), starts, a.often(widths, widths | 255, widths[:0])),
        *(scales, scales, a.often(form, [each * 2**20 for each in form], form[:3], [0] * 5)),
    )


def packed_rows(a: Arguments) -> functional.PackedRows:
    *tensors, form = rows_in_memory(a)
    return functional.PackedRows(*tensors, functional.RowForm(*(form * 2)[:5]))


def coded(a: Arguments) -> torch.Tensor:
    """Words of coded levels: right, cut off, or anything."""
    words = functional.encode_levels(torch.randint(-9, 9, (a.count,)))
    return a.form(a.often(words, words[:1], a.words().to(torch.int16)))


def frequencies(a: Arguments) -> list[int]:
    """Those of the symbols of levels 0 and 1: right, or of another sum, or beyond 16 bits."""
    return a.often([2**11, 2**11], [2**12], [2**12, 0], [], [1], [-1, 2**12 + 1], [2**16], [16] * 256)


# Below the checks of the functions, which look only at what keeps them inside their memory.
OPERATORS: dict[str, Callable[[Arguments], Any]] = {
    "draw_key": lambda a: ops.draw_key(a.weight()),
    "noise": lambda a: ops.noise(a.key(), a.integer(0), a.integer(0, 2**63 - 9), a.integer(a.count, 5000), a.kind()),
    "weight_range": lambda a: ops.weight_range([a.weight() for _ in range(a.often(2, 0, 1))], *grouping(a)),
    "add_noise": lambda a: ops.add_noise(
        [a.weight()], [a.logits()], a.key(), streams(a), None, *noise_options(a), a.often(None, torch.bfloat16)
    ),
    "add_noise_backward": lambda a: ops.add_noise_backward(
        *([a.weight()], [a.weight()], [a.logits()], a.found(), extremes(a), a.key(), streams(a)), *noise_options(a)
    ),
    "quantize": lambda a: ops.quantize([a.weight()], [a.widths()], a.found(), *grouping(a)),
    "dequantize": lambda a: ops.dequantize(
        [a.levels()], [a.widths()], a.found(), *grouping(a), a.often(torch.float32, torch.float16, torch.int64)
    ),
    "fake_quantize": lambda a: ops.fake_quantize(
        [a.weight()], [a.widths()], a.found(), *grouping(a), a.often(None, torch.float16, torch.int8)
    ),
    "pack": lambda a: ops.pack(a.levels(), a.widths(), a.group_size, a.integer(a.words().numel())),
    "unpack": lambda a: ops.unpack(*words_and_widths(a), a.group_size, a.integer(a.count, 5000)),
    "quantize_pack": lambda a: ops.quantize_pack(
        a.weight(), a.widths(), a.found(), *grouping(a), a.integer(a.words().numel())
    ),
    "unpack_dequantize": lambda a: ops.unpack_dequantize(
        *words_and_widths(a), a.found(), *grouping(a), a.shape(), a.often(torch.float32, torch.float64)
    ),
    "quantize_planes": lambda a: ops.quantize_planes(
        *(a.weight(), a.often(torch.ones(a.groups).byte(), a.widths()), a.found(), a.group_size),
        [a.integer(a.count)] + [a.integer(0)] * a.often(15, 14),
    ),
    "pack_planes": lambda a: ops.pack_planes(a.levels(), *block(a)),
    "pack_planes_seen": lambda a: ops.pack_planes_seen(a.levels(), *block(a)),
    "unpack_planes": lambda a: ops.unpack_planes(planes(a), a.integer(a.count, 10**7)),
    "pack_rows": lambda a: ops.pack_rows(
        a.form(torch.randint(a.often(0, -1), 5, (3, 8)).int()),
        torch.full((3, 2), a.integer(3, 0, 16, 20)).to(torch.uint8),
        *(a.often(torch.arange(4).int(), torch.arange(4).int() * -9, torch.arange(3).int()), a.integer(4, 8, 0, 3)),
        a.often(64, 28, 16, 0, -1),
    ),
    "unpack_rows": lambda a: ops.unpack_rows(
        torch.randint(a.often(0, -3), a.often(1, 5, 2**40), (a.often(2, 0),)), *rows_in_memory(a)
    ),
    "packed_linear": lambda a: ops.packed_linear(
        torch.ones(a.often(1, 5, 20, 0), a.often(24, 8, 5)), *rows_in_memory(a), a.often(False, True)
    ),
    "count_widths": lambda a: ops.count_widths(a.widths()),
    "widths_from_logits": lambda a: ops.widths_from_logits(
        a.logits(), a.often(2.0, -1.0), a.often(15.0, 1.0), a.often("bits", "noise"), a.often(0.0, 1e30)
    ),
    "encode_levels": lambda a: ops.encode_levels(
        a.levels(), a.integer(0, -1, 300), a.integer(0, 3, 16), frequencies(a), a.often(False, True), a.integer(17, 8)
    ),
    "decode_levels": lambda a: ops.decode_levels(coded(a), a.integer(a.count, 5000)),
    "add_uniform_noise": lambda a: ops.add_uniform_noise(
        *([a.weight()], [a.logits()], a.key(), streams(a), [a.group_size]), a.often(None, torch.bfloat16, torch.int8)
    ),
    "add_uniform_noise_backward": lambda a: ops.add_uniform_noise_backward(
        [a.weight()], [a.logits()], a.key(), streams(a), [a.group_size]
    ),
    "weight_sizes": lambda a: ops.weight_sizes(
        *([a.logits()], [a.often(a.count, -1, 2**62)], a.group_size, 2.0, a.often(15.0, 1.0), "bits"),
        a.often(0.0, -3.0),
    ),
    "weight_sizes_backward": lambda a: ops.weight_sizes_backward(
        *(torch.ones(a.often(1, 0, 2)), [a.logits()], [a.often(a.count, -1, 2**62)], a.group_size, 2.0, 15.0, "bits")
    ),
}


CALLS: dict[str, Callable[[Arguments], Any]] = {
    "bits_from_logits": lambda a: functional.bits_from_logits(a.logits(), **a.bounds()),
    "logits_from_bits": lambda a: functional.logits_from_bits(a.logits(), **a.bounds()),
    "step_from_bits": lambda a: functional.step_from_bits(a.logits()),
    "draw_key": lambda a: functional.draw_key(a.weight()),
    "weight_range": lambda a: functional.weight_range([a.weight() for _ in range(a.often(2, 0, 1))], **both(a)),
    "noise": lambda a: functional.noise(
        *(a.key(), a.often(3, -1, 2**40), a.often(a.count, -1, 2**61, 2**63 - 1, 2**64)),
        begin=a.often(0, 5, -3, 2**35 - 4, 2**63 - 5, 2**63),
        noise_kind=a.kind(),
    ),
    "add_noise": step,
    "whole_bits": lambda a: functional.whole_bits(a.logits(), a.often(0, -3, 1e30, float("nan"))),
    "quantize": lambda a: functional.quantize([a.weight()], [a.widths()], a.found(), **both(a)),
    "fake_quantize": lambda a: functional.fake_quantize(
        [a.weight()], [a.widths()], a.found(), dtype=a.often(None, torch.bfloat16, torch.int8), **both(a)
    ),
    "packed_word_count": lambda a: functional.packed_word_count(a.widths(), a.often(a.count, -1, 2**70), a.group_size),
    "pack": lambda a: functional.pack(a.levels(), a.widths(), **size(a)),
    "quantize_pack": lambda a: functional.quantize_pack(a.weight(), a.widths(), a.found(), **both(a)),
    "unpack": lambda a: functional.unpack(*words_and_widths(a), a.often(a.count, -1, 10**6, 2**63), **size(a)),
    "dequantize": lambda a: functional.dequantize([a.levels()], [a.widths()], a.found(), **both(a)),
    "unpack_dequantize": lambda a: functional.unpack_dequantize(
        *(*words_and_widths(a), a.found(), a.shape()),
        dtype=a.often(torch.float32, torch.bfloat16, torch.int8),
        **both(a),
    ),
    "level_code": lambda a: functional.level_code(a.levels()),
    "encode_levels": lambda a: functional.encode_levels(a.levels()),
    "stream_size": lambda a: functional.stream_size(coded(a), a.often(a.count, -1, 10**6, 2**63)),
    "decode_levels": lambda a: functional.decode_levels(coded(a), a.often(a.count, -1, 10**6)),
    "steps_from_codes": lambda a: functional.steps_from_codes(a.often(a.levels(), a.logits())),
    "codes_from_steps": lambda a: functional.codes_from_steps(a.often(a.logits(), a.logits().cfloat())),
    "add_uniform_noise": lambda a: functional.add_uniform_noise(
        [a.weight()], [a.logits()], a.key(), group_sizes=[a.group_size], streams=streams(a)
    ),
    "weight_sizes": lambda a: functional.weight_sizes(
        *([a.logits()], [a.often(a.count, -1)], functional.NoiseOptions(a.group_size)), extra_bits=a.often(0, -3, 1e30)
    ),
    "pack_rows": lambda a: functional.pack_rows(
        *(a.levels().reshape(1, -1), a.widths().reshape(1, -1)), a.often(a.count, a.group_size, 1, 0, -1)
    ),
    "unpack_rows": lambda a: functional.unpack_rows(torch.zeros(a.often(1, 3), dtype=torch.int64), packed_rows(a)),
    "packed_linear": lambda a: functional.packed_linear(torch.ones(a.often(24, 8, 5)), packed_rows(a)),
    "pack_planes": lambda a: functional.pack_planes(
        *(a.levels(), a.often(3, 0, 16, 17, -1)), rows=a.often(64, 8, 16, 32, 5), columns=a.often(32, 1, 70, 0, -1)
    ),
    "empty_cache": lambda a: functional.empty_cache(),
    "widths_from_logits": lambda a: functional.widths_from_logits(a.logits(), **a.bounds()),
    "quantize_planes": lambda a: functional.quantize_planes(a.weight(), a.widths(), a.found(), **size(a)),
    "unpack_planes": lambda a: functional.unpack_planes(planes(a), length(a)),
    "bitpack": packer(bitpack),
    "torch_pack": packer(torch_pack),
    **{f"operator {name}": call for name, call in OPERATORS.items()},
}
FILE_CALLS: dict[str, Callable[[Arguments, Path], Any]] = {
    "container": container,
    "weight_file": weight_file,
    "model_file": model_file,
}
NEVER_REFUSED = {"draw_key", "empty_cache", "operator draw_key", "operator count_widths"}
NO_CALLS = {"NoiseOptions", "LevelCode", "RowForm", "PackedRows"}


def call(name: str, a: Arguments, path: Path) -> bool:
    """Whether it answered."""
    errors = OPERATOR_ERRORS if name.startswith("operator ") else EXPECTED
    try:
        CALLS[name](a) if name in CALLS else FILE_CALLS[name](a, path)
    except MemoryError:  # more elements than any machine holds
        return False
    except errors as error:
        if "unexpected keyword" in str(error):  # a mistake of this script
            raise
        return False
    return True


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    names = [*CALLS, *FILE_CALLS]
    counts = {True: Counter[str](), False: Counter[str]()}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + calls):
            torch.manual_seed(seed)
            name = names[seed % len(names)]
            try:
                counts[call(name, Arguments(seed), Path(folder, "file"))][name] += 1
            except BaseException:
                print(f"{name}, seed {seed}", file=sys.stderr)
                raise
    print(f"{calls} calls, {counts[False].total()} of them refused")
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("diffq_fast::")}
    assert schemas == {f"diffq_fast::{name}" for name in OPERATORS}
    assert set(functional.__all__) - NO_CALLS <= set(names)
    if calls >= 100 * len(names):  # each has answered and has refused
        assert set(counts[True]) == set(names), set(names) - set(counts[True])
        assert set(counts[False]) >= set(names) - NEVER_REFUSED, set(names) - set(counts[False])


if __name__ == "__main__":
    main()
