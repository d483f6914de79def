"""Holds the compiled Triton kernels to their static budgets, without a GPU.

python benchmarks/static_budgets.py [--json FILE] [--all-targets]

Instructions are those of the main loop's body on sm_90, divided by the weights a thread handles in one round
of it. The exit status is 1 when a ship budget is broken, or when any kernel costs more than is stored of it for this
Triton: a tenth more instructions, or so many registers that fewer programs are resident. ``--json`` stores anew. Works
with every Triton from 3.6 on that has ``cuobjdump``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import triton
from pipe_cycles import resident_blocks
from static_code import TARGETS, Code, compile_kernel, read_code
from static_kernels import CASES, Case

from diffq_fast.backends.triton.add_noise_ticketed import PROGRAMS_PER_MULTIPROCESSOR
from diffq_fast.backends.triton.launching import WARPS

# Budget: kernel, ship and moonshot in instructions per weight (sm_90, float32, g = 8).
BUDGETS = {
    "S1": ("forward uniform g=8 to fp32", 20.0, 14.0),
    "S2": ("forward gaussian g=8 to fp32", 30.0, 22.0),
    "S3": ("backward uniform g=8 from fp32", 24.0, 18.0),
    "S3 gaussian": ("backward gaussian g=8 from fp32", 24.0, 22.0),
}
BUDGETS |= {
    f"{budget} one launch": (f"one launch: {BUDGETS[budget][0]}", *BUDGETS[budget][1:]) for budget in ("S1", "S2")
}
# The one launch's number of programs counts on four of them for each multiprocessor.
ONE_LAUNCH_REGISTERS = 65536 // (PROGRAMS_PER_MULTIPROCESSOR * 32 * WARPS)
# S4 holds where the weights are float32 and noisy weights or gradients bfloat16 too.
UNDER_AUTOCAST = (
    "forward uniform g=8 to bf16",
    "forward gaussian g=8 to bf16",
    "one launch: forward uniform g=8 to bf16",
    "backward uniform g=8 from bf16",
    "backward gaussian g=8 from bf16",
)
RESULTS = Path(__file__).parent / "results"
GROWTH = 1.1  # of instructions, over what is stored
WIDE_KERNELS = (*(name for name, _, _ in BUDGETS.values()), *UNDER_AUTOCAST)


def compile_case(case: Case, target: str) -> Any:
    return compile_kernel(case.kernel, case.signature, case.constants, target, case.warps, case.fusion)


def counted_code(case: Case, target: str) -> Code:
    """``body``: what is counted of it."""
    return read_code(compile_case(case, target), case.through)


def narrow_accesses(case: Case, code: Code) -> int:
    """Accesses to weights and gradients, which are the kernel's many, narrower than 128 bits. Logits and
    their gradients, one in ``GROUP``, may be read and written as they come."""
    groups = int(case.weights) // max(case.constants["CONFIG"].group_size, 1)
    return max(code.accesses("LDG", narrow=True) - groups, 0) + max(code.accesses("STG", narrow=True) - groups, 0)


def measure(case: Case) -> dict[str, Any]:
    """What the sm_90 code of a kernel costs."""
    code = counted_code(case, "sm_90")
    return {
        "kernel": case.name,
        "budget": _budget_of(case.name),
        "of": case.of,
        "instructions_per_weight": round(len(code.body) / case.weights, 2),
        "transcendental_per_weight": _per_weight(case, code, "MUFU"),
        "integer_product_per_weight": _per_weight(case, code, "IMAD.WIDE"),
        "loads_128": code.accesses("LDG", narrow=False),
        "stores_128": code.accesses("STG", narrow=False),
        "narrow": narrow_accesses(case, code) if case.name in WIDE_KERNELS else None,
        "rounded_otherwise": sum(
            opcode.startswith("F2F") and not {"RZ", "RM", "RP"}.isdisjoint(opcode.split("."))
            for opcode in code.opcodes().elements()
        ),
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "shared_bytes": code.shared_bytes,
        "warps": case.warps,
    }


def _budget_of(kernel: str) -> str:
    """Ship and moonshot, in words; "" without a budget."""
    found = [(budget, ship, moonshot) for budget, (name, ship, moonshot) in BUDGETS.items() if name == kernel]
    return " ".join(f"{budget.split()[0]}: {ship:g} / {moonshot:g}" for budget, ship, moonshot in found)


def _per_weight(case: Case, code: Code, prefix: str) -> float:
    return round(sum(opcode.startswith(prefix) for opcode in code.opcodes().elements()) / case.weights, 2)


def broken_budgets(rows: list[dict[str, Any]]) -> list[str]:
    """What is over budget, in words."""
    problems = []
    by_name = {row["kernel"]: row for row in rows}
    for budget, (name, ship, _) in BUDGETS.items():
        cost = by_name[name]["instructions_per_weight"]
        if cost > ship:
            problems.append(f"{budget}: {name}: at most {ship} instructions per weight, found {cost}")
    problems += [
        f"S4: {name}: every access to weights 128 bits wide, found {by_name[name]['narrow']} narrower"
        for name in WIDE_KERNELS
        if by_name[name]["narrow"]
    ]
    problems += [
        f"rounding: {row['kernel']}: half to even, found {row['rounded_otherwise']} other conversions"
        for row in rows
        if row["rounded_otherwise"]
    ]
    problems += [
        f"S5: {row['kernel']}: no spills, found {row['stack_bytes']} bytes" for row in rows if row["stack_bytes"]
    ]
    problems += [
        f"registers: {row['kernel']}: at most {ONE_LAUNCH_REGISTERS}, found {row['registers']}"
        for row in rows
        if row["kernel"].startswith("one launch") and row["registers"] > ONE_LAUNCH_REGISTERS
    ]
    return problems


def grown(rows: list[dict[str, Any]], stored: list[dict[str, Any]]) -> list[str]:
    """Kernels that cost more than what is stored of them, in words."""
    problems = []
    before = {row["kernel"]: row for row in stored}
    for row in rows:
        name, known = row["kernel"], before.get(row["kernel"])
        if known is None:
            problems.append(f"{name}: expected stored figures, found none: store them with --json")
            continue
        cost, least = row["instructions_per_weight"], known["instructions_per_weight"]
        if least and cost > GROWTH * least:
            problems.append(f"{name}: at most {GROWTH} times the stored {least} instructions per weight, found {cost}")
        blocks, expected = (_resident(each) for each in (row, known))
        if blocks < expected:
            problems.append(
                f"{name}: {expected} programs resident, as with the stored {known['registers']} registers, "
                f"found {blocks} with {row['registers']}"
            )
    return problems


def _resident(row: dict[str, Any]) -> int:
    return resident_blocks(row["registers"], row["warps"], row["shared_bytes"])


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"triton {triton.__version__}, sm_90")
    print(f"{'kernel':<46}{'instr/w':>8}{'MUFU/w':>8}{'128b':>8}{'narrow':>7}{'regs':>6}{'stack':>6}{'shared':>7}")
    for row in rows:
        wide = f"{row['loads_128']}+{row['stores_128']}"
        cells = [row["instructions_per_weight"], row["transcendental_per_weight"], wide, row["narrow"]]
        texts = ["" if cell is None else str(cell) for cell in cells]
        print(
            f"{row['kernel']:<46}{texts[0]:>8}{texts[1]:>8}{texts[2]:>8}{texts[3]:>7}"
            f"{row['registers']:>6}{row['stack_bytes']:>6}{row['shared_bytes']:>7}"
        )
    by_name = {row["kernel"]: row["instructions_per_weight"] for row in rows}
    for budget, (name, ship, moonshot) in BUDGETS.items():
        print(f"{budget:<14} {by_name[name]:>6} (ship {ship}, moonshot {moonshot})  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--all-targets", action="store_true", help="compile for sm_80, sm_100 and gfx942 too")
    arguments = parser.parse_args()
    rows = [measure(case) for case in CASES]
    print_table(rows)
    if arguments.all_targets:
        for target in TARGETS:
            for case in CASES:
                compile_case(case, target)
            print(f"{target}: {len(CASES)} kernels compile")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1) + "\n")
    problems = broken_budgets(rows)
    stored = RESULTS / f"static_triton_{triton.__version__}.json"
    if stored.exists() and not arguments.json:
        problems += grown(rows, json.loads(stored.read_text())["rows"])
    print("\n".join(problems) or "every ship budget holds")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
