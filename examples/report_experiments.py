"""Tables and plots of the three experiments, from the stored results alone.

    python examples/report_experiments.py

Reads benchmarks/results/experiment_*.json; writes docs/figures/experiment_*.png, and the tables of
docs/experiments.md and docs/activations.md.
"""

from pathlib import Path

from experiments.grid import TASKS
from experiments.inputs_table import inputs_table
from experiments.minilm_table import put_tables
from experiments.peer_table import peer_table
from experiments.penalty_table import penalty_table
from experiments.plots import plot
from experiments.ranges_table import ranges_table
from experiments.store import results_path
from experiments.summary import coded_rows, read, summarise, task_named
from experiments.tables import full_table, put, short_rows, verdict

PAGE, INPUTS_PAGE = Path("docs/experiments.md"), Path("docs/activations.md")


def main() -> None:
    short = ["| task | method | smaller | quality | against float32 |", "|---|---|---|---|---|"]
    for name in TASKS:
        path = results_path(name, quick=False)
        if not path.exists():
            print(f"{name}: nothing stored yet, run examples/run_experiments.py {name}")
            continue
        task = task_named(name)
        rows, coded = read(path)["rows"], coded_rows(name)
        results = summarise(task, rows, coded=coded)
        anew = summarise(task, rows, renewed=True, coded=coded)
        if anew:
            put(PAGE, f"{name}, statistics anew", full_table(task, anew))
        plot(task, results, Path(f"docs/figures/experiment_{name}.png"))
        put(PAGE, name, f"{verdict(task, results)}\n\n{full_table(task, results)}")
        short += short_rows(task, results)
        print(f"{name}: {len(results)} methods. {verdict(task, results)}")
    peer = results_path("peer", quick=False)
    if peer.exists():
        put(PAGE, "peer", peer_table(task_named("images_vit"), read(peer)["rows"]))
    penalty = results_path("penalty", quick=False)
    if penalty.exists():
        put(PAGE, "penalty", penalty_table(task_named("text"), read(penalty)["rows"]))
    ranges = results_path("learned_ranges", quick=False)
    if ranges.exists():
        put(PAGE, "learned_ranges", ranges_table(task_named("text"), read(ranges)["rows"]))
    inputs = results_path("activations", quick=False)
    if inputs.exists():
        put(INPUTS_PAGE, "accuracy", inputs_table(task_named("images_vit"), read(inputs)["rows"]))
    put_tables()
    put(PAGE, "summary", "\n".join(short))


if __name__ == "__main__":
    main()
