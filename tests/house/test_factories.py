"""No tensor of the package takes torch's default dtype or default device."""

import textwrap

import torch
from torch.utils._device import _device_constructors

from house.factories import FACTORIES, made_by_default
from house.sources import PACKAGE, Sources


def places_in(folder, text):
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "made.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return [(place.line, place.text) for place in made_by_default(Sources(folder))]


def test_every_tensor_is_made_with_dtype_and_device():
    places = made_by_default(Sources())
    assert not places, "\n".join(map(str, places))


def test_what_takes_a_default_is_found(tmp_path):
    made = """
        import torch
        from torch import ones
        torch.zeros(3)
        torch.tensor(1.5, dtype=torch.float32)
        torch.arange(3, device="cpu")
        torch.full((2,), 1, dtype=torch.int64, device="cpu")
        make = torch.empty if True else torch.zeros
        torch.Tensor([1.0])
        torch.zeros_like(make), make.new_zeros(3), torch.frombuffer(make, dtype=torch.uint8)
    """
    assert places_in(tmp_path, made) == [
        (3, "from torch import ones"),
        (4, "torch.zeros without device and dtype"),
        (5, "torch.tensor without device"),
        (6, "torch.arange without dtype"),
        (9, "torch.Tensor without device and dtype"),
        (8, "torch.empty is passed on"),
        (8, "torch.zeros is passed on"),
    ]


def test_the_list_has_every_factory_that_torch_sends_to_its_default_device():
    listed = {function.__name__ for function in _device_constructors()}
    assert {name for name in listed if hasattr(torch, name)} <= FACTORIES
