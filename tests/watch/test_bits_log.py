"""Watching a training: rows of a CSV file that outlive crashes and resumes, and TensorBoard's scalars."""

import csv

import pytest
import torch

from diffq_fast import BitsLog, DiffQuantizer, UniformQuantizer
from support.models import mlp


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    made = DiffQuantizer(mlp(), min_size=0.001, group_size=8, init_bits=6)
    for logit in made.learned_parameters():
        torch.nn.init.normal_(logit)
    return made


class Recorder:
    def __init__(self):
        self.seen = []

    def add_scalar(self, name, value, step):
        self.seen.append((name, value, step))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_holds_step_size_bits_and_scalars(quantizer, tmp_path):
    log = BitsLog(quantizer, csv=tmp_path / "bits.csv")
    log.step(0, loss=torch.tensor(0.5), price=3)
    quantizer.freeze_bits()
    log.step(1, loss=0.25, price=2.0)
    first, second = rows(tmp_path / "bits.csv")
    assert list(first) == ["step", "size_mb", "bits/0.weight", "bits/2.weight", "loss", "price"]
    assert (first["step"], first["loss"], first["price"]) == ("0", "0.5", "3.0")
    assert float(second["size_mb"]) == quantizer.true_model_size()
    for name, bits in quantizer.bits_per_weight().items():
        assert float(second[f"bits/{name}"]) == bits
        assert float(first[f"bits/{name}"]) != bits


def test_only_every_so_many_steps_are_logged(quantizer, tmp_path):
    writer = Recorder()
    log = BitsLog(quantizer, csv=tmp_path / "bits.csv", tensorboard=writer, every=5)
    for step in range(11):
        log.step(step)
    assert [row["step"] for row in rows(tmp_path / "bits.csv")] == ["0", "5", "10"]
    assert sorted({step for *_, step in writer.seen}) == [0, 5, 10]


def test_other_steps_do_not_read_what_they_are_given(quantizer):
    class Unreadable:
        def __float__(self):
            raise AssertionError

    BitsLog(quantizer, tensorboard=Recorder(), every=2).step(1, loss=Unreadable())


def test_tensorboard_reads_the_same_values(quantizer, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        log = BitsLog(quantizer, tensorboard=writer)
        for step in range(3):
            log.step(step, loss=step / 2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"size_mb", "bits/0.weight", "bits/2.weight", "loss"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert events.Scalars("size_mb")[2].value == pytest.approx(quantizer.true_model_size(), rel=1e-6)
    bits = quantizer.bits_per_weight()["0.weight"]
    assert events.Scalars("bits/0.weight")[0].value == pytest.approx(bits, rel=1e-6)


def test_a_resumed_log_goes_on_and_replaces_the_steps_that_come_again(quantizer, tmp_path):
    path = tmp_path / "bits.csv"
    log = BitsLog(quantizer, csv=path)
    for step in range(5):
        log.step(step, run=1)
    log = BitsLog(quantizer, csv=path)
    for step in (3, 4, 5):
        log.step(step, run=2)
    assert [(row["step"], row["run"]) for row in rows(path)] == [
        *((str(step), "1.0") for step in range(3)),
        *((str(step), "2.0") for step in (3, 4, 5)),
    ]


@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_line_that_a_crash_cut_off_is_removed(quantizer, tmp_path, kept):
    path = tmp_path / "bits.csv"
    log = BitsLog(quantizer, csv=path)
    log.step(0)
    log.step(1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][: int(kept * len(lines[2]))])
    BitsLog(quantizer, csv=path).step(2)
    assert [row["step"] for row in rows(path)] == ["0", "2"]
    assert all(None not in row.values() for row in rows(path))


def test_a_header_that_a_crash_cut_off_is_written_anew(quantizer, tmp_path):
    path = tmp_path / "bits.csv"
    path.write_text("step,si")
    BitsLog(quantizer, csv=path).step(4)
    assert [row["step"] for row in rows(path)] == ["4"]


def test_rows_of_a_log_that_is_never_closed_are_in_the_file(quantizer, tmp_path):
    log = BitsLog(quantizer, csv=tmp_path / "bits.csv")
    for step in range(3):
        log.step(step)
        assert len(rows(tmp_path / "bits.csv")) == step + 1


def test_other_columns_are_refused_and_the_file_is_left(quantizer, tmp_path):
    path = tmp_path / "bits.csv"
    log = BitsLog(quantizer, csv=path)
    log.step(0, loss=1)
    before = path.read_bytes()
    for later in (log, BitsLog(quantizer, csv=path)):
        with pytest.raises(ValueError, match=r"bits.csv has other columns .*differing: accuracy, loss"):
            later.step(1, accuracy=2)
    assert path.read_bytes() == before


def test_a_name_that_is_taken_is_refused(quantizer):
    with pytest.raises(ValueError, match="size_mb is logged already"):
        BitsLog(quantizer, tensorboard=Recorder()).step(0, size_mb=1)


@pytest.mark.parametrize(("options", "text"), [({}, "got neither"), ({"csv": "x", "every": 0}, "every must be")])
def test_a_log_that_could_log_nothing_is_refused(quantizer, options, text):
    with pytest.raises(ValueError, match=text):
        BitsLog(quantizer, **options)


def test_a_row_that_the_disk_takes_only_a_part_of_is_cut_back(quantizer, tmp_path):
    import resource
    import signal

    path = tmp_path / "bits.csv"
    log = BitsLog(quantizer, csv=path)
    log.step(0, loss=1.0)
    before, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limit[1]))
    try:
        with pytest.raises(OSError, match="part of the row"):
            log.step(1, loss=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    log.step(2, loss=1.0)
    assert [row["step"] for row in rows(path)] == ["0", "2"]


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (b"\n", "line 3 should have 5 columns, found 0"),
        (b"3,1\n", "line 3 should have 5 columns, found 2"),
        (b"0,1,2,3,4,5\n", "line 3 should have 5 columns, found 6"),
        (b"x,1,2,3,4\n", "line 3 should have a step's number and numbers, found 'x'"),
        (b"3,a,b,c,d\n", "line 3 .* found '3', 'a'"),
        (b'0,"1,2,3,4\n0,1,2,3,4\n', "line 4 is no row of a CSV file"),
        (b"0," + 200_000 * b"1" + b",2,3,4\n", "line 3 is no row of a CSV file"),
        (b"\xff\n", "line 3 is not UTF-8"),
    ],
)
def test_lines_that_are_no_rows_are_told_and_kept(quantizer, tmp_path, line, seen):
    path = tmp_path / "bits.csv"
    BitsLog(quantizer, csv=path).step(0, loss=1.0)
    path.write_bytes(path.read_bytes() + line)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=seen):
        BitsLog(quantizer, csv=path).step(1, loss=1.0)
    assert path.read_bytes() == before


def test_a_step_is_a_whole_number_also_in_a_tensor(quantizer, tmp_path):
    log = BitsLog(quantizer, csv=tmp_path / "bits.csv")
    log.step(torch.tensor(4))
    BitsLog(quantizer, csv=tmp_path / "bits.csv").step(5)
    assert [row["step"] for row in rows(tmp_path / "bits.csv")] == ["4", "5"]
    with pytest.raises(TypeError):
        log.step(6.5)


def test_a_quantizer_without_bits_of_its_own_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"BitsLog: expected a quantizer that learns bits.*got UniformQuantizer"):
        BitsLog(UniformQuantizer(mlp(), min_size=0), csv=tmp_path / "bits.csv")


def test_a_pipe_is_no_table(quantizer, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        BitsLog(quantizer, csv=tmp_path / "pipe").step(0, loss=1.0)
