"""The experiments of examples/: the grid's list and resumption, methods, statistics, tables, plots, and each task end
to end with two steps."""

import importlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import diffq_fast
from support.paths import ROOT

NAMES = ("task", "methods", "training", "store", "grid", "summary", "tables", "plots", "peer_table", "images", "text")
NAMES += ("penalty_table", "ranges_table", "minilm_table", "audio_table", "crepe", "voice_encoder", "notes")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    found = {
        name: importlib.import_module(f"experiments.{name}") for name in (*NAMES, "music", "chorales", "demucs_net")
    }
    return SimpleNamespace(mnist=importlib.import_module("mnist"), **found)


def small(task):
    """The task with two steps from scratch and three from there."""
    task.recipe = replace(task.recipe, start_steps=2, steps=3, batch=4)
    return task


def digits(mnist, count: int):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, mnist.PIXELS, mnist.PIXELS, generator=generator)
    return mnist.Digits(images, torch.arange(count) % mnist.CLASSES)


@pytest.fixture
def resnet(modules):
    task = small(modules.images.ImagesResnet())
    task.train, task.held_out = digits(modules.mnist, 20), digits(modules.mnist, 30)
    return task


@pytest.fixture
def vit(modules):
    task = small(modules.images.ImagesVit())
    task.train, task.held_out = digits(modules.mnist, 20), digits(modules.mnist, 30)
    return task


@pytest.fixture
def text(modules, monkeypatch):
    """The text task on a page of English from the standard library."""
    topics = importlib.import_module("pydoc_data.topics").topics
    task = small(modules.text.Text())
    monkeypatch.setattr(task, "read", lambda: topics["assignment"])
    monkeypatch.setattr(modules.text, "CHUNK", 200)
    task.load()
    return task


@pytest.fixture
def music(modules, monkeypatch, tmp_path):
    """The music task on three chorales of two seconds."""
    for package in ("music21", "pretty_midi", "tinysoundfont"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.setattr(modules.music, "CACHE", tmp_path)
    monkeypatch.setattr(modules.music, "SEGMENT", 1024)
    task = small(modules.music.Music())
    task.sizes, task.seconds = {"train": 1, "validation": 1, "held out": 1}, 2.048
    task.load()
    return task


def quiet(share: float, text: str) -> None:
    assert 0 < share <= 1
    assert text.startswith("loss")


@pytest.mark.parametrize("name", ["resnet", "vit", "text", "music"])
def test_a_task_runs_end_to_end_with_each_kind_of_method(name, modules, request, tmp_path):
    torch.set_num_threads(1)
    task = request.getfixturevalue(name)
    make = modules.methods.Method
    rows = []
    for method in (make("float32"), make("qat", bits=3), make("lsq", bits=4), make("diffq", penalty=1.0)):
        rows += modules.training.run(task, method, 0, tmp_path, quiet)
    anew = [row for row in rows if row["method"]["renewed"]]
    assert [row["label"].removesuffix(", statistics anew") for row in anew] == [
        row["label"] for row in rows if not row["method"]["renewed"] and name == "resnet"
    ]
    sizes = {row["label"]: row["megabytes"] for row in rows if row not in anew}
    assert list(sizes)[:6] == ["float32", *(f"PTQ {bits} bits" for bits in (2, 3, 4, 8)), "QAT 3 bits"]
    assert sizes["float32"] / sizes["PTQ 8 bits"] == pytest.approx(4, rel=0.1)
    assert sizes["QAT 3 bits"] == sizes["PTQ 3 bits"]
    assert sizes["DiffQ penalty 1"] == pytest.approx(sizes["PTQ 8 bits"], rel=0.1)  # three steps from 8 bits
    for row in rows:
        assert row["megabytes_on_disk"] == pytest.approx(row["megabytes"], abs=0.06), row["label"]
        scores = modules.training.expanded(row["scores"])
        assert task.quality(scores) == pytest.approx(row["quality"], rel=1e-6)
        assert math.isfinite(row["quality"])


def test_renewed_statistics_are_those_of_the_weights_of_the_evaluation_and_do_not_stay(modules, resnet):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.BatchNorm2d(1))
    torch.nn.init.constant_(network[0].weight, 1.0)
    resnet.batches = lambda generator: ((torch.full((2, 1, 4, 4), level),) for level in [1.0, 3.0] * 20)
    modules.training.renew_statistics(resnet, network, [network[1]])
    assert float(network[1].running_mean) == pytest.approx(2.0)
    assert float(network[1].running_var) == pytest.approx(0.0)

    resnet.scores = lambda network: network[1].running_mean.int().numpy()  # 0 at first, 2 when renewed
    network[1].reset_running_stats()
    rows = modules.training.evaluated(resnet, network, modules.methods.Method("float32"), 0, None, 1.0)
    assert [row["scores"] for row in rows] == ["0", "2"]
    assert float(network[1].running_mean) == 0


