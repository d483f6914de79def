"""Predicts each kernel's time from its machine code: the resource that binds, and what small weights take.

python benchmarks/predict_gpu.py [--json FILE] [--stored-costs]

A weight takes as long as the resource that is busiest: memory at the speed of a copy, each pipe of the
multiprocessors at ``UTILISATION`` of its rate, or, where too few programs are resident, the latency of a program: the
longest chain of dependences through its rounds. Nothing of this has been measured. Needs Triton and ``cuobjdump``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpu_chips import BYTES, CHIPS, RESULTS, Chip
from pipe_cycles import FMA, ISSUE, LANES, chain, cycles, global_bytes, resident_blocks

# What a pipe reaches of its rate; a prediction is told for all of it and for less as well.
UTILISATION, SURE, CAREFUL = 0.8, 1.0, 0.6
# Assumed, in microseconds: of a loaded memory; of the tables, which are in L2, three loads that need each other; from
# one launch to the next on a stream.
MEMORY_LATENCY, TABLES_LATENCY, LAUNCH = 0.8, 0.45, 2.0
# A transformer's step: 6 operations a weight and token, of which a good step reaches this part of the chip's.
TOKENS, STEP_EFFICIENCY = 8192, 0.4
# Autocast's own casts of a weight (4 bytes read, 2 written) and of its gradient (2 read, 4 written).
CASTS = 12
# Passes over one weight: their launches. None: one with little to do.
PASSES = {
    "forward float32, range per tensor": ("range", "forward uniform g=8 to fp32"),
    "the same to bfloat16": ("range", "forward uniform g=8 to bf16"),
    "forward float32, range per group": ("forward uniform g=8 to fp32, range per group",),
    "backward float32": ("backward uniform g=8 from fp32", None),
    "quantise + pack, 4 bits": ("quantise + pack, 4 bits of one width",),
    "unpack + dequantise, 4 bits": ("unpack + dequantise, 4 bits of one width",),
}
COUNTS = (10**4, 10**5, 10**6, 4 * 10**6, 2**24)


@dataclass(frozen=True)
class Cost:
    """Of one kernel. ``pipes``: cycles of a multiprocessor per weight. ``chain``: cycles of a round, without memory;
    ``blocks``: resident programs; ``tile``: weights of a program, in ``rounds``."""

    kernel: str
    bytes: float
    pipes: dict[str, float]
    chain: float
    registers: int
    warps: int
    blocks: int
    tile: int
    rounds: int
    loads_in_flight: int  # bytes that a thread has asked for at a time


def cost_of(case: Any, target: str) -> Cost:
    """Of a case of ``static_kernels``."""
    from static_budgets import counted_code

    code = counted_code(case, target)
    body, weights, lanes = code.body, case.weights, LANES * case.warps
    own_tile = 0 if case.through else getattr(case.constants.get("CONFIG"), "tile", 0)
    program = case.program or own_tile or round(weights * lanes)
    moved = sum(map(global_bytes, body)) / weights
    return Cost(
        case.name,
        BYTES.get(case.name, round(moved, 3)),
        {name: round(value / (weights * LANES), 5) for name, value in cycles(body).items()},
        chain(body, 0.0),
        code.registers,
        case.warps,
        resident_blocks(code.registers, case.warps, code.shared_bytes),
        program,
        max(1, round(program / (weights * lanes))),
        sum(global_bytes(each) for each in body if each.opcode.startswith("LDG")),
    )


def with_ranges(costs: list[Cost]) -> list[Cost]:
    """One launch finds the ranges too; their loads are answered by L2."""
    (ranges,) = (cost.pipes for cost in costs if cost.kernel == "range")
    return [
        replace(cost, pipes={name: round(value + ranges[name], 5) for name, value in cost.pipes.items()})
        if cost.kernel.startswith("one launch")
        else cost
        for cost in costs
    ]


def program_microseconds(cost: Cost, chip: Chip) -> float:
    """Of one program that has a multiprocessor to itself: tables, then rounds, each a load and a chain."""
    rounds = cost.rounds * (MEMORY_LATENCY + cost.chain / (1e3 * chip.gigahertz))
    return TABLES_LATENCY + rounds


def resources(cost: Cost, chip: Chip, utilisation: float = UTILISATION) -> dict[str, float]:
    """Picoseconds per weight that each resource needs."""
    a_cycle = 1e3 / (chip.multiprocessors * chip.gigahertz)
    times = {"memory": cost.bytes / chip.copy}
    times |= {name: a_cycle * value / utilisation for name, value in cost.pipes.items()}
    times["FMA"] *= LANES / FMA / chip.fma_lanes
    times["latency"] = 1e6 * program_microseconds(cost, chip) / (cost.blocks * chip.multiprocessors * cost.tile)
    return times


def predict(cost: Cost, chip: Chip) -> dict[str, Any]:
    times = resources(cost, chip)
    binding = sorted(times, key=times.__getitem__, reverse=True)
    at = {name: max(resources(cost, chip, part).values()) for name, part in (("least", SURE), ("most", CAREFUL))}
    in_flight = cost.blocks * cost.warps * LANES * cost.loads_in_flight
    return {
        "kernel": cost.kernel,
        "bytes_per_weight": cost.bytes,
        "instructions_per_weight": round(LANES * cost.pipes["issue"] / ISSUE, 2),
        "predicted_picoseconds": round(times[binding[0]], 3),
        "least": round(at["least"], 3),
        "most": round(at["most"], 3),
        "binding": binding[0],
        "next": binding[1],
        "of_copy": round(times["memory"] / times[binding[0]], 3),
        "picoseconds": {name: round(value, 3) for name, value in times.items()},
        "resident_programs": cost.blocks,
        "kilobytes_in_flight": round(in_flight / 1024, 1),
        "kilobytes_needed": round(chip.copy * MEMORY_LATENCY * 1e6 / chip.multiprocessors / 1024, 1),
    }


def launch_microseconds(cost: Cost | None, count: int, chip: Chip) -> float:
    """One launch over a weight of ``count`` elements: whole waves, each as long as its latency or as its busiest
    resource, whichever is longer."""
    if cost is None:
        return LAUNCH + TABLES_LATENCY + MEMORY_LATENCY
    programs = -(-count // cost.tile)
    waves = -(-programs // (cost.blocks * chip.multiprocessors))
    busiest = max(value for name, value in resources(cost, chip).items() if name != "latency")
    return LAUNCH + max(waves * program_microseconds(cost, chip), 1e-6 * busiest * count)


def small(costs: list[Cost], chip: Chip) -> list[dict[str, Any]]:
    """Microseconds of whole passes over one weight, by its elements."""
    by_name: dict[str | None, Cost] = {cost.kernel: cost for cost in costs}
    rows = []
    for name, kernels in PASSES.items():
        times = {
            str(count): sum(launch_microseconds(by_name.get(each), count, chip) for each in kernels) for count in COUNTS
        }
        rows.append({"pass": name, "microseconds": {count: round(time, 2) for count, time in times.items()}})
    return rows


def figures(rows: list[dict[str, Any]], chip: Chip) -> dict[str, float]:
    """Predictions of whole figures: the bytes a target counts, at the copy's speed, over the predicted time."""
    time = {row["kernel"]: row["predicted_picoseconds"] for row in rows}
    forward = time["range"] + time["forward uniform g=8 to fp32"]
    gaussian = time["range"] + time["forward gaussian g=8 to fp32"]
    half = time["range"] + time["forward uniform g=8 to bf16"]
    step = 6 * TOKENS / (STEP_EFFICIENCY * chip.teraflops)
    lowered = half + time["backward uniform g=8 from bf16"] - CASTS / chip.copy
    found = {
        "G1": 12 / chip.copy / forward,
        "G2": 10 / chip.copy / half,
        "G1 one launch": 8 / chip.copy / time["one launch: forward uniform g=8 to fp32"],
        "G2 one launch": 6 / chip.copy / time["one launch: forward uniform g=8 to bf16"],
        "G3": gaussian / forward,
        "G4": 8 / chip.copy / time["backward uniform g=8 from fp32"],
        "G4 bf16": 6 / chip.copy / time["backward uniform g=8 from bf16"],
        "G8": 100 * lowered / step,
        "G8 own dtype": 100 * (forward + time["backward uniform g=8 from fp32"]) / step,
        "G11 pack": 4.5 / chip.copy / time["quantise + pack, 4 bits of one width"],
        "G11 unpack": 4.5 / chip.copy / time["unpack + dequantise, 4 bits of one width"],
    }
    return {name: round(value, 3) for name, value in found.items()}


