"""pickler: a state's file is replaced whole or not at all, whoever else writes there, and says why where it is not."""

from __future__ import annotations

import os
import resource
import signal
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from diffq_fast.legacy.pickler import save_legacy_state
from diffq_fast.legacy.state import load_legacy

STATE = {"quantized": [], "float16": [], "others": [torch.arange(40_000.0)], "meta": {}}
STATE["meta"] = {"init_kwargs": {}, "klass": "diffq.diffq.DiffQuantizer", "packed": True, "torch_pack": False}


def test_threads_that_save_to_one_path_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "state.th"
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(save_legacy_state, STATE, path) for _ in range(40)]:
            done.result()
    assert os.listdir(tmp_path) == ["state.th"]
    assert torch.equal(load_legacy(path).others[0], STATE["others"][0])


def test_a_temporary_file_of_a_killed_process_is_in_nobodys_way(tmp_path):
    path = tmp_path / "state.th"
    (tmp_path / f"state.th.{os.getpid()}.tmp").touch()
    save_legacy_state(STATE, path)
    assert load_legacy(path).klass == "diffq.diffq.DiffQuantizer"


def test_the_mode_of_a_replaced_file_is_kept_and_a_link_is_followed(tmp_path):
    path = tmp_path / "state.th"
    path.touch()
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    save_legacy_state(STATE, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_legacy(path).init_kwargs == {}


def test_a_full_disk_is_an_oserror_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.th"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # a write beyond it fails like one to a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            save_legacy_state(STATE, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.th"]