@pytest.mark.parametrize("changed", [{}, {"straight_through": False}])
def test_size_target_ends_at_its_size(changed, modules, resnet, tmp_path):
    resnet.recipe = replace(resnet.recipe, steps=20)
    rows = modules.training.run(resnet, modules.methods.size_target(8, **changed), 0, tmp_path, quiet)
    assert rows[0]["label"] == ("SizeTarget 8x, noise to the end" if changed else "SizeTarget 8x")
    plain = modules.mnist.float32_megabytes(resnet.build())
    assert plain / rows[0]["megabytes"] == pytest.approx(8, rel=0.02)


def test_rate_ends_within_its_coded_size(modules, resnet, tmp_path):
    resnet.recipe = replace(resnet.recipe, steps=20)
    trained, _ = modules.training.run(resnet, modules.methods.Method("rate", times=16), 0, tmp_path, quiet)
    assert trained["label"] == "Rate 16x"
    asked = modules.mnist.float32_megabytes(resnet.build()) / 16
    assert 0.98 * asked <= trained["megabytes"] <= asked
    assert trained["megabytes"] < trained["megabytes_on_disk"] < trained["megabytes"] + 0.03


def test_a_teacher_is_the_float32_network_after_all_steps(modules, resnet, tmp_path, monkeypatch):
    """Its outputs are what a taught network is led to, beside its labels, from the same batches as the others."""
    plain = modules.training.finished_network(resnet, 0, tmp_path)
    kept = modules.training.finished_network(resnet, 0, tmp_path)
    assert all(torch.equal(each, kept.state_dict()[name]) for name, each in plain.state_dict().items())
    rows = modules.training.run(resnet, modules.methods.Method("float32"), 0, tmp_path, quiet)
    scores = modules.training.mean_score(kept, resnet)
    assert rows[0]["scores"] == modules.training.compact(scores)
    told = []

    def distance(found, wanted):
        assert found.requires_grad
        assert not wanted.requires_grad
        told.append((found.detach(), wanted))
        return 0.0 * found.sum()

    monkeypatch.setattr(resnet, "distance", distance)
    taught = modules.methods.size_target(8, "taught target")
    assert taught.label == "SizeTarget 8x, taught"
    modules.training.run(resnet, taught, 0, tmp_path, quiet)
    assert len(told) == resnet.recipe.steps
    kept.eval()
    batches = resnet.batches(torch.Generator().manual_seed(1000))
    with torch.no_grad():
        for found, wanted in told:
            torch.testing.assert_close(wanted, kept(next(batches)[0]), rtol=1e-4, atol=1e-5)
            assert not torch.equal(found, wanted)


def test_the_distance_from_a_teacher_is_none_from_the_same_output(modules, resnet, music):
    logits = torch.randn(3, 4, 5, requires_grad=True)
    assert float(resnet.distance(logits, logits.detach())) == pytest.approx(0, abs=1e-6)
    moved = logits + torch.randn(3, 4, 5)
    chances, wanted = moved.softmax(-1), logits.softmax(-1)
    expected = (wanted * (wanted / chances).log()).sum() / 12
    torch.testing.assert_close(resnet.distance(moved, logits), expected)
    assert float(music.distance(torch.ones(2, 3), torch.zeros(2, 3))) == 1.0


def test_packed_half_way_with_a_teacher_ends_at_its_size(modules, resnet, tmp_path):
    resnet.recipe = replace(resnet.recipe, steps=20)
    method = modules.methods.Method("taught packed", times=8)
    trained, _ = modules.training.run(resnet, method, 0, tmp_path, quiet)
    assert trained["label"] == "Rate 8x, packed half-way, taught"
    asked = modules.mnist.float32_megabytes(resnet.build()) / 8
    assert 0.97 * asked <= trained["megabytes"] <= asked


