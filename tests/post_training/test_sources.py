"""post_training.sources: every kind of checkpoint gives the same tensors, one at a time, and bad ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffq_fast.post_training.sources import Source, open_source
from support.packed_examples import DATA

STATE = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.ones(2, 2, dtype=torch.bfloat16),
    "b.bias": torch.full((3,), 0.5, dtype=torch.float16),
    "count": torch.tensor(7),
}


def write_shards(folder: Path, kind: str) -> Path:
    """Two shards and their index."""
    names = list(STATE)
    parts = {f"part-1.{kind}": names[:2], f"part-2.{kind}": names[2:]}
    for file_name, chosen in parts.items():
        state = {name: STATE[name] for name in chosen}
        if kind == "bin":
            torch.save(state, folder / file_name)
        else:
            save_file(state, folder / file_name)
    stem = "pytorch_model.bin" if kind == "bin" else "model.safetensors"
    index = folder / f"{stem}.index.json"
    weight_map = {name: file_name for file_name, chosen in parts.items() for name in chosen}
    index.write_text(json.dumps({"metadata": {"total_size": 1.5}, "weight_map": weight_map}))
    return index


def write(folder: Path, kind: str) -> Path:
    if kind in ("index of safetensors", "index of bin"):
        return write_shards(folder, kind.split()[-1])
    if kind == "folder":
        return write_shards(folder, "safetensors").parent
    if kind == "safetensors":
        save_file(STATE, folder / "model.safetensors")
        return folder / "model.safetensors"
    value = {"model": STATE, "epoch": 3} if kind == "nested" else STATE
    torch.save(value, folder / "model.pt", _use_new_zipfile_serialization=kind != "old pt")
    return folder / "model.pt"


@pytest.mark.parametrize(
    "kind", ["safetensors", "pt", "old pt", "nested", "index of safetensors", "index of bin", "folder"]
)
def test_every_kind_of_checkpoint_gives_its_tensors(kind, tmp_path):
    with open_source(write(tmp_path, kind)) as source:
        assert set(source.entries) == set(STATE)
        for name, expected in STATE.items():
            found = source.tensor(name)
            assert found.dtype == expected.dtype == source.entries[name].dtype
            assert torch.equal(found, expected)
            assert source.entries[name].count == expected.numel()


def test_tied_tensors_of_a_torch_file_are_one(tmp_path):
    shared = torch.randn(4, 4)
    torch.save({"embedding": shared, "head": shared, "view": shared.T}, tmp_path / "tied.pt")
    with open_source(tmp_path / "tied.pt") as source:
        assert source.ties == {"head": "embedding"}
        assert list(source.entries) == ["embedding", "view"]
        assert torch.equal(source.tensor("view"), shared.T)


def test_of_torch_shards_one_is_in_memory_at_a_time(tmp_path):
    with open_source(write_shards(tmp_path, "bin")) as source:
        shards = {id(each): each for each in source._shards.values()}.values()
        source.tensor("a.weight")
        source.tensor("count")
        assert sum(each._tensors is not None for each in shards) == 1


def test_a_pickle_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": STATE, "other": Hostile()}, tmp_path / "hostile.pt")
    with open_source(tmp_path / "hostile.pt") as source:
        assert isinstance(source, Source)
        assert set(source.entries) == set(STATE)
    assert not (tmp_path / "ran").exists()


def index_with(folder: Path, weight_map: object) -> Path:
    write_shards(folder, "safetensors")
    (folder / "x.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder / "x.index.json"


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (["a.weight"], "expected an object weight_map"),
        ({"a.weight": 3}, "expected an object weight_map"),
        ({"a.weight": "../part-1.safetensors"}, "is no file name beside the index"),
        ({"a.weight": "/etc/passwd"}, "is no file name beside the index"),
        ({"a.weight": ""}, "shard '' is no file name beside the index"),
        ({"a.weight": ".."}, "shard '..' is no file name beside the index"),
        ({"a.weight": "."}, "shard '.' is no file name beside the index"),
        ({"a.weight": "part\0"}, "is no file name beside the index"),
        ({"a.weight": "part-2.safetensors"}, "a.weight is not in part-2.safetensors, where the index has it"),
    ],
)
def test_a_wrong_index_is_named(weight_map, words, tmp_path):
    with pytest.raises(ValueError, match=r"x\.index\.json") as error, open_source(index_with(tmp_path, weight_map)):
        pass
    assert words in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
    index = index_with(tmp_path, {"a.weight": "part-3.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"part-3\.safetensors"), open_source(index):
        pass


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.bin").write_text("no checkpoint at all")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    for place, words in [
        (tmp_path / "text.bin", "not a readable torch.save file"),
        (tmp_path / "list.pt", "expected a state dict, found list"),
        (tmp_path / "numbers.pt", "found no tensor under a name"),
        (tmp_path, r"expected one of model\.safetensors\.index\.json, .* in this folder"),
        (DATA / "packed_v1_kinds.safetensors", "this file is packed already"),
    ]:
        with pytest.raises(ValueError, match=words), open_source(place):
            pass
