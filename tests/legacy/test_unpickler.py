"""Files of torch.save, honest and hostile: containers, tensors of every kind, pickles that would run code."""

import collections
import contextlib
import fractions
import io
import os
import pickle
import random
import struct
import zipfile

import pytest
import torch

from diffq_fast.legacy.torch_file import read_torch_file
from diffq_fast.legacy.unpickler import Inert, RestrictedUnpickler, inert_class, legacy_name


def saved(value, zipped=True, **arguments):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped, **arguments)
    return buffer.getvalue()


def read(data):
    return read_torch_file(io.BytesIO(data), "some.th")


def zip_around(pickled, storages=(), compression=zipfile.ZIP_STORED):
    """A file of torch.save with a pickle of our choice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages:
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def stream_around(pickled):
    """The same in torch's older container."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2)


class Reduces:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
     torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64],
)  # fmt: skip
def test_tensors_of_every_dtype_come_back(dtype, zipped):
    tensor = torch.arange(24).view(4, 6).to(dtype)
    state = {
        "whole": tensor,
        "view": tensor[1:3, ::2],
        "turned": tensor.t(),
        "scalar": tensor[2, 3],
        "none": tensor[:0],
    }
    back = read(saved(state, zipped))
    for key, value in state.items():
        assert back[key].dtype == dtype
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_parameters_and_ordered_dicts_come_back(zipped):
    value = collections.OrderedDict(a=torch.nn.Parameter(torch.ones(2)), b=[1, 2.5, None, True, "é", b"\x00\xff", (3,)])
    value._metadata = {"": {"version": 1}}
    back = read(saved({"state": value, "fraction": fractions.Fraction(7, 3), 5: {1, 2}}, zipped))
    assert type(back["state"]) is collections.OrderedDict
    assert torch.equal(back["state"]["a"], torch.ones(2))
    assert back["state"]["b"] == value["b"]
    assert back["fraction"] == fractions.Fraction(7, 3)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_share_a_storage_share_it_afterwards(zipped):
    tensor = torch.zeros(6)
    back = read(saved([tensor[:3], tensor], zipped))
    back[0].fill_(1)
    assert back[1].tolist() == [1, 1, 1, 0, 0, 0]


class Strange:
    """A class of this test module: known to Python, unknown to the reader."""

    made = 0

    def __init__(self):
        Strange.made += 1
        self.weight = torch.ones(3)

    def __setstate__(self, state):
        Strange.made += 1


@pytest.mark.parametrize("zipped", [True, False])
def test_an_unknown_class_becomes_inert_and_keeps_its_state(zipped):
    data = saved({"object": Strange(), "class": Strange, "again": Strange}, zipped)
    Strange.made = 0
    back = read(data)
    assert Strange.made == 0
    assert isinstance(back["object"], Inert)
    assert torch.equal(back["object"].state["weight"], torch.ones(3))
    assert back["class"] is back["again"]
    assert legacy_name(back["class"]) == f"{__name__}.Strange"
    assert repr(back["object"]) == f"<inert {__name__}.Strange>"


def test_a_module_that_does_not_exist_is_not_asked_for():
    back = read(zip_around(b"cno.such.module\nThing\n."))
    assert legacy_name(back) == "no.such.module.Thing"


def test_subclasses_of_list_and_dict_become_inert_with_their_items():
    back = read(zip_around(pickle.dumps(collections.Counter("aab"), 2)))
    assert legacy_name(type(back)) == "collections.Counter"
    back = read(zip_around(pickle.dumps(collections.deque([1, 2]), 2)))
    assert isinstance(back, Inert)
    assert back.items == [1, 2]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("container", [zip_around, stream_around])
def test_code_in_a_pickle_does_not_run(tmp_path, protocol, container):
    victim = tmp_path / "victim"
    hostile = [
        Reduces(os.system, f"touch {victim}"),
        Reduces(eval, f"open({str(victim)!r}, 'w')"),
        Reduces(exec, f"open({str(victim)!r}, 'w')"),
        Reduces(open, str(victim), "w"),
    ]
    for value in hostile:
        pickled = pickle.dumps(value, protocol)
        assert isinstance(read(container(pickled)), Inert)
    assert not victim.exists()


