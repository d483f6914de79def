"""A training led to a size: within 2 % whatever trains it, resumed bit for bit, refused where it cannot be reached."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import diffq_fast
from diffq_fast import LSQ, DiffQuantizer, RateQuantizer, SizeTarget

STEPS = 120
FLOAT32_BITS = 32


class Training:
    """A small network that learns the labels of a fixed random one; one SizeTarget, everything from one seed."""

    def __init__(
        self, optimizer="adam", bits_lr=0.05, scale=1.0, seed=0, target=None, mb=None, bits_per_weight=4.0, **options
    ):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 8))
        self.teacher = nn.Linear(24, 8)
        self.scale = scale
        if optimizer == "sgd":
            self.optimizers = [torch.optim.SGD(self.model.parameters(), lr=0.1 / scale, momentum=0.9)]
        else:
            self.optimizers = [torch.optim.AdamW(self.model.parameters(), lr=3e-3)]
        self.quantizer = DiffQuantizer(self.model, **{"min_size": 0.001, "group_size": 8, "float16": True} | options)
        if optimizer == "own":
            self.quantizer.no_optimizer()
            self.optimizers.append(torch.optim.RMSprop(self.quantizer.learned_parameters(), lr=bits_lr))
        else:
            self.quantizer.setup_optimizer(self.optimizers[0], lr=bits_lr)
        size = {"mb": mb} if mb else {"bits_per_weight": bits_per_weight}
        self.target = SizeTarget(self.quantizer, **size, **{"total_steps": STEPS} | (target or {}))
        self.parameters = 24 * 64 + 64 + 64 * 8 + 8

    def run(self, steps=STEPS):
        for _ in range(steps):
            inputs = torch.randn(32, 24)
            labels = self.teacher(inputs).argmax(1)
            loss = nn.functional.cross_entropy(self.model(inputs), labels) * self.scale + self.target.penalty()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            self.target.step()
        return self

    def state(self):
        parts = [self.model, *self.optimizers, self.target]
        buffer = io.BytesIO()
        torch.save([[part.state_dict() for part in parts], torch.get_rng_state()], buffer)
        return buffer.getvalue()

    def resume(self, state):
        parts = [self.model, *self.optimizers, self.target]
        stored, generator = torch.load(io.BytesIO(state))  # with weights_only, as it is by default
        for part, each in zip(parts, stored, strict=True):
            part.load_state_dict(each)
        torch.set_rng_state(generator)
        return self

    @property
    def bits_per_weight(self):
        return self.quantizer.true_model_size() * 8 * 2**20 / self.parameters


@pytest.mark.parametrize(
    ("optimizer", "bits_lr"),
    [("adam", 1e-3), ("adam", 0.02), ("adam", 0.3), ("sgd", 0.1), ("sgd", 10.0), ("own", 0.02)],
)
@pytest.mark.parametrize(("times_smaller", "scale", "freeze_at"), [(4, 1e-3, 0.9), (8, 1, 1.0), (12, 1e3, 0.9)])
def test_the_size_is_reached(optimizer, bits_lr, times_smaller, scale, freeze_at):
    wanted = FLOAT32_BITS / times_smaller
    target = {"freeze_at": freeze_at}
    bits_lr = bits_lr / scale if optimizer == "sgd" else bits_lr
    training = Training(optimizer, bits_lr, scale, target=target, bits_per_weight=wanted, min_bits=1.5).run()
    assert training.quantizer.bits_frozen
    assert training.bits_per_weight == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(
    ("group_size", "options"),
    [(1, {}), (4, {"param": "noise"}), (8, {"extra_bits": 1}), (24, {"init_bits": 3}), (100, {"extra_bits": -0.5})],
)
def test_the_size_is_reached_with_groups_and_options(group_size, options):
    wanted = 6.5 if group_size == 1 else 5.0
    training = Training(group_size=group_size, bits_per_weight=wanted, **options).run()
    assert training.bits_per_weight == pytest.approx(wanted, rel=0.02)
    assert training.bits_per_weight <= wanted * (1 + 1e-6)


@pytest.mark.parametrize("bits_lr", [1e-3, 0.02])
def test_the_rounded_size_is_led_to_the_target_before_the_bits_are_frozen(bits_lr):
    training = Training(bits_lr=bits_lr, bits_per_weight=5.0, target={"freeze_at": 1.0}).run(STEPS - 1)
    assert not training.quantizer.bits_frozen
    assert training.bits_per_weight == pytest.approx(5.0, rel=0.04)  # one width table's entry is 3.6 % here


def test_with_one_width_per_weight_the_size_is_the_nearest_below():
    """64 * 8 weights are 18 % of the model: sizes between are out of reach."""
    training = Training(group_size=0, bits_per_weight=5.0).run()
    sizes = []
    for first in range(2, 16):
        for second in range(2, 16):
            sizes.append(first * 24 * 64 + second * 64 * 8)
    levels = round(training.bits_per_weight * training.parameters) - 16 * 72 - 2 * 72
    tables = [levels - size for size in sizes if 0 <= levels - size <= 8]
    assert tables  # it is one of these, and its two tables' entries of up to 4 bits
    assert 0.9 * 5.0 < training.bits_per_weight <= 5.0


def test_the_packed_file_has_the_size_too(tmp_path):
    training = Training(mb=0.002).run()
    assert training.quantizer.true_model_size() == pytest.approx(0.002, rel=0.02)
    diffq_fast.save(training.quantizer, tmp_path / "packed")
    bytes_by_purpose = diffq_fast.inspect(tmp_path / "packed").bytes_by_purpose
    padding = (
        0.0002  # the file's levels fill whole words of 32 for each width, which is much only where weights are few
    )
    content = sum(size for purpose, size in bytes_by_purpose.items() if purpose != "header")
    assert content / 2**20 == pytest.approx(0.002, abs=padding)


def test_a_loss_1024_times_as_large_gives_the_same_bits_at_1024_times_the_price():
    """With plain gradient descent at 1 / 1024 of the rate every step is the same, in binary floating point."""
    small, large = (Training("sgd", 0.1 / scale, scale) for scale in (1.0, 1024.0))
    for training in (small, large):
        torch.manual_seed(7)
        training.run(STEPS // 2)
    assert small.target.price > 0
    assert large.target.price == 1024 * small.target.price
    for one, other in zip(small.quantizer.learned_parameters(), large.quantizer.learned_parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stop", [5, 110])
@pytest.mark.parametrize("optimizer", ["adam", "own"])
def test_a_resumed_training_is_the_same_bit_for_bit(stop, optimizer):
    whole = Training(optimizer).run(stop)
    state = whole.state()
    assert whole.quantizer.bits_frozen == (stop > 0.9 * STEPS)
    whole.run(STEPS - stop)
    resumed = Training(optimizer, seed=1)
    resumed.teacher = whole.teacher
    resumed.resume(state).run(STEPS - stop)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert resumed.target.price == whole.target.price
    assert resumed.quantizer.true_model_size() == whole.quantizer.true_model_size()


def test_a_resumed_target_may_be_loaded_before_the_model():
    whole = Training().run()
    frozen, model = whole.target.state_dict(), copy.deepcopy(whole.model.state_dict())
    resumed = Training(seed=1)
    resumed.target.load_state_dict(frozen)
    resumed.model.load_state_dict(model)
    assert resumed.quantizer.bits_frozen
    for name, bits in whole.quantizer.bits().items():
        assert torch.equal(resumed.quantizer.bits()[name], bits)


def test_loading_an_earlier_state_unfreezes():
    training = Training().run(10)
    state = training.state()
    training.run(STEPS - 10)
    assert training.quantizer.bits_frozen
    training.resume(state)
    assert not training.quantizer.bits_frozen


def test_the_schedule_stays_then_shrinks_in_equal_ratios_then_is_the_target():
    training = Training(target={"warm_up": 0.1, "reach_at": 0.5, "total_steps": 100}).run(2)
    target, start = training.target, training.quantizer.model_size().item()
    smallest = target._smallest
    seen = {}
    for steps in (5, 10, 20, 30, 40, 50, 90):
        target.steps = steps
        seen[steps] = float(target.wanted_size())
    assert seen[5] == seen[10] == pytest.approx(start, rel=1e-2)
    ratios = [(seen[later] - smallest) / (seen[later - 10] - smallest) for later in (20, 30, 40, 50)]
    assert ratios == pytest.approx([ratios[0]] * 4, rel=1e-4)
    assert seen[50] == seen[90] == pytest.approx(target.mb, rel=1e-6)


@pytest.mark.parametrize(("steps", "factor"), [(20, 7), (21, 1), (22, 7), (90, 1), (91, 1)])
def test_the_penalty_is_the_price_times_the_size_raised_on_the_way(steps, factor):
    """To four times in the mean until half of the steps are done: not at each second step, whose gradients are read."""
    training = Training().run(steps)
    price = factor * training.target.price
    assert price > 0
    for logit in training.quantizer.learned_parameters():
        logit.grad = None
    penalty = training.target.penalty()
    assert penalty.detach() == price * training.quantizer.model_size().detach()
    slopes = torch.autograd.grad(training.quantizer.model_size(), training.quantizer.learned_parameters())
    penalty.backward()
    for logit, slope in zip(training.quantizer.learned_parameters(), slopes, strict=True):
        torch.testing.assert_close(logit.grad, price * slope)


def test_clipped_gradients_give_the_same_price():
    """As test_the_price_is_what_a_megabyte_is_worth, with gradients scaled down as clipping does."""
    training = Training(target={"reach_at": 1.0, "freeze_at": 1.0, "total_steps": 500})
    quantizer, target = training.quantizer, training.target
    for _ in range(400):
        for logit in quantizer.learned_parameters():
            logit.grad = None
        (target.penalty() - 5 * quantizer.model_size()).backward()
        for logit in quantizer.learned_parameters():
            logit.grad.mul_(0.5)
        target.step()
    assert float(target.price) == pytest.approx(5, rel=0.02)


def test_the_price_is_what_a_megabyte_is_worth():
    """A loss that is -5 per MB: the price is 5, and the gradients of loss and penalty cancel."""
    training = Training(target={"reach_at": 1.0, "freeze_at": 1.0})
    quantizer, target = training.quantizer, training.target
    for _ in range(40):
        for logit in quantizer.learned_parameters():
            logit.grad = None
        (target.penalty() - 5 * quantizer.model_size()).backward()
        target.step()
    assert float(target.price) == pytest.approx(5, rel=1e-4)


class HostReads(TorchDispatchMode):
    """Counts the values that are read from a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_nothing_is_read_from_the_device_until_the_bits_are_frozen(monkeypatch):
    training = Training().run(50)
    monkeypatch.setattr(training.quantizer, "_is_on_cpu", lambda: False)  # as on a GPU
    with HostReads() as reads:
        training.target.penalty()
        training.target.step()
        training.target.step()
        training.target.wanted_size()
        assert reads.count == 0
        float(training.target.price)
        assert reads.count == 1


