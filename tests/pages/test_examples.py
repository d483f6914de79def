"""The functions of examples/: one tiny epoch on 64 random pictures, the split, the claim's statistics."""

import importlib
import math
from types import ModuleType

import numpy as np
import pytest
import torch

import diffq_fast
from support.paths import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return example("mnist", monkeypatch)


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of examples/, which stand beside tests/ and are scripts, not a package."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.fixture
def digits(mnist):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(64, 1, mnist.PIXELS, mnist.PIXELS, generator=generator)
    return mnist.Digits(images, torch.arange(64) % mnist.CLASSES)


def test_train_with_diffq_makes_a_file_that_gives_the_same_labels(mnist, digits, tmp_path):
    network = mnist.new_network(0)
    plain_megabytes = mnist.float32_megabytes(network)
    epochs = []
    quantizer = mnist.train(network, digits, 0, with_diffq=True, epochs=1, report=epochs.append)
    assert [epoch.number for epoch in epochs] == [1]
    assert math.isfinite(epochs[0].loss)
    assert 3 < plain_megabytes / epochs[0].megabytes < 5  # 8 bits at the start, hardly moved after two steps
    assert list(quantizer.bits()) == [f"{layer}.weight" for layer in ("conv1", "conv2", "conv3", "hidden", "out")]

    diffq_fast.save(quantizer, tmp_path / "mnist.diffq")
    fresh = mnist.build_network()
    diffq_fast.load(tmp_path / "mnist.diffq", fresh)
    assert torch.equal(mnist.predict(fresh, digits), mnist.predict(network, digits))


def test_train_float32_returns_no_quantizer_and_changes_every_weight(mnist, digits):
    network, untouched = mnist.new_network(0), mnist.new_network(0)
    assert mnist.train(network, digits, 0, with_diffq=False, epochs=1) is None
    for (name, trained), first in zip(network.named_parameters(), untouched.parameters(), strict=True):
        assert not torch.equal(trained, first), name


def test_split_holds_out_each_class_equally_and_nothing_twice(mnist):
    count = 30 * mnist.CLASSES
    marks = torch.arange(count).float().view(count, 1, 1, 1)
    everything = mnist.Digits(marks, torch.arange(count) % mnist.CLASSES)
    train, held_out = mnist.split(everything, per_class=10)
    assert train.labels.bincount().tolist() == [20] * mnist.CLASSES
    assert held_out.labels.bincount().tolist() == [10] * mnist.CLASSES
    assert sorted(torch.cat([train.images, held_out.images]).flatten().tolist()) == list(range(count))
    assert torch.equal(mnist.split(everything, per_class=10)[1].images, held_out.images)


def test_augment_keeps_the_middle_and_is_fixed_by_its_generator(mnist):
    images = torch.zeros(8, 1, mnist.PIXELS, mnist.PIXELS)
    images[:, :, 10:18, 10:18] = 1
    moved = mnist.augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved, mnist.augment(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(moved, images)
    torch.testing.assert_close(moved.sum((1, 2, 3)), images.sum((1, 2, 3)), rtol=0.02, atol=0)


def test_schedule_rises_to_one_and_falls_to_zero(mnist):
    assert mnist.schedule(0) == 0
    assert mnist.schedule(mnist.WARM_UP) == 1
    assert mnist.schedule(1) == pytest.approx(0, abs=1e-12)


def test_bootstrap_interval_of_coin_flips_has_the_width_that_theory_gives(monkeypatch):
    claim = example("mnist_claim", monkeypatch)
    one_seed = np.random.default_rng(0).choice([-100.0, 100.0], size=(1, 2500))
    low, high = claim.bootstrap_interval(one_seed)
    assert (low + high) / 2 == pytest.approx(one_seed.mean(), abs=0.2)
    assert high - low == pytest.approx(2 * 1.96 * 100 / 50, rel=0.05)


def test_student_interval_equals_the_textbook_value(monkeypatch):
    claim = example("mnist_claim", monkeypatch)
    low, high = claim.student_interval(np.array([[0.0], [1.0], [2.0]]))
    assert (low, high) == pytest.approx((1 - 4.302653 / math.sqrt(3), 1 + 4.302653 / math.sqrt(3)), abs=1e-5)