def test_code_in_the_older_container_does_not_run(tmp_path):
    victim = tmp_path / "victim"
    back = read(saved({"weights": torch.ones(2), "hook": Reduces(os.system, f"touch {victim}")}, zipped=False))
    assert isinstance(back["hook"], Inert)
    assert back["hook"].args == (f"touch {victim}",)
    assert back["weights"].tolist() == [1, 1]
    assert not victim.exists()


def opcodes(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


ORDERED_DICT, FRACTION, ENCODE = (
    b"ccollections\nOrderedDict\n",
    b"cfractions\nFraction\n",
    b"c_codecs\nencode\n",
)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def string(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def storage(kind="FloatStorage", key="0", count=4):
    return b"(" + string("storage") + f"ctorch\n{kind}\n".encode() + string(key) + string("cpu") + number(count) + b"tQ"


def number(value):
    return f"I{value}\n".encode()


def tensor(size, stride, offset=0, **arguments):
    shape = b"".join((b"(" + b"".join(map(number, sizes)) + b"t") for sizes in (size, stride))
    return REBUILD + b"(" + storage(**arguments) + number(offset) + shape + b"\x89)tR"


NESTED_TUPLE = b")" + 60 * b"2\x86"  # (t, t) of (t, t) of …: 2**60 leaves when hashed


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (opcodes(FRACTION, b"(", string("1e999999999"), b"tR"), "a Fraction of something else"),
        (opcodes(FRACTION, b"(", string("1" * 101), b"tR"), "a Fraction of something else"),
        (opcodes(FRACTION, b"(", number(1), number(0), b"tR"), "ZeroDivisionError"),
        (opcodes(ENCODE, b"(", string("x"), string("zlib_codec"), b"tR"), "another encoding than latin1"),
        (opcodes(FRACTION, b"}", string("numerator"), number(3), b"sb"), "sets the state of a function"),
        (opcodes(ORDERED_DICT, b"}", string("x"), number(3), b"sb"), "sets the state of a type"),
        (opcodes(b"}", NESTED_TUPLE, b"Ns"), "key or set element of type tuple"),
        (opcodes(b"}(", NESTED_TUPLE, b"Nu"), "key or set element of type tuple"),
        (opcodes(b"(", NESTED_TUPLE, b"Nd"), "key or set element of type tuple"),
        (opcodes(b"\x8f(", NESTED_TUPLE, b"\x90"), "key or set element of type tuple"),
        (opcodes(b"(", NESTED_TUPLE, b"\x91"), "key or set element of type tuple"),
        (opcodes(ORDERED_DICT, b"(](", NESTED_TUPLE, b"N\x86etR"), "key or set element of type tuple"),
        (opcodes(b"\x96", struct.pack("<Q", 2**60)), "150"),  # BYTEARRAY8, which would be allocated first
        (opcodes(b"\x8e", struct.pack("<Q", 2**60)), "EOFError|Overflow|Memory|read"),
        (opcodes(b"(ios\nsystem\n"), "KeyError|105"),
        (opcodes(b"\x82\x01"), "130"),
        (opcodes(b"h\x07"), "KeyError|Memo"),
        (opcodes(string("just a persistent id"), b"Q"), "persistent id that is no storage"),
        (opcodes(b"Ptext\n"), "persistent id that is no storage"),
        (opcodes(storage(kind="StrangeStorage")), "wrong kind"),
        (opcodes(storage(count=-1)), "wrong kind"),
        (opcodes(storage(count=5)), "storage '0' of 16 bytes, expected 5 elements"),
        (opcodes(storage(count=2**61)), "of 16 bytes, expected"),
        (opcodes(storage(key="1")), "KeyError"),
        (opcodes(tensor((5,), (1,))), "a tensor of size .5,. in a storage of 4 elements"),
        (opcodes(tensor((4,), (1,), offset=1)), "in a storage of 4 elements"),
        (opcodes(tensor((2**62, 2**62), (1, 1))), "in a storage of 4 elements"),
        (opcodes(tensor((2**40,), (0,))), "in a storage of 4 elements"),
        (opcodes(tensor((0, 2**62), (1, 1))), "in a storage of 4 elements"),
        (opcodes(tensor((2,), (2**62,))), "in a storage of 4 elements"),
        (opcodes(tensor((-2,), (1,))), "wrong kind"),
        (opcodes(tensor((2,), (-1,))), "wrong kind"),
        (opcodes(tensor((2,), (1,), offset=-1)), "wrong kind"),
        (opcodes(tensor((2,), (1, 1))), "wrong kind"),
        (opcodes(REBUILD, b"(NI0\n(I1\nt(I1\nt\x89)tR"), "wrong kind"),
    ],
)
def test_a_hostile_pickle_is_refused(pickled, words):
    with pytest.raises(ValueError, match=f"some.th: not a readable torch.save file; damaged.*({words})"):
        read(zip_around(pickled, [("0", b"\0" * 16)]))