def test_long_trainings_are_controlled_about_a_thousand_times():
    training = Training(target={"total_steps": 50_000})
    logits = [logit.detach().clone() for logit in training.quantizer.learned_parameters()]
    for _ in range(49):
        training.target.step()  # needs no gradients: nothing is read
    assert all(
        torch.equal(one, other) for one, other in zip(training.quantizer.learned_parameters(), logits, strict=True)
    )
    with pytest.raises(RuntimeError, match="no gradients"):
        training.target.step()


def test_a_step_with_infinite_gradients_leaves_the_price():
    training = Training().run(51)
    before = training.target.price
    for logit in training.quantizer.learned_parameters():
        logit.grad.fill_(float("inf"))
    training.target.step()
    assert training.target.price == before
    assert all(logit.isfinite().all() for logit in training.quantizer.learned_parameters())


def test_a_step_without_gradients_says_where_to_call_it():
    training = Training().run(1)
    training.optimizers[0].zero_grad()
    with pytest.raises(RuntimeError, match=r"right behind optimizer.step\(\), before zero_grad\(\)"):
        training.target.step()


def quantizer(**options):
    return DiffQuantizer(nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 10)), **{"group_size": 8} | options)


def test_bits_per_weight_counts_all_parameters():
    made = quantizer()
    count = 64 * 256 + 256 + 2560 + 10
    assert SizeTarget(made, bits_per_weight=8, total_steps=9).mb == pytest.approx(8 * count / 8 / 2**20)
    assert SizeTarget(made, 0.02, total_steps=9).mb == 0.02


