"""Faults put into compiled kernels are noticed: one of each kind here, all in ``mutation_table.py``."""

from __future__ import annotations

import importlib.util
import re

import pytest

from support.emulation import checked_emulation
from support.paths import ROOT
from support.triton_weights import INTERPRETED, needs_triton

pytestmark = [needs_triton, pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")]

HAS_TRITON = importlib.util.find_spec("triton") is not None and not INTERPRETED

if HAS_TRITON:
    from emulated.mutation_table import FAILED, judge
    from emulated.subjects import subjects
    from ptx.approximations import Approximations
    from ptx.mutants import mutants_of, notice, recorded_ptx

# Which checks, the kernel, what is done to it, and where among the places for that.
FAULTS = [
    ("words", "pack_kernel", "constant off by one", 3),
    ("words", "unpack_kernel", "mask of a store removed", 0),
    ("words", "requantize_kernel", "mask of a load removed", 0),
    ("planes", "pack_planes_kernel", "mask of a load removed", 0),
    ("range per tensor", "weight_range_kernel", "barrier removed", 1),
    ("range per tensor", "weight_range_kernel", "acquire and release made relaxed", 0),
    ("one launch", "ticketed_noise_kernel", "acquire and release made relaxed", 0),
    ("one launch", "ticketed_noise_kernel", "acquire made relaxed", 0),
    ("one launch", "ticketed_noise_kernel", "release made relaxed", 0),
]


def exact_emulation():
    """Whatever ``PTX_APPROXIMATIONS`` asks for: the checks tell one bit of a fraction of noise."""
    return checked_emulation(90, approximate=Approximations())


def test_every_kernel_of_the_backend_has_mutants():
    files = (ROOT / "diffq_fast" / "backends" / "triton").glob("*_kernels.py")
    defined = [name for file in files for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)]
    subject = [name for each in subjects(None).values() for name in each.kernels]
    assert sorted(subject) == sorted(defined)


@pytest.mark.parametrize("name", list(subjects(None)) if HAS_TRITON else [])
def test_every_kernel_runs_as_compiled(name):
    with exact_emulation() as emulator:
        subject = subjects(emulator)[name]
        ptx = recorded_ptx(emulator, subject.make())
        assert set(subject.kernels) <= set(ptx)


@pytest.mark.parametrize("check", dict.fromkeys(fault[0] for fault in FAULTS))
def test_faults_are_noticed(check):
    faults = [fault[1:] for fault in FAULTS if fault[0] == check]
    with exact_emulation() as emulator:
        run = subjects(emulator)[check].make()
        ptx = recorded_ptx(emulator, run)
        assert not emulator.problems.serious()
        for kernel, kind, place in faults:
            mutant = mutants_of(ptx[kernel][0], kind)[place]
            assert notice(emulator, mutant, run), f"{kernel}: {mutant} was not noticed"


def test_a_store_of_what_others_store_is_told_apart():
    """The sum of a piece, which all threads have, is stored by one of them: it does no harm if all do."""
    with exact_emulation() as emulator:
        run = subjects(emulator)["uniform noise"].make()
        (ptx,) = recorded_ptx(emulator, run)["piece_sums_kernel"]
        (mutant,) = mutants_of(ptx, "mask of a store removed")
        assert judge(emulator, "piece_sums_kernel", mutant, run).startswith("equivalent: threads that the mask kept")


def test_each_set_of_arguments_has_mutants_of_its_own():
    """Groups of 8 and of 300 are compiled apart: a fault in the one leaves the other as it is."""
    with exact_emulation() as emulator:
        run = subjects(emulator)["uniform noise"].make()
        one, other = recorded_ptx(emulator, run)["uniform_noise_kernel"]
        last = [mutants_of(each, "mask of a store removed")[-1] for each in (one, other)]
        assert [last[0](one) != one, last[0](other) == other, last[1](other) != other] == [True] * 3
        for mutant in last:
            assert judge(emulator, "uniform_noise_kernel", mutant, run).startswith("caught: access outside")
        with pytest.raises(LookupError, match="launches the kernel of Mutant"):
            notice(emulator, last[0], lambda: None)
        assert judge(emulator, "uniform_noise_kernel", last[0], lambda: None).startswith(FAILED)
