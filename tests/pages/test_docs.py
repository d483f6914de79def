"""What the README and the pages show runs, what they name exists, and their figures are those that are stored."""

import json
import re
import statistics
import subprocess
import sys

import pytest
import torch

from support.paths import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_the_first_lines_of_the_readme_run(tmp_path):
    before = """
import torch
from torch import nn

model, fresh_model = nn.Linear(64, 256), nn.Linear(64, 256)
optimizer = torch.optim.SGD(model.parameters())
model.train()
task_loss = 0.0
"""
    first = blocks("python")[0]
    assert len([line for line in first.splitlines() if line]) == 6
    program = f"{before}{first}assert loss > 0 and torch.equal(fresh_model.weight, model.eval().weight) is False\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").exists()


def test_python_examples_run(folder):
    examples = blocks("python")[1:]
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


def test_the_examples_of_packing_and_training_from_there_run(tmp_path):
    """One after the other, in one program."""
    program = "\n".join(blocks("python", (ROOT / "docs" / "post_training.md").read_text()))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trained.safetensors").exists()


def test_command_lines_run(folder):
    (commands,) = (block for block in blocks("sh") if "diffq-fast inspect" in block)
    lines = [line.split("#")[0].split() for line in commands.splitlines()]
    verbs = ["inspect", "inspect", "verify", "bench", "unpack", "diff", "export", "pack", "doctor"]
    assert [line[1] for line in lines] == verbs
    for line in lines:
        command = [sys.executable, "-m", "diffq_fast", *line[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, (line, done.stderr)
    assert (folder / "widths.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (folder / "model.gguf").read_bytes()[:4] == b"GGUF"


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", prose):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in headings(there), f"{target}#{anchor}"


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    named = {target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", index)}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands_that_a_page_names_exist(page):
    """Paths may begin at the root, in the package, or in the core."""
    bases = [ROOT, ROOT / "diffq_fast", ROOT / "csrc" / "core", ROOT / "docs", ROOT / "benchmarks" / "results"]
    text = page.read_text()
    paths = re.findall(r"`((?:[\w.]+/)+(?:[\w.-]+\.(?:py|h|cpp|md|sh|json|yml))?)`", text)
    paths += re.findall(r"(?:python3?|bash) ((?:[\w.-]+/)+[\w.-]+)", text)
    paths = [path for path in paths if not path.startswith(("build/", "dist/")) and "NAME" not in path]
    assert not {path for path in paths if not any((base / path).exists() for base in bases)}
    targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    assert set(re.findall(r"`make (\w+)", text)) <= set(targets)
    commands = (ROOT / "diffq_fast" / "cli" / "commands.py").read_text()
    for command in re.findall(r"diffq-fast (inspect|verify|diff|bench|pack|unpack|export|convert|doctor)", text):
        assert f'"{command}"' in commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_a_page_calls_exist(page):
    """``diffq_fast.name``, ``functional.name`` and ``quantizer.name``."""
    import diffq_fast
    from diffq_fast import functional

    homes = {"diffq_fast": [diffq_fast], "functional": [functional]}
    homes["quantizer"] = [diffq_fast.DiffQuantizer, diffq_fast.DiffQuantizer(torch.nn.Linear(2, 2))]
    files = ("py", "json", "cdx", "wasm")
    rooms = {path.parent.name for path in (ROOT / "diffq_fast").glob("*/__init__.py")}
    for home, name in re.findall(r"(?<![\w./])(diffq_fast|functional|quantizer)\.([a-z]\w+)", page.read_text()):
        assert (
            name in files
            or (home == "diffq_fast" and name in rooms)
            or any(hasattr(each, name) for each in homes[home])
        ), f"{home}.{name}"


def test_the_quantizer_of_the_architecture_page_trains_saves_and_loads(tmp_path):
    (example,) = blocks("python", (ROOT / "docs" / "architecture.md").read_text())
    (tmp_path / "fixed.py").write_text(example)
    use = """
import torch
from torch import nn

import diffq_fast
from fixed import FixedQuantizer

model, plain, again = nn.Linear(30, 50), nn.Linear(30, 50), nn.Linear(30, 50)
quantizer = FixedQuantizer(model, bits=3, min_size=0.001)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
quantizer.setup_optimizer(optimizer)
inputs = torch.randn(8, 30)
model(inputs).square().sum().backward()
before = model.weight.detach().clone()
optimizer.step()
assert not torch.equal(model.weight, before)
expected = model.eval()(inputs)
assert not torch.equal(expected, nn.functional.linear(inputs, model.weight, model.bias))
diffq_fast.save(quantizer, "file")
diffq_fast.load("file", plain)
FixedQuantizer(again, bits=3, min_size=0.001)
diffq_fast.load("file", again)
for loaded in (plain, again):
    assert torch.equal(loaded.eval()(inputs), expected)
print(diffq_fast.inspect("file").quantizer["class"], round(quantizer.true_model_size() * 2**23))
"""
    (tmp_path / "use.py").write_text(use)
    done = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["FixedQuantizer", str(3 * 1500 + 64 + 32 * 50)]


def test_every_test_that_a_page_names_exists():
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "migrating_from_diffq.md").read_text()))
    assert len(named) > 15
    assert named <= defined


def test_the_figures_of_the_claim_are_those_that_are_stored():
    page = (ROOT / "docs" / "experiments.md").read_text()
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
        assert row in page, row
    size, accuracy = ([mean(key, kind) for kind in ("float32", "DiffQ")] for key in ("megabytes", "accuracy"))
    times, on_disk = (statistics.mean(summary[key]) for key in ("times_smaller", "times_smaller_on_disk"))
    assert f"{accuracy[0]:.2f}" == f"{accuracy[1]:.2f}"  # "the same"
    said = " ".join(README.split())
    for part in (
        f"from {size[0]:.3f} to {size[1]:.3f} MB, {times:.2f} times smaller, "
        f"at the same accuracy of {accuracy[1]:.2f} %",
        f"| {accuracy[0]:.2f} % | {accuracy[1]:.2f} % | {times:.1f}× |",
        f"difference of {summary['mean_points']:+.2f} points has a 95 % interval from −{-low:.3f} to {high:+.3f}",
        f"file on disk is {on_disk:.2f} times smaller",
        "(means of eight seeds)",
    ):
        assert part in said, part


@pytest.mark.parametrize(
    ("name", "network", "figure"),
    [
        ("images_resnet", "residual", "{:.2f} %"),
        ("images_vit", "vision transformer", "{:.2f} %"),
        ("text", "causal transformer", "{:.3f}"),
        ("music", "U-Net on the waveform", "{:.3f} dB"),
    ],
)
def test_the_readmes_table_of_experiments_is_what_is_stored(name, network, figure):
    rows = json.loads((ROOT / "benchmarks" / "results" / f"experiment_{name}.json").read_text())["rows"]
    runs = {}
    for row in rows:
        if not row["method"].get("renewed"):
            runs.setdefault(row["label"], {})[row["seed"]] = row
    plain = runs["float32"]
    cells = [figure.format(statistics.mean(run["quality"] for run in plain.values()))]
    for label in ("SizeTarget 8x", "LSQ 4 bits"):
        assert set(runs[label]) == set(plain) == {0, 1, 2}
        smaller = [plain[seed]["megabytes"] / run["megabytes"] for seed, run in runs[label].items()]
        cells.append(figure.format(statistics.mean(run["quality"] for run in runs[label].values())))
        cells.append(f"{statistics.mean(smaller):.1f}×")
    assert f" | {network} | {' | '.join(cells)} |" in README


@pytest.mark.parametrize(
    ("name", "network", "figure", "label"),
    [
        ("images_resnet", "residual", "{:.2f} %", "Rate {}x, packed half-way"),
        ("images_vit", "vision transformer", "{:.2f} %", "Rate {}x, packed half-way"),
        ("text", "causal transformer, with a teacher", "{:.3f}", "Rate {}x, packed half-way, taught"),
        ("music", "U-Net on the waveform", "{:.3f} dB", "Rate {}x, packed half-way"),
    ],
)
def test_the_readmes_table_of_coded_sizes_is_what_is_stored(name, network, figure, label):
    rows = json.loads((ROOT / "benchmarks" / "results" / f"experiment_{name}_coded.json").read_text())["rows"]
    table = README.split("| task | network | float32 | coded | smaller |\n")[1].split("\n\n")[0]
    line = next(line for line in table.splitlines() if f"| {network} |" in line)
    times = line.strip("| ").split(" | ")[-1].removesuffix(".0×")
    runs = {}
    for row in rows:
        if row["label"] in ("float32", label.format(times)):
            runs.setdefault(row["label"], {})[row["seed"]] = row
    plain, small = runs["float32"], runs[label.format(times)]
    assert set(small) == set(plain) == {0, 1, 2}
    smaller = statistics.mean(plain[seed]["megabytes"] / run["megabytes"] for seed, run in small.items())
    cells = [figure.format(statistics.mean(run["quality"] for run in each.values())) for each in (plain, small)]
    assert line.endswith(f" | {network} | {' | '.join(cells)} | {smaller:.1f}× |")


METHODS_OF_ENCODER = {
    "packed with calibration": "coded, calibrated",
    "packed without calibration": "coded",
    "trained to a size, 1,000 steps": "trained, from packed",
}


def test_the_readmes_table_of_a_sentence_encoder_is_what_is_stored():
    stored = {}
    for name in ("post_training", "rate_minilm", "minilm_peers"):
        for path in (ROOT / "benchmarks" / "results").glob(f"experiment_{name}*.json"):
            for row in json.loads(path.read_text())["rows"]:
                stored.setdefault((f"{row['bits']:.3f}", f"{row['spearman']:.4f}"), []).append(row)
    table = README.split("| diffq_fast | bits | correlation | another format | bits | correlation |\n")[1]
    lines = table.split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    kinds, kind = set(), ""
    for name, bits, correlation, other, other_bits, other_correlation in rows:
        kind = name or kind
        kinds.add(kind)
        assert METHODS_OF_ENCODER[kind] in [row["method"] for row in stored[bits, correlation]]
        assert other in [row["label"] for row in stored[other_bits, other_correlation]]
        assert float(bits) <= float(other_bits)
    assert kinds == METHODS_OF_ENCODER.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_the_marks_of_a_conflict(page):
    assert not re.search(r"^(<{7}|>{7}) ", page.read_text(encoding="utf-8"), re.MULTILINE)