@pytest.mark.parametrize("sizes", [{}, {"mb": 1.0, "bits_per_weight": 3.0}])
def test_exactly_one_size_is_asked_for(sizes):
    with pytest.raises(ValueError, match="exactly one of mb and bits_per_weight"):
        SizeTarget(quantizer(), **sizes, total_steps=9)


@pytest.mark.parametrize(
    "schedule",
    [
        {"total_steps": 0},
        {"total_steps": 1.5},
        {"warm_up": -0.1},
        {"warm_up": 0.5},
        {"reach_at": 0.95},
        {"reach_at": 0.6, "freeze_at": 0.5},
        {"freeze_at": 1.2},
    ],
)
def test_a_schedule_out_of_order_is_refused(schedule):
    with pytest.raises(ValueError, match=r"total_steps must be|expected shares .* got warm_up="):
        SizeTarget(quantizer(), mb=0.02, **{"total_steps": 9} | schedule)


FROZEN_AT_ONCE = {"warm_up": 0.0, "reach_at": 1e-6, "freeze_at": 1e-6}


@pytest.mark.parametrize(("scale", "stays"), [(1.0, True), (0.995, True), (1.002, False), (0.98, False)])
def test_frozen_steps_whose_size_fits_are_left_alone(scale, stays):
    """Others would round all weights anew; those of a file that is too large, or has room left, are fitted again."""
    torch.manual_seed(0)
    model = nn.Linear(64, 96, bias=False)
    learned = RateQuantizer(model)
    learned.no_optimizer()
    learned.freeze_bits(straight_through=True)
    target = SizeTarget(learned, mb=learned.true_model_size() / scale, total_steps=8, **FROZEN_AT_ONCE)
    before = model(torch.eye(64)).detach()
    target.step()
    assert torch.equal(model(torch.eye(64)).detach(), before) == stays
    assert 0.98 * target.mb <= learned.true_model_size() <= target.mb