def test_every_method_trains_from_the_same_network_on_the_same_batches(modules, resnet, tmp_path):
    first = modules.training.starting_network(resnet, 3, tmp_path, quiet).state_dict()
    again = modules.training.starting_network(resnet, 3, tmp_path, quiet).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    seen = []

    def loss(network, batch):
        seen.append(batch[1])
        return torch.nn.functional.cross_entropy(network(batch[0]), batch[1])

    resnet.loss = loss
    for method in (modules.methods.Method("float32"), modules.methods.Method("diffq", penalty=1.0)):
        modules.training.run(resnet, method, 3, tmp_path, quiet)
    assert len(seen) == 2 * resnet.recipe.steps
    for plain, noisy in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True):
        assert torch.equal(plain, noisy)


def test_text_holds_out_whole_chunks_and_trains_on_none_of_them(modules, monkeypatch):
    task = modules.text.Text()
    monkeypatch.setattr(modules.text, "CHUNK", 130)
    letters = "".join(chr(ord("a") + number) * 130 for number in range(20))  # each chunk one letter
    monkeypatch.setattr(task, "read", lambda: letters)
    task.load()
    held_out, train = task.held_out, task.train
    task.load(validation=True)
    assert held_out.shape == task.held_out.shape == (2, modules.text.CONTEXT + 1)
    assert held_out.unique().tolist() == [19]
    assert task.held_out.unique().tolist() == [9]
    assert torch.equal(train, task.train)
    assert train.unique().tolist() == [number for number in range(20) if number not in (9, 19)]


def test_notes_are_read_with_ties_rests_and_backups(modules):
    part = importlib.import_module("xml.etree.ElementTree").fromstring(
        "<part><measure><attributes><divisions>2</divisions></attributes>"
        "<note><pitch><step>C</step><octave>4</octave></pitch><duration>2</duration><tie type='start'/></note>"
        "<note><pitch><step>C</step><octave>4</octave></pitch><duration>1</duration><tie type='stop'/></note>"
        "<note><rest/><duration>1</duration></note><backup><duration>1</duration></backup>"
        "<note><pitch><step>B</step><alter>-1</alter><octave>3</octave></pitch><duration>4</duration></note>"
        "<note><chord/><pitch><step>D</step><octave>4</octave></pitch><duration>4</duration></note>"
        "</measure></part>"
    )
    notes = [tuple(note) for note in modules.chorales.read_part(part)]
    assert notes == [(0.0, 1.5, 60), (1.5, 3.5, 58), (1.5, 3.5, 62)]


def test_the_separator_keeps_the_length_and_scales_with_its_input(modules):
    torch.manual_seed(0)
    network = modules.demucs_net.Separator(stems=4, channels=4, depth=3)
    mixtures = torch.randn(2, 256)
    stems = network(mixtures)
    assert stems.shape == (2, 4, 256)
    torch.testing.assert_close(network(100 * mixtures), 100 * stems, rtol=0.02, atol=0.05)


def test_sdr_of_a_known_distortion(modules):
    task = modules.music.Music()
    task.held_out = torch.full((1, 4, 64), 1000, dtype=torch.int16)
    off = 1000 / modules.music.FULL_SCALE * 1.1
    scores = task.scores(lambda mixtures: torch.full((1, 4, 64), off))
    assert scores == pytest.approx([20.0], abs=1e-3)


# -- the grid ---------------------------------------------------------------------------------------------


@pytest.fixture
def store(modules, tmp_path):
    return modules.store.Store(tmp_path / "experiment.json", modules.images.ImagesResnet.recipe)


def row(label: str, seed: int, method, megabytes: float, scores: str) -> dict:
    right = [int(digit) for digit in scores]
    return {
        "label": label,
        "seed": seed,
        "method": method.stored(),
        "megabytes": megabytes,
        "megabytes_on_disk": megabytes + 0.01,
        "quality": 100 * sum(right) / len(right),
        "seconds": 1.0,
        "scores": scores,
    }


