"""What commit 4576c40 wrote is read, and what it computed comes out again; ``earlier.py`` says how it was recorded."""

import json

import pytest
import torch

from diffq_fast import load, save
from house import earlier

RECORD = json.loads(earlier.RECORD.read_text(encoding="utf-8"))
LOSS = 1e-4  # relative: sums and exponentials differ in their last bits between processors, noise does in its first
BFLOAT16 = 2e-2  # the same where matrices are multiplied in bfloat16

pytestmark = pytest.mark.filterwarnings("ignore:legacy state")


@pytest.fixture(autouse=True)
def generator():
    """Leaves torch's generator as it was found."""
    with torch.random.fork_rng():
        yield


def ids(cases):
    return {"argvalues": cases, "ids": list(map(str, cases))}


def close(value, tolerance=LOSS):
    return pytest.approx(value, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("case", **ids(earlier.WRITTEN))
def test_files_and_states_are_the_same_bytes(case):
    now, then = earlier.written(case), dict(RECORD["written"][str(case)])
    for name in ("size", "true size"):
        assert now.pop(name) == pytest.approx(then.pop(name), rel=1e-6)
    assert now == then
    assert now["weights come back"]


@pytest.mark.parametrize("case", **ids([case for case, _ in earlier.STATES.values()]))
def test_stored_states_take_as_much_as_before(case):
    then = RECORD["stored sizes"][str(case)]
    assert earlier.stored_sizes(case) == pytest.approx(then, rel=0.1)  # versions of PyTorch and zlib differ


@pytest.mark.parametrize("case", **ids(earlier.FROZEN))
def test_bits_freeze_at_the_same_widths(case):
    assert earlier.frozen(case) == RECORD["frozen"][str(case)]


@pytest.mark.parametrize("case", **ids(earlier.TRAINED))
def test_trainings_have_the_same_losses(case):
    now, then = earlier.trained(case), RECORD["trained"][str(case)]
    for name in ("losses", "outputs", "size"):
        assert now[name] == close(then[name]), name


def test_a_training_under_autocast_has_the_same_losses():
    ((case, then),) = RECORD["trained under autocast"].items()
    now = earlier.trained(earlier.Case(*case.split(", ")), autocast=True)
    assert now["losses"] == close(then["losses"], BFLOAT16)


def test_a_size_target_leads_the_same_way():
    ((case, then),) = RECORD["led to a size"].items()
    now = earlier.led_to_a_size(earlier.Case(*case.split(", ")))
    assert now["losses"] == close(then["losses"], 1e-3)
    assert now["size"] == pytest.approx(then["size"], rel=1e-3)


@pytest.mark.parametrize("name", earlier.PACKED)
def test_packed_files_of_then_hold_the_same_tensors(name):
    assert earlier.tensors(earlier.DATA / f"{name}.safetensors") == RECORD["tensors"][name]


@pytest.mark.parametrize("name", earlier.PACKED)
def test_packed_files_of_then_fill_a_model_that_writes_them_again(name, tmp_path):
    case, logits = earlier.PACKED[name]
    path = earlier.DATA / f"{name}.safetensors"
    filled = load(path, earlier.MODELS[case.model]()).state_dict()
    then = RECORD["tensors"][name]
    assert all(earlier.digest(value) == then[each] for each, value in filled.items())
    again = tmp_path / "again.safetensors"
    save(case.make()[1], again, logits=logits)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", earlier.STATES)
def test_stored_states_of_then_restore_the_same_parameters(name):
    case, _ = earlier.STATES[name]
    assert earlier.restored(earlier.DATA / f"{name}.th", case) == RECORD["restored"][name]


@pytest.mark.parametrize("name", earlier.CONVERTED)
def test_convert_writes_the_same_file(name):
    assert earlier.converted(name) == RECORD["converted"][name]
