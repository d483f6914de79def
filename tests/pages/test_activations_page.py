"""The figures of ``docs/activations.md`` are those that are stored, and the script that stores them runs."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest
import torch

from support.paths import ROOT

PAGE = (ROOT / "docs" / "activations.md").read_text()
STORED = json.loads((ROOT / "benchmarks" / "results" / "experiment_activations.json").read_text())


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("activation_bits")


@pytest.fixture
def table(script):
    return importlib.import_module("experiments.inputs_table").inputs_table


def test_the_table_is_made_from_what_is_stored(script, table):
    shown = PAGE.split("<!-- accuracy -->\n")[1].split("\n<!-- end of accuracy -->")[0]
    assert shown == table(script.ImagesVit(), STORED["rows"])


def test_what_is_stored_is_what_the_script_measures(script):
    expected = {(inputs.label, seed) for inputs in script.CHOSEN for seed in script.SEEDS}
    assert {(row["label"], row["seed"]) for row in STORED["rows"]} == expected
    assert all("dirty" not in row["commit"] for row in STORED["rows"])
    assert STORED["recipe"] == script.ImagesVit.recipe.stored()
    for row in STORED["rows"]:
        learned = row["inputs"]["penalty"] > 0
        assert learned or set(row["input_bits"]) <= {row["inputs"]["bits"]}
        assert len(row["input_bits"]) == (51 if row["inputs"]["bits"] else 0)


def test_the_table_pairs_each_way_with_float_inputs_of_its_seed(script, table):
    def row(label, seed, scores, bits):
        made = {"label": label, "seed": seed, "scores": scores, "input_bits": bits}
        return made | {"quality": 100 * scores.count("1") / len(scores), "megabytes_on_disk": 0.1, "seconds": 3.4}

    rows = [row("inputs float", seed, "1100", []) for seed in (0, 1)]
    rows += [row("inputs 4 bits", seed, "1110", [4, 5]) for seed in (0, 1)]
    lines = table(script.ImagesVit(), rows).splitlines()[2:]
    assert lines[0] == "| float | 2 |  | 0.1000 | 50.00 |  | 3 |"
    assert lines[1].startswith("| 4 bits | 2 | 4.50 | 0.1000 | 75.00 | +25.00 (+0.00 to +")


def test_a_row_is_of_the_network_with_rounded_inputs(script, tmp_path):
    mnist = importlib.import_module("mnist")
    task = script.ImagesVit()
    task.recipe = replace(task.recipe, start_steps=2, steps=3, batch=4)
    images = torch.rand(20, 1, mnist.PIXELS, mnist.PIXELS, generator=torch.Generator().manual_seed(1))
    task.train = task.held_out = mnist.Digits(images, torch.arange(20) % mnist.CLASSES)
    found = {inputs: script.measure(task, inputs, 0, tmp_path) for inputs in script.CHOSEN}
    plain, *rounded = found.values()
    assert plain["input_bits"] == []
    assert all(len(row["input_bits"]) == 51 and len(row["scores"]) == 20 for row in rounded)
    learned = next(row for inputs, row in found.items() if inputs.penalty)
    assert all(2 <= bits <= 15 for bits in learned["input_bits"])
