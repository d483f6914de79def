"""The README's and the pages' Python examples run, in order, in one folder."""

import json
import re
import statistics
import subprocess
import sys

import pytest

from support.paths import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_python_examples_run(folder):
    examples = blocks("python")
    assert len(examples) == 2
    for example in examples:
        script = folder / "example.py"
        script.write_text(example)
        done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert "0.weight" in done.stdout


def test_the_example_of_a_size_target_reaches_its_size(tmp_path):
    (example,) = blocks("python", (ROOT / "docs" / "size_target.md").read_text())
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    reached, asked = re.fullmatch(r"([\d.]+) MB, asked for ([\d.]+) MB\n", done.stdout).groups()
    assert float(reached) == pytest.approx(float(asked), rel=0.02)
    assert (tmp_path / "bits.csv").read_text().count("\n") == 1 + 4
    assert (tmp_path / "bits.png").exists()


def test_command_lines_run(folder):
    (commands,) = (block for block in blocks("sh") if "diffq-fast inspect" in block)
    lines = [line.split("#")[0].split() for line in commands.splitlines()]
    assert [line[1] for line in lines] == ["inspect", "verify", "unpack", "pack", "doctor"]
    for line in lines:
        command = [sys.executable, "-m", "diffq_fast", *line[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, (line, done.stderr)
    assert (folder / "widths.png").read_bytes()[:4] == b"\x89PNG"


def test_links_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_test_that_a_page_names_exists():
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "migrating_from_diffq.md").read_text()))
    assert len(named) > 15
    assert named <= defined


def test_the_figures_of_the_claim_are_those_that_are_stored():
    stored = json.loads((ROOT / "benchmarks" / "results" / "mnist_claim.json").read_text())
    summary, runs = stored["summary"], stored["runs"]

    def mean(key, kind):
        return statistics.mean(run[key] for run in runs if run["kind"] == kind)

    assert summary["seeds"] == 8
    low, high = summary["bootstrap_interval_95"]
    rows = [
        f"| size | {mean('megabytes', 'float32'):.3f} MB | {mean('megabytes', 'DiffQ'):.3f} MB "
        f"| {statistics.mean(summary['times_smaller']):.2f} times smaller |",
        f"| file on disk | {mean('megabytes_on_disk', 'float32'):.3f} MB | {mean('megabytes_on_disk', 'DiffQ'):.3f} MB "
        f"| {statistics.mean(summary['times_smaller_on_disk']):.2f} times smaller |",
        f"| {mean('accuracy', 'float32'):.2f} % | {mean('accuracy', 'DiffQ'):.2f} % "
        f"| {summary['mean_points']:+.2f} points, 95 % interval −{-low:.3f} to {high:+.3f} |",
        f"On the first three seeds: {statistics.mean(summary['times_smaller'][:3]):.2f} times smaller at "
        f"{statistics.mean(summary['points'][:3]):+.2f} points",
    ]
    for row in rows:
        assert row in README, row