def test_a_store_keeps_its_rows_and_begins_anew_with_another_recipe(modules, store, capsys):
    make = modules.methods.Method
    store.add([row("float32", 1, make("float32"), 1.0, "11")])
    store.add([row("float32", 0, make("float32"), 1.0, "10"), row("float32", 1, make("float32"), 1.0, "01")])
    stored = json.loads(store.path.read_text())
    assert [(found["seed"], found["scores"]) for found in stored["rows"]] == [(0, "10"), (1, "01")]
    assert {"machine", "versions", "recipe", "rows"} == set(stored)
    assert stored["versions"]["diffq_fast"] == diffq_fast.__version__
    recipe = modules.images.ImagesResnet.recipe
    same = modules.store.Store(store.path, replace(recipe, penalties=(1.0,)))
    assert [same.has("float32", seed) for seed in range(3)] == [True, True, False]
    assert capsys.readouterr().out == ""
    assert modules.store.Store(store.path, replace(recipe, steps=1)).rows == []
    assert "beginning anew" in capsys.readouterr().out


def test_a_store_goes_on_with_settings_that_json_gives_back_otherwise(modules, tmp_path, capsys):
    """Tuples are read as lists, and are the same settings all the same."""
    settings = SimpleNamespace(stored=lambda: {"voices": ("a", "b")})
    modules.store.Store(tmp_path / "voices.json", settings).add([{"label": "float32", "seed": 0}])
    assert modules.store.Store(tmp_path / "voices.json", settings).has("float32", 0)
    assert capsys.readouterr().out == ""


