"""Standing in for diffq. Each test of the alias runs in a process of its own, since it changes sys.modules."""

import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer, restore_quantized_state, save_legacy
from diffq_fast.legacy.state import load_legacy
from support.paths import ROOT


def run(program, *arguments, folder=None):
    """Run a program that stands for a user's; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder or ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_of_diffq_resolve_here():
    run(
        """
import importlib, importlib.util, sys
import diffq_fast
diffq_fast.install_as_diffq()
diffq_fast.install_as_diffq()
import diffq
from diffq import DiffQuantizer, LSQ, UniformQuantizer, restore_quantized_state, ts_export
from diffq.diffq import DiffQuantizer as Again
from diffq.base import BaseQuantizer, restore_quantized_state as restore
from diffq.uniform import UniformQuantizer as Uniform, uniform_quantize, uniform_unquantize
from diffq.lsq import LSQ as Lsq
from diffq.bitpack import pack, unpack
from diffq.torch_pack import pack as torch_pack
from diffq.ts_export import export
assert DiffQuantizer is Again is diffq_fast.DiffQuantizer is importlib.import_module("diffq.diffq").DiffQuantizer
assert Uniform is UniformQuantizer is diffq_fast.UniformQuantizer and Lsq is LSQ is diffq_fast.LSQ
assert restore is restore_quantized_state is diffq_fast.restore_quantized_state
assert issubclass(DiffQuantizer, BaseQuantizer) and diffq.ts_export is ts_export
assert diffq.bitpack.pack is pack and diffq.diffq.DiffQuantizer is DiffQuantizer
assert [klass.__module__ for klass in (DiffQuantizer, UniformQuantizer, LSQ)] == [
    "diffq.diffq", "diffq.uniform", "diffq.lsq"
]
assert diffq.__version__.startswith("0.2.4+diffq_fast.")
assert importlib.util.find_spec("diffq") is not None
try:
    import diffq.nothing
except ModuleNotFoundError:
    pass
else:
    raise AssertionError
assert diffq.save is diffq_fast.save
assert not hasattr(diffq, "nothing")
"""
    )


def test_what_is_pickled_carries_diffqs_names_and_comes_back(tmp_path):
    program = """
import pickle, sys
import torch
from torch import nn
import diffq_fast
diffq_fast.install_as_diffq()
import diffq
for klass in (diffq.DiffQuantizer, diffq.UniformQuantizer, diffq.LSQ):
    model, other = nn.Linear(16, 16), nn.Linear(16, 16)
    quantizer = klass(model, min_size=0)
    state = quantizer.get_quantized_state()
    data = pickle.dumps(state["meta"])
    assert b"diffq." in data and b"diffq_fast" not in data, data
    assert pickle.loads(data)["klass"] is klass
    torch.save(state, "state.th")
    loaded = torch.load("state.th")
    assert loaded["meta"]["klass"] is klass
    diffq.restore_quantized_state(other, loaded)
    with quantizer.enter_quantize():
        assert torch.equal(other.weight, model.weight)
    twin = pickle.loads(pickle.dumps(quantizer))
    assert type(twin) is klass and torch.equal(twin.model.weight, model.weight)
"""
    run(program, folder=tmp_path)


@pytest.mark.parametrize("name", ["diffq", "diffq.bitpack"])
def test_another_diffq_that_is_imported_is_refused_and_nothing_changes(name):
    program = f"""
import sys, types
other = types.ModuleType({name!r})
other.__file__ = "/somewhere/diffq/__init__.py"
sys.modules[{name!r}] = other
before = dict(sys.modules)
import diffq_fast
try:
    diffq_fast.install_as_diffq()
except RuntimeError as error:
    assert "{name} is imported already, from /somewhere/diffq/__init__.py; call install_as_diffq() before" in str(error)
else:
    raise AssertionError
assert sys.modules[{name!r}] is other
assert [each for each in sys.modules if each.split(".")[0] == "diffq"] == [{name!r}]
assert diffq_fast.DiffQuantizer.__module__ == "diffq_fast.quantizers.diffq"
"""
    run(program)


@pytest.mark.peer
def test_the_real_diffq_is_refused():
    run(
        """
import diffq
import diffq_fast
try:
    diffq_fast.install_as_diffq()
except RuntimeError as error:
    assert diffq.__file__ in str(error)
else:
    raise AssertionError
"""
    )


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("torch_pack", [True, False])
def test_save_legacy_writes_diffqs_names(packed, torch_pack, tmp_path):
    for make in (
        lambda model: DiffQuantizer(model, min_size=0, group_size=8),
        lambda model: UniformQuantizer(model, bits=5, min_size=0),
        lambda model: LSQ(model, bits=5, min_size=0),
    ):
        model, other = nn.Linear(16, 16), nn.Linear(16, 16)
        quantizer = make(model)
        save_legacy(quantizer, tmp_path / "state.th", packed, torch_pack)
        data = (tmp_path / "state.th").read_bytes()
        assert b"diffq_fast" not in data
        state = load_legacy(tmp_path / "state.th")
        assert (state.packed, state.torch_pack) == (packed, packed and torch_pack)
        assert state.meta["klass"] in ("diffq.diffq.DiffQuantizer", "diffq.uniform.UniformQuantizer", "diffq.lsq.LSQ")
        restore_quantized_state(other, state)
        with quantizer.enter_quantize():
            assert torch.equal(other.weight, model.weight)


def test_save_legacy_takes_a_file_and_refuses_what_diffq_cannot_hold(tmp_path):
    file = io.BytesIO()
    save_legacy(DiffQuantizer(nn.Linear(16, 16), min_size=0), file)
    assert load_legacy(file).klass == "diffq.diffq.DiffQuantizer"
    quantizer = DiffQuantizer(nn.Linear(16, 16), min_size=0, range_scope="group")
    with pytest.raises(ValueError, match="ranges per group"):
        save_legacy(quantizer, tmp_path / "state.th")
    assert not list(tmp_path.iterdir())