def test_a_quantizer_that_learns_no_bits_is_refused():
    with pytest.raises(TypeError, match="must be a DiffQuantizer or a RateQuantizer, got LSQ"):
        SizeTarget(LSQ(nn.Linear(64, 64)), mb=0.01, total_steps=9)


def test_a_target_too_small_is_refused_with_what_would_help():
    with pytest.raises(ValueError, match="SizeTarget: the target must be at least") as refused:
        SizeTarget(quantizer(range_scope="group"), mb=0.003, total_steps=9)
    text = str(refused.value)
    for way in ("lower min_bits", "float16=True", "min_size (now 0.01 MB)", "larger group_size (now 8)"):
        assert way in text
    assert "2,826 parameters that are not quantised" in text


@pytest.mark.parametrize("change", [{"min_bits": 1}, {"float16": True}, {"min_size": 0.001}])
def test_each_way_out_of_a_refusal_makes_sizes_smaller(change):
    smallest = quantizer()
    size = (64 * 256 * 2 + 64 + 8 + 32 * 2826) / 8 / 2**20
    SizeTarget(smallest, mb=size, total_steps=9)
    with pytest.raises(ValueError, match=rf"at least {size:.6g} MB"):
        SizeTarget(smallest, mb=0.999 * size, total_steps=9)
    SizeTarget(quantizer(**change), mb=0.999 * size, total_steps=9)


@pytest.mark.parametrize(("mb", "words"), [(1.0, "must be at most"), (float("nan"), "mb must be a number, got nan")])
def test_a_target_above_all_widths_is_refused(mb, words):
    with pytest.raises(ValueError, match=words):
        SizeTarget(quantizer(), mb=mb, total_steps=9)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_compiled_loss_follows_the_price():
    torch._dynamo.reset()
    training = Training().run(20)
    compiled = torch.compile(lambda: training.target.penalty(), backend="aot_eager", fullgraph=True)
    first = compiled()
    torch.testing.assert_close(first, training.target.penalty())
    training.run(20)
    torch.testing.assert_close(compiled(), training.target.penalty())
    assert compiled() != first
