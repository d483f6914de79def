"""Damaged packed files: every flipped bit and every truncation is found, before anything is decoded."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffq_fast.packed import contents as packed_container
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.header import PackedFileError
from support.packed_examples import DATA


def golden(name: str) -> Path:
    return DATA / f"{name}.safetensors"


def refused(path: Path, blob: bytes) -> bool:
    path.write_bytes(blob)
    try:
        read_packed(path)
    except PackedFileError as error:
        return str(path) in str(error)
    return False


def test_every_flipped_bit_is_found(tmp_path):
    blob = golden("packed_v1_documented").read_bytes()
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refused(tmp_path / "damaged", damaged), f"bit {bit}"


def test_flipped_bits_are_found_in_every_kind_of_tensor(tmp_path):
    blob = golden("packed_v1_kinds").read_bytes()
    for bit in range(0, 8 * len(blob), 61):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refused(tmp_path / "damaged", damaged), f"bit {bit}"


def test_every_truncation_is_found(tmp_path):
    blob = golden("packed_v1_documented").read_bytes()
    for length in range(len(blob)):
        assert refused(tmp_path / "damaged", blob[:length]), f"{length} bytes"
    for more in (b"\0", b"\0" * 8, blob):
        assert refused(tmp_path / "damaged", blob + more)


def test_damaged_levels_are_named(tmp_path):
    blob = bytearray(golden("packed_v1_documented").read_bytes())
    blob[0x290] ^= 1
    (tmp_path / "damaged").write_bytes(blob)
    with pytest.raises(PackedFileError, match=r"damaged: w.words: checksum \w{8} stored, \w{8} found in 20 bytes"):
        read_packed(tmp_path / "damaged")


def test_nothing_is_decoded_before_all_is_verified(tmp_path, monkeypatch):
    blob = bytearray(golden("packed_v1_kinds").read_bytes())
    blob[-1] ^= 1
    (tmp_path / "damaged").write_bytes(blob)

    def decode(self, dtype=None):
        raise AssertionError("decoded a damaged file")

    monkeypatch.setattr(packed_container.PackedTensor, "unpack", decode)
    with pytest.raises(PackedFileError):
        read_packed(tmp_path / "damaged").state_dict()