def test_what_another_machine_measured_stays_beside_new_rows(modules, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, settings = tmp_path / "benchmarks" / "results", SimpleNamespace(stored=dict)
    for machine in "abac":
        monkeypatch.setattr(modules.store.mnist_claim, "conditions", lambda at=machine: {"machine": at})
        modules.store.continued("voices", settings).add([{"label": machine, "seed": 0}])
    names = ["experiment_voices.json", "experiment_voices_more.json", "experiment_voices_more2.json"]
    assert [json.loads((folder / name).read_text())["machine"] for name in names] == ["a", "b", "c"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_the_grid_lists_what_is_missing(modules, store, monkeypatch, tmp_path):
    monkeypatch.setattr(modules.grid, "CACHE", tmp_path)
    plan = modules.grid.Plan(("images_resnet",))
    stages = modules.grid.stages(plan, {"images_resnet": store})
    assert [{(unit.seed, unit.method is None) for unit in stage} for stage in stages] == [
        {(seed, start)} for seed in range(3) for start in (True, False)
    ] + [{(0, True)}, {(0, False)}]
    labels = [unit.label for unit in stages[3]]
    assert labels[0] == "float32"
    assert {"QAT 2 bits", "QAT 8 bits", "LSQ 4 bits", "DiffQ penalty 2", "SizeTarget 12x"} < set(labels)
    assert len(set(labels)) == len(labels) == 1 + 4 + 1 + 4 + 3
    taught = [method.label for method in modules.methods.coded_methods(modules.text.Text().recipe)][7:]
    assert taught[2:] == ["Rate 16x, packed half-way, taught", "SizeTarget 8x, taught", "SizeTarget 12x, taught"]
    assert [unit.label for unit in stages[-1]] == [
        *(f"DiffQ penalty 2, {other}" for other in ("g=4", "g=16", "uniform", "g=16, range per group")),
        *(f"SizeTarget 8x, {other}" for other in ("g=8", "gaussian", "noise to the end")),
    ]

    for label in labels:
        store.add([row(label, 1, modules.methods.Method("float32"), 1.0, "1")])
    (tmp_path / "images_resnet_seed2.safetensors").touch()
    rest = modules.grid.stages(plan, {"images_resnet": store})
    assert rest == [stages[0], stages[1], stages[5], *stages[6:]]


def test_coded_sizes_have_a_grid_and_a_file_of_their_own(modules, store, monkeypatch, tmp_path):
    monkeypatch.setattr(modules.grid, "CACHE", tmp_path)
    plan = modules.grid.Plan(("images_vit",), seeds=(1,), coded=True)
    starts, trainings = modules.grid.stages(plan, {"images_vit": store})
    assert [unit.method for unit in starts] == [None]
    coded = ["Rate 8x", "Rate 12x", "Rate 16x"]
    assert [unit.label for unit in trainings] == ["float32", *coded, *(f"{label}, packed half-way" for label in coded)]
    assert plan.path("images_vit").name == "experiment_images_vit_coded.json"
    assert modules.grid.Plan(("images_vit",)).path("images_vit").name == "experiment_images_vit.json"


def test_the_grid_runs_what_is_missing_and_goes_on_where_it_ended(modules, resnet, monkeypatch, tmp_path, capsys):
    """In this process instead of in a pool of others: two methods, the second start has one of them left."""
    done = []

    class Pool:
        def __init__(self, jobs, mp_context):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def submit(self, work, plan, unit, rounds):
            future = importlib.import_module("concurrent.futures").Future()
            done.append(unit.label)
            future.set_result(work(plan, unit, rounds))
            return future

    resnet.load = lambda validation=False: None
    monkeypatch.setattr(modules.grid, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(modules.grid, "CACHE", tmp_path)
    monkeypatch.setattr(modules.grid.Plan, "task", lambda plan, name: resnet)
    monkeypatch.setattr(modules.grid, "results_path", lambda name, quick: tmp_path / f"{name}.json")
    monkeypatch.setattr(modules.grid, "secondary_methods", lambda recipe: [])
    methods = [modules.methods.Method("float32"), modules.methods.Method("diffq", penalty=1.0)]
    plan = modules.grid.Plan(("images_resnet",), seeds=(0,))
    for count in (1, 2):
        monkeypatch.setattr(modules.grid, "core_methods", lambda recipe, count=count: methods[:count])
        modules.grid.run_grid(plan, jobs=1)
    assert done == ["start", "float32", "DiffQ penalty 1"]
    assert "min left" in capsys.readouterr().out
    stored = json.loads((tmp_path / "images_resnet.json").read_text())["rows"]
    assert len(stored) == 2 * (1 + 4 + 1)  # each once more with its batch norms' statistics anew


# -- tables and plots -------------------------------------------------------------------------------------


@pytest.fixture
def stored_rows(modules):
    """Three seeds of float32 and of two methods, 10 examples each."""
    make = modules.methods.Method
    rows = []
    for seed in range(3):
        rows.append(row("float32", seed, make("float32"), 1.0, "1111111100"))
        rows.append(row("PTQ 4 bits", seed, make("ptq", bits=4), 0.125, "1111100000"))
        rows.append(
            row("DiffQ penalty 1", seed, make("diffq", penalty=1.0), 0.1, "1111111" + "1" * seed + "0" * (3 - seed))
        )
    rows.append(row("DiffQ penalty 1, g=4", 0, make("diffq", penalty=1.0, group_size=4), 0.11, "1111111111"))
    return rows


def test_summary_of_a_stored_file(modules, stored_rows):
    task = modules.images.ImagesResnet()
    results = {found.label: found for found in modules.summary.summarise(task, stored_rows)}
    learned = results["DiffQ penalty 1"]
    assert (learned.seeds, learned.times_smaller, learned.quality) == (3, pytest.approx(10), pytest.approx(80))
    assert learned.quality_spread == pytest.approx(10)
    assert learned.difference == pytest.approx(0)
    assert learned.interval[0] < 0 < learned.interval[1]
    assert results["PTQ 4 bits"].difference == pytest.approx(-30)
    assert results["PTQ 4 bits"].interval == (pytest.approx(-60, abs=1), pytest.approx(0, abs=1))
    assert [label for label, found in results.items() if found.on_front] == ["DiffQ penalty 1"]  # float32 is not better
    assert results["DiffQ penalty 1, g=4"].seeds == 1


def test_coded_runs_are_held_against_the_float32_beside_them(modules, stored_rows):
    task = modules.images.ImagesResnet()
    make = modules.methods.Method
    coded = [row("float32", 0, make("float32"), 1.0, "1000000000")]
    coded.append(row("PTQ 4 bits", 0, make("ptq", bits=4), 0.1, "1111111111"))
    coded.append(row("Rate 16x", 0, make("rate", times=16), 1 / 16, "1100000000"))
    results = modules.summary.summarise(task, stored_rows, coded=coded)
    assert [found.label for found in results].count("float32") == 1
    assert next(found for found in results if found.label == "PTQ 4 bits").difference == pytest.approx(-30)
    assert results[-1].label == "Rate 16x"
    assert (results[-1].difference, results[-1].times_smaller) == (pytest.approx(10), pytest.approx(16))


def test_the_verdict_names_what_reaches_the_aim_and_says_so_if_nothing_does(modules, stored_rows):
    task = modules.images.ImagesResnet()
    results = modules.summary.summarise(task, stored_rows)
    assert modules.tables.verdict(task, results).endswith("met by DiffQ penalty 1 (10.0×, +0.00).")
    worse = [found._replace(difference=found.difference - 1) for found in results]
    assert "**not met**; nearest is DiffQ penalty 1 (10.0×, -1.00)" in modules.tables.verdict(task, worse)
    assert "no run of several seeds" in modules.tables.verdict(task, results[:1])


def test_the_table_has_a_line_per_method_in_the_order_of_sizes(modules, stored_rows):
    task = modules.images.ImagesResnet()
    lines = modules.tables.full_table(task, modules.summary.summarise(task, stored_rows)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "float32",
        "PTQ 4 bits",
        "DiffQ penalty 1, g=4",
        "DiffQ penalty 1",
    ]
    assert lines[5].startswith("| DiffQ penalty 1 | 3 | 10.0× | 0.100 | 0.110 | 80.000 ± 10.000 | +0.00 (")
    assert lines[5].endswith("| ● |")


def test_the_short_table_has_the_best_of_each_kind_that_is_small_enough(modules, stored_rows):
    task = modules.images.ImagesResnet()
    labels = ["QAT 4 bits", "QAT 3 bits", "QAT 8 bits"]
    sizes, scores = (0.14, 0.1, 0.25), ("1111111100", "1111111000", "1111111111")  # of 1 MB
    rows = list(stored_rows)
    for label, size, score in zip(labels, sizes, scores, strict=True):
        method = modules.methods.Method("qat", bits=int(label.split()[1]))
        rows += [row(label, seed, method, size, score) for seed in range(2)]
    lines = modules.tables.short_rows(task, modules.summary.summarise(task, rows))
    named = [line.split("|")[2].strip() for line in lines]
    assert named == ["float32", "PTQ 4 bits", "QAT 4 bits", "DiffQ penalty 1"]  # not QAT 8 bits, 4 times smaller


def test_the_peer_table_pairs_the_seeds(modules):
    method = modules.methods.Method("diffq", penalty=1.0)
    rows = []
    for seed in range(3):
        for label, seconds in (("diffq 0.2.4", 3.0), ("diffq_fast", 2.0)):
            scores = "1110" if label == "diffq_fast" and seed == 0 else "1100"
            rows.append(row(label, seed, method, 0.1, scores) | {"cpu_seconds": seconds})
    table = modules.peer_table.peer_table(modules.images.ImagesVit(), rows)
    assert "| diffq 0.2.4 | 3 | 3.0 ± 0.0 | 1.0 ± 0.0 | 0.1000 ± 0.0000 | 50.00 ± 0.00 |" in table
    assert "diffq_fast against diffq 0.2.4: +8.33 points, 95 % interval -27.52 to +44.19" in table
    assert table.endswith("1.50 times less processor time.")


def test_the_penalty_table_pairs_each_penalty_with_its_target(modules):
    task = modules.text.Text()
    by_hand = row("penalty 2", 1, modules.methods.diffq(2.0), 0.2, [math.log(4.0)] * 3)
    led = row("SizeTarget for 2", 1, modules.methods.size_target(6.0), 0.19, [math.log(3.96)] * 3)
    table = modules.penalty_table.penalty_table(task, [by_hand | {"quality": 4.0}, led | {"quality": 3.96}])
    assert table.splitlines()[2:] == ["| 1 | 2 | 0.2000 | 4.0000 | 0.1900 | 3.9600 | +1.01 |"]


def test_the_ranges_table_pairs_rows_of_one_size(modules):
    task = modules.text.Text()
    rows = []
    for times in (8.0, 12.0):
        for label, perplexity in (("range per tensor, of the weights", 4.0), ("range per group", 3.96)):
            made = row(
                f"SizeTarget {times:g}x, {label}",
                0,
                modules.methods.size_target(times),
                0.1,
                [math.log(perplexity)] * 3,
            )
            rows.append(made | {"quality": perplexity, "seconds": 71.4})
    lines = modules.ranges_table.ranges_table(task, rows).splitlines()[2:]
    assert lines[0] == "| 8x | range per tensor, of the weights | 0.1000 | 0.1100 | 4.0000 |  | 71 |"
    assert lines[3] == "| 12x | range per group | 0.1000 | 0.1100 | 3.9600 | +1.01 (+1.01 to +1.01) | 71 |"


def test_put_replaces_only_what_stands_between_the_marks(modules, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    modules.tables.put(page, "a", "new \\1")
    assert page.read_text() == "before\n<!-- a -->\nnew \\1\n<!-- end of a -->\nafter\n"
    with pytest.raises(ValueError, match=r"expected the lines <!-- b --> and <!-- end of b -->, found False and False"):
        modules.tables.put(page, "b", "new")


def test_the_plot_is_written(modules, stored_rows, tmp_path):
    task = modules.images.ImagesResnet()
    modules.plots.plot(task, modules.summary.summarise(task, stored_rows), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_perplexity_differences_are_logarithms_in_per_cent(modules):
    task = modules.text.Text()
    plain, worse = np.full(5, math.log(4.0)), np.full(5, math.log(4.08))
    assert task.quality(worse) / task.quality(plain) == pytest.approx(1.02)
    assert task.differences(worse, plain).mean() == pytest.approx(-1.98, abs=0.01)


@pytest.mark.parametrize("name", ["images_vit", "images_resnet", "text", "music"])
def test_the_figures_on_the_page_are_those_that_are_stored(modules, monkeypatch, name):
    """All but the intervals, whose bootstrap takes long."""
    monkeypatch.setattr(modules.summary.mnist_claim, "bootstrap_interval", lambda differences: (0.0, 0.0))
    task = modules.summary.task_named(name)
    page = (ROOT / "docs" / "experiments.md").read_text()
    monkeypatch.chdir(ROOT)
    rows = modules.summary.read(ROOT / "benchmarks" / "results" / f"experiment_{name}.json")["rows"]
    section = page.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]
    shown = [line.rsplit(" (", 1)[0] for line in section.splitlines() if line.startswith("| ")]
    coded = modules.summary.coded_rows(name)
    made = modules.tables.full_table(task, modules.summary.summarise(task, rows, coded=coded)).splitlines()
    assert len(rows) > 10
    assert coded
    assert shown == [line.rsplit(" (", 1)[0] for line in made if line.startswith("| ")]


def test_the_tables_of_minilm_are_made_from_what_is_stored(modules, monkeypatch):
    """All but the intervals, whose bootstrap takes long."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(modules.summary.mnist_claim, "bootstrap_interval", lambda differences: (0.0, 0.0))
    tables = modules.minilm_table
    packed, trained, peers = (tables.rows_of(name) for name in ("post_training", "rate_minilm", "minilm_peers"))
    ours = [row for row in packed + trained if row["method"] in tables.OURS]
    others = tables.rows_of("minilm_trained")
    for page, mark, made in (
        ("experiments", "post_training", tables.post_training_table(packed)),
        ("experiments", "rate_minilm", tables.training_table(trained)),
        ("experiments", "minilm_peers", tables.peer_table(peers, ours)),
        ("experiments", "minilm_trained", tables.trained_table(others, trained)),
        ("post_training", "minilm", tables.short_table(packed + peers)),
    ):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        section = text.split(f"<!-- {mark} -->")[1].split(f"<!-- end of {mark} -->")[0]
        shown = [line.rsplit(" (", 1)[0] for line in section.strip().splitlines()]
        assert len(shown) > 6
        assert shown == [line.rsplit(" (", 1)[0] for line in made.splitlines()]


def test_the_tables_of_the_audio_networks_are_made_from_what_is_stored(modules, monkeypatch):
    """All but the intervals, whose bootstrap takes long."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(modules.summary.mnist_claim, "bootstrap_interval", lambda differences: (0.0, 0.0))
    page = (ROOT / "docs" / "experiments.md").read_text()
    made = modules.audio_table.tables()
    assert "torchcrepe" in made
    for mark, table in made.items():
        section = page.split(f"<!-- {mark} -->")[1].split(f"<!-- end of {mark} -->")[0]
        shown = [line.rsplit(" (", 1)[0] for line in section.strip().splitlines()]
        assert len(shown) > 6
        assert shown == [line.rsplit(" (", 1)[0] for line in table.splitlines()]


def test_crepes_forms_are_one_network(modules):
    """Convolutions of matrices, linear layers over windows, and torch's own layers."""
    torch.manual_seed(0)
    model = modules.crepe.Crepe("tiny").eval()
    frames = torch.randn(3, modules.crepe.FRAME)
    with torch.no_grad():
        expected = model(frames)
        torch.testing.assert_close(modules.crepe.of_convolutions(model)(frames), expected, rtol=1e-4, atol=1e-5)
        model.as_linear = True
        torch.testing.assert_close(model(frames), expected, rtol=1e-4, atol=1e-5)


def test_the_pitch_of_a_peak_is_the_mean_of_its_bins(modules):
    class Peak(torch.nn.Module):
        def forward(self, frames):
            logits = torch.full((len(frames), modules.crepe.BINS), -20.0)
            logits[0, 100], logits[0, 101], logits[1, 0] = 3.0, 3.0, 3.0
            return logits

    cents = modules.crepe.cents_of(Peak(), torch.zeros(2, modules.crepe.FRAME))
    assert (cents - modules.crepe.LOWEST_CENTS).tolist() == pytest.approx([20 * 100.5, 0], abs=0.01)


def test_a_pitch_judge_knows_the_network_it_was_made_with_and_one_that_is_an_octave_off(modules):
    class Octave(torch.nn.Module):
        def __init__(self, bins):
            super().__init__()
            self.bins = bins

        def forward(self, frames):
            return 40.0 * torch.nn.functional.one_hot(torch.full((len(frames),), self.bins), 360) - 20

    crepe = modules.crepe
    pitch = 10 * 2 ** ((crepe.LOWEST_CENTS + 2000) / 1200)
    clip = modules.notes.Clip(np.random.default_rng(0).standard_normal(4096).astype(np.float32), np.full(4096, pitch))
    judge = crepe.PitchJudge(Octave(100), [clip, clip], 512)
    same, higher = judge.row(Octave(100)), judge.row(Octave(160))
    assert (same["near"], same["cents"], same["right"], same["scores"]) == (1.0, 0.0, 1.0, [1.0, 1.0])
    assert (higher["near"], higher["right"]) == (0.0, 0.0)
    assert higher["cents"] == pytest.approx(1200, abs=0.1)


def test_synthesised_notes_have_the_pitch_that_they_say(modules):
    """Harmonics fall off, so the strongest line of the spectrum is the first; vibrato moves it by half a semitone."""
    for clip in modules.notes.synthesised(4, 1.0, 0):
        spectrum = np.abs(np.fft.rfft(clip.samples * np.hanning(len(clip.samples))))
        assert abs(12 * np.log2(spectrum.argmax() / clip.pitch.mean())) < 0.7, clip.pitch.mean()


def test_mel_filters_have_area_one_and_follow_each_other(modules):
    filters = modules.voice_encoder.mel_filters()
    assert filters.shape == (40, 201)
    assert (np.diff(filters.argmax(1)) >= 0).all()
    assert filters[20:].sum(1) * 40 == pytest.approx(np.ones(20), rel=0.05)  # 40 Hz between two lines


def test_the_summary_shows_rows_of_the_whole_tables():
    """Each row of the summary, its interval too, is one of its task's table; every task has a float32 row."""
    page = (ROOT / "docs" / "experiments.md").read_text()

    def section(mark):
        lines = page.split(f"<!-- {mark} -->")[1].split(f"<!-- end of {mark} -->")[0].splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]

    shown = section("summary")
    assert [row[0] for row in shown if row[1] == "float32"] == ["images_vit", "images_resnet", "text", "music"]
    for task, *row in shown:
        assert row in [[each[0], each[2], each[5], each[6]] for each in section(task)], (task, row)