def _cost(row: dict[str, Any]) -> Cost:
    return Cost(**row)


def measured() -> tuple[str, dict[str, list[Cost]]]:
    """Triton's version, and the costs of all kernels for each target."""
    import triton
    from static_kernels import CASES

    targets = dict.fromkeys(chip.target for chip in CHIPS.values())
    found = {target: [cost_of(case, target) for case in CASES] for target in targets}
    return triton.__version__, {target: with_ranges(own) for target, own in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu_predictions.json")
    parser.add_argument("--stored-costs", action="store_true", help="compile nothing: take the costs from the file")
    arguments = parser.parse_args()
    if arguments.stored_costs:
        stored = json.loads(arguments.json.read_text())
        version, costs = stored["triton"], {target: list(map(_cost, rows)) for target, rows in stored["costs"].items()}
    else:
        version, costs = measured()
    result: dict[str, Any] = {"triton": version, "utilisation": UTILISATION, "chips": {}}
    result["costs"] = {target: [asdict(cost) for cost in own] for target, own in costs.items()}
    for name, chip in CHIPS.items():
        own = costs[chip.target]
        kernels = [predict(cost, chip) for cost in own]
        result["chips"][name] = {"ceilings": asdict(chip), "kernels": kernels, "figures": figures(kernels, chip)}
        result["chips"][name]["small"] = small(own, chip)
        print(f"{name}: " + ", ".join(f"{figure} {value}" for figure, value in figures(kernels, chip).items()))
        for row in kernels:
            time = f"{row['predicted_picoseconds']:>7} ps/w ({row['least']} to {row['most']})"
            print(f"  {row['kernel']:<46}{time:<32}{row['binding']:<17}{row['of_copy']}")
        for row in result["chips"][name]["small"]:
            print(f"  {row['pass']:<46}", *(f"{time:>9}" for time in row["microseconds"].values()))
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