def test_the_same_building_blocks_make_an_honest_tensor():
    data = struct.pack("<4f", 1, 2, 3, 4)
    assert read(zip_around(opcodes(tensor((2, 2), (1, 2))), [("0", data)])).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither a zip file nor a pickle"),
        (b"hello", "neither a zip file nor a pickle"),
        (pickle.dumps({"quantized": []}), "a pickle that torch.save did not write"),
        (zip_around(pickle.dumps(1), compression=zipfile.ZIP_DEFLATED), "compressed members"),
        (zip_around(pickle.dumps(1), [("../constants.pkl", b"")]), None),
    ],
)
def test_other_files_are_refused(data, words):
    if words is None:
        assert read(data) == 1
        return
    with pytest.raises(ValueError, match="some.th: not a readable torch.save file; .*" + words):
        read(data)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    with pytest.raises(ValueError, match="TorchScript"):
        read(buffer.getvalue())


def test_a_zip_file_whose_members_overlap_is_refused():
    data = bytearray(zip_around(pickle.dumps(1), [("0", bytes(100))]))
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x01\x02"))
    data[at + 24 : at + 28] = struct.pack("<I", 2**30)  # the size of data.pkl, decompressed
    with pytest.raises(ValueError, match="members are longer than the file"):
        read(bytes(data))


STATE = {
    "quantized": [(torch.arange(32, dtype=torch.uint8).view(4, 8), (-1.0, 1.0), torch.full((4,), 8))],
    "name": "é",
}


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncation_is_refused(zipped):
    data = saved(STATE, zipped)
    for length in range(0, len(data), 1 if not zipped else 7):
        with pytest.raises(ValueError, match=r"not a readable torch\.save file"):
            read(data[:length])


@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bits_raise_value_error_or_change_little(zipped):
    data = saved(STATE, zipped)
    rng = random.Random(5)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 3))):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            read(bytes(damaged))
        except ValueError:
            refused += 1
    assert refused > 100


def test_random_bytes_after_an_honest_start_are_refused_or_inert():
    rng = random.Random(6)
    for _ in range(1500):
        pickled = b"\x80\x02" + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 60))) + b"."
        with contextlib.suppress(ValueError):
            read(zip_around(pickled))


def test_no_pickle_changes_the_classes_it_names():
    before = dict(vars(Inert)), dict(vars(RestrictedUnpickler))
    with pytest.raises(ValueError, match="sets the state of a type"):
        read(zip_around(opcodes(b"cany\nThing\n", b"N}", string("legacy_name"), number(3), b"s\x86b")))
    assert (dict(vars(Inert)), dict(vars(RestrictedUnpickler))) == before


def test_legacy_name_of_strings_classes_and_others():
    assert legacy_name("a.b.C") == "a.b.C"
    assert legacy_name(inert_class("a.b.C")) == "a.b.C"
    assert legacy_name(collections.OrderedDict) == "collections.OrderedDict"
    with pytest.raises(ValueError, match="a class or its dotted name, got int"):
        legacy_name(3)
