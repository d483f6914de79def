"""The three experiments: all methods on images, text and music. See docs/experiments.md.

    python examples/run_experiments.py                  # everything that is not yet stored
    python examples/run_experiments.py text music       # two of the tasks
    python examples/run_experiments.py --coded          # RateQuantizer instead, and float32 beside it
    python examples/run_experiments.py --quick          # one seed and fewer steps, under 20 minutes

A start goes on where the last one ended. Results: benchmarks/results/experiment_*.json; `report_experiments.py`
makes tables and plots of them.
"""

import argparse
import os

from experiments.grid import SEEDS, TASKS, Plan, run_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"of {', '.join(TASKS)}; all if none is given")
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the steps, stored in build/")
    parser.add_argument("--coded", action="store_true", help="RateQuantizer and float32, stored beside the others")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="trainings at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    unknown = [name for name in given.tasks if name not in TASKS]
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}; expected some of {', '.join(TASKS)}")
    seeds = given.seeds[:1] if given.quick else given.seeds
    run_grid(Plan(tuple(given.tasks or TASKS), tuple(seeds), given.quick, given.coded), given.jobs)


if __name__ == "__main__":
    main()
