"""DiffQuantizer(learn_range=True): ends of ranges that are learned, in training, evaluation, files and states."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

import diffq_fast
from diffq_fast import DiffQuantizer, SizeTarget, functional
from diffq_fast.packed.contents import PackedContents, read_packed, write_packed
from diffq_fast.packed.ranges import RangeOptions
from diffq_fast.packed.tensor import pack_weight
from diffq_fast.quantizers.sizes import BitBudget
from diffq_fast.reference.clipped_noise import noisy_clipped_weight, rounded_weight_backward
from diffq_fast.reference.options import NoiseOptions
from support.checkpointed import ResidualNet
from support.models import Tied, mlp

KEY = torch.tensor(7654321)
KINDS: dict[str, dict[str, Any]] = {
    "tensor": {"range_scope": "tensor"},
    "group": {"range_scope": "group"},
    "short": {"range_scope": "group", "short_ranges": True},
}


def attach(model: nn.Module, **arguments: Any) -> DiffQuantizer:
    defaults: dict[str, Any] = {"min_size": 0, "group_size": 8, "learn_range": True, "init_bits": 4}
    quantizer = DiffQuantizer(model, **defaults | arguments)
    quantizer.no_optimizer()
    return quantizer


def shown(model: nn.Module, x: torch.Tensor, name: str = "0") -> torch.Tensor:
    """The weight that a forward of the model sees."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, *_: seen.append(module.weight))
    model(x)
    hook.remove()
    return seen[0]


def trained(kind: str, model: nn.Module | None = None, steps: int = 6, **arguments: Any) -> DiffQuantizer:
    """After some steps that move weights, bits and ends; with ranges that were clipped on the way."""
    torch.manual_seed(0)
    model = mlp() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    options = {"min_size": 0, "group_size": 8, "learn_range": True, "init_bits": 4, **KINDS[kind], **arguments}
    quantizer = DiffQuantizer(model, **options)
    quantizer.setup_optimizer(optimizer, lr=0.1)
    dtype = next(model.parameters()).dtype
    for step in range(steps):
        if step == steps // 2:
            quantizer.fit_ranges(bits=3)
        optimizer.zero_grad()
        (model(torch.randn(8, 64, dtype=dtype)).square().mean() + quantizer.model_size()).backward()
        optimizer.step()
    return quantizer


# -- the option off ----------------------------------------------------------------------------------------------------


def test_without_the_option_there_is_nothing_new():
    model = mlp()
    quantizer = attach(model, learn_range=False)
    assert [name for name in model.state_dict() if "range" in name] == []
    assert quantizer.range_rule is None
    assert [weight.ends for weight in quantizer.weights] == [None] * 4
    assert "range" not in repr(quantizer)


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
@pytest.mark.parametrize("scope", ["tensor", "group"])
@pytest.mark.parametrize("group_size", [0, 1, 7, 8])
def test_training_starts_as_without_it(group_size, scope, noise):
    """The same weights in training and in eval, the same logit gradients, and the same size."""
    made = []
    for learn_range in (False, True):
        torch.manual_seed(0)
        model = mlp()
        options = {"group_size": group_size, "range_scope": scope, "noise": noise, "learn_range": learn_range}
        quantizer = attach(model, **options)
        torch.manual_seed(1)
        x = torch.randn(4, 64)
        seen = shown(model.train(), x)
        model(x).square().sum().backward()
        grads = model[0].weight_diffq.grad
        made.append((seen, shown(model.eval(), x), grads, quantizer.true_model_size(), quantizer.model_size().item()))
    plain, learned = made
    assert torch.equal(plain[0], learned[0])
    assert torch.equal(plain[1], learned[1])
    torch.testing.assert_close(plain[2], learned[2], rtol=1e-3, atol=1e-6)
    assert plain[3:] == learned[3:]


# -- training ----------------------------------------------------------------------------------------------------------


def plain_forward(model: nn.Module, quantizer: DiffQuantizer, x: torch.Tensor, options: NoiseOptions) -> torch.Tensor:
    """The forward under ``KEY`` with the oracle's weights, without any hook."""
    made = {}
    for stream, weight in enumerate(quantizer.weights):
        noise = functional.noise(KEY, stream, weight.parameter.numel(), noise_kind=options.noise_kind)
        ends = weight.ends
        ranges = torch.where(ends[:, :1] > ends[:, 1:], ends.flip(1), ends)
        made[weight.name] = noisy_clipped_weight(weight.parameter, weight.learned, ranges, noise, options, None)
    return functional_call(model, made, (x,))


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
@pytest.mark.parametrize("scope", ["tensor", "group"])
@pytest.mark.parametrize("group_size", [0, 7, 8])
def test_gradients_are_those_of_autograd(group_size, scope, noise, monkeypatch):
    """Of weights, logits and ends, some of which have passed each other."""
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(4, 64)
    quantizer = attach(model, group_size=group_size, range_scope=scope, noise=noise)
    quantizer.fit_ranges(bits=2)
    with torch.no_grad():
        model[2].weight_diffq_range.copy_(model[2].weight_diffq_range.flip(1))
    monkeypatch.setattr(functional, "draw_key", lambda like: KEY)
    params = list(model.parameters())
    made = torch.autograd.grad(model(x).tanh().square().sum(), params)
    options = NoiseOptions(group_size, 2, 15, "bits", noise, scope)
    monkeypatch.undo()
    model.eval()  # its hooks stand aside for weights that are given
    quantizer.detach()
    expected = torch.autograd.grad(plain_forward(model, quantizer, x, options).tanh().square().sum(), params)
    for one, another in zip(made, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=2e-4, atol=1e-6)


def test_gradients_of_gradients_are_those_of_autograd(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 5)), torch.randn(3, 16)
    quantizer = attach(model, range_scope="group", noise="uniform")
    quantizer.fit_ranges(bits=2)
    params = list(model.parameters())

    def penalty(out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(out.tanh().square().mean(), params, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), params)

    monkeypatch.setattr(functional, "draw_key", lambda like: KEY)
    made = penalty(model(x))
    monkeypatch.undo()
    quantizer.detach()
    expected = penalty(plain_forward(model, quantizer, x, NoiseOptions(8, 2, 15, "bits", "uniform", "group")))
    for one, another in zip(made, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-3, atol=1e-6)


def test_an_outlier_is_clipped_and_moves_the_end():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        model[0].weight[3, 5] = 1.0
        model[0].weight[7, 1] = -1.0
    quantizer = attach(model, group_size=0)
    quantizer.fit_ranges(bits=4)
    lo, hi = quantizer.ranges()["0.weight"][0].tolist()
    assert -0.95 < lo < hi < 0.95
    noisy = shown(model, torch.zeros(1, 64))
    step = (hi - lo) / (2**4 - 1)
    assert noisy.max() < hi + 4 * step
    grad = torch.zeros(64, 64)
    grad[3, 5] = 1.0
    (noisy * grad).sum().backward()
    assert model[0].weight.grad.count_nonzero() == 0
    assert model[0].weight_diffq_range.grad[0, 1] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_weights_in_training_are_those_of_eval_and_have_gradients(kind, dtype):
    quantizer = trained(kind, mlp().to(dtype))
    model, x = quantizer.model, torch.zeros(1, 64, dtype=dtype)
    quantizer.freeze_bits(straight_through=True)
    model.zero_grad()
    seen = shown(model.train(), x)
    assert torch.equal(seen, shown(model.eval(), x))
    grad = torch.randn(64, 64).to(dtype)
    (seen * grad).sum().backward()
    options = NoiseOptions(8, range_scope=quantizer.range_scope)
    ranges = quantizer.ranges()["0.weight"]
    of_weight, of_ranges = rounded_weight_backward(grad, model[0].weight.detach(), seen.detach(), ranges, options)
    assert torch.equal(model[0].weight.grad, of_weight)
    ends = model[0].weight_diffq_range
    crossed = ends[:, :1] > ends[:, 1:]
    assert torch.equal(ends.grad, torch.where(crossed, of_ranges.flip(1), of_ranges))
    assert model[0].weight_diffq.grad.count_nonzero() == 0
    assert ends.grad.count_nonzero() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_bits_have_the_noise_of_their_widths(kind, monkeypatch):
    quantizer = trained(kind, noise="uniform")
    quantizer.freeze_bits()
    monkeypatch.setattr(functional, "draw_key", lambda like: KEY)
    seen = shown(quantizer.model.train(), torch.zeros(1, 64))
    ranges, weight = quantizer.ranges()["0.weight"], quantizer.model[0].weight
    step = 1 / (2 ** quantizer.widths()["0.weight"].float() - 1)
    amplitude = ((ranges[:, 1] - ranges[:, 0]) * step).repeat_interleave(8).view(64, 64)
    lo, hi = (ranges[:, end].repeat_interleave(64 * 64 // len(ranges)).view(64, 64) for end in (0, 1))
    noise = functional.noise(KEY, 0, 64 * 64, noise_kind="uniform").view(64, 64)
    torch.testing.assert_close(seen, weight.clamp(lo, hi) + amplitude * noise, rtol=1e-4, atol=1e-6)


def test_gradients_that_are_not_finite_are_put_to_zero_and_told():
    model = mlp()
    quantizer = attach(model)
    (model(torch.ones(1, 64)).sum() * torch.inf).backward()
    for name in ("weight_diffq", "weight_diffq_range"):
        assert bool(getattr(model[0], name).grad.isfinite().all())
    with pytest.warns(UserWarning, match=r"non-finite gradients reached .* 0.weight \("):
        quantizer.true_model_size()


def test_tied_weights_share_their_ends():
    model = Tied()
    quantizer = attach(model)
    assert quantizer.weights[0].ends is quantizer.weights[-1].ends or quantizer.weights[2].tied_to
    assert sum(name.endswith("_range") for name in model.state_dict()) == 3
    model(torch.randn(2, 32)).sum().backward()
    assert quantizer.weights[0].ends.grad is not None


@pytest.mark.parametrize("mode", ["reentrant", "not"])
def test_checkpoints_give_the_same_gradients(mode):
    grads = []
    for each in ("plain", mode):
        torch.manual_seed(0)
        model = ResidualNet(each)
        quantizer = attach(model)
        quantizer.fit_ranges(bits=2)
        torch.manual_seed(1)
        model(torch.randn(4, 16, requires_grad=True)).square().sum().backward()
        grads.append([param.grad for param in model.parameters()])
    for one, another in zip(*grads, strict=True):
        assert torch.equal(one, another)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounded", [False, True])
def test_a_compiled_step_equals_an_eager_one(kind, rounded):
    grads = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = mlp()
        quantizer = attach(model, **KINDS[kind])
        quantizer.fit_ranges(bits=2)
        if rounded:
            quantizer.freeze_bits(straight_through=True)
        forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        torch.manual_seed(1)
        forward(torch.ones(4, 64)).square().sum().backward()
        grads.append([param.grad for param in model.parameters()])
    for one, another in zip(*grads, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-5)


def test_what_is_learned_stays_in_float32():
    model = mlp()
    quantizer = attach(model)
    model.to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].weight_diffq_range.dtype == torch.float32
    shown(model, torch.zeros(1, 64, dtype=torch.bfloat16))
    model[0].weight_diffq_range.data = model[0].weight_diffq_range.data.half()
    with pytest.raises(RuntimeError, match=r"weight_diffq_range of 0.weight must be float32"):
        quantizer.model_size()


# -- optimizers --------------------------------------------------------------------------------------------------------


def test_the_optimizer_gets_ends_as_a_group_of_their_own():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, weight_decay=0.25)
    quantizer = DiffQuantizer(model, min_size=0, learn_range=True)
    quantizer.setup_optimizer(optimizer, lr=0.125)
    _, bits, ends = optimizer.param_groups
    assert {id(param) for param in ends["params"]} == {id(weight.ends) for weight in quantizer.weights}
    assert [(group["lr"], group["weight_decay"]) for group in (bits, ends)] == [(0.125, 0), (0.5, 0)]
    quantizer.clear_optimizer(optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 0, 0]
    quantizer.setup_optimizer(optimizer, range_lr=0.75)
    assert optimizer.param_groups[-1]["lr"] == 0.75


def test_parameter_groups_have_ends_without_weight_decay():
    model = mlp()
    quantizer = DiffQuantizer(model, min_size=0, learn_range=True)
    matrices, others, bits, ends = quantizer.parameter_groups(lr=1e-3, bits_lr=0.02, matrices=True)
    assert [len(group["params"]) for group in (matrices, others, bits, ends)] == [2, 2, 4, 4]
    assert (ends["lr"], ends["weight_decay"], bits["lr"]) == (1e-3, 0.0, 0.02)
    assert len(torch.optim.AdamW([matrices, others, bits, ends]).param_groups) == 4


def test_unused_weights_keep_their_ends():
    model = mlp()
    quantizer = attach(model)
    for weight in quantizer.weights:
        weight.learned.grad, weight.ends.grad = torch.ones_like(weight.learned), torch.ones_like(weight.ends)
    quantizer.check_unused()
    assert model[0].weight_diffq_range.grad.count_nonzero() == 0


def test_training_moves_the_ends():
    quantizer = trained("group", steps=4)
    before = quantizer.ranges()
    optimizer = torch.optim.SGD([weight.ends for weight in quantizer.weights], 0.1)
    quantizer.model(torch.randn(8, 64)).square().mean().backward()
    optimizer.step()
    for name, ranges in quantizer.ranges().items():
        assert not torch.equal(ranges, before[name])
        assert bool((ranges[:, 0] <= ranges[:, 1]).all())


# -- files and states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coding", ["fixed", "coded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logits", [False, True])
def test_a_file_has_the_weights_of_eval_and_gives_the_quantizer_again(kind, coding, dtype, logits, tmp_path):
    quantizer = trained(kind, mlp().to(dtype))
    model, x = quantizer.model.eval(), torch.randn(3, 64).to(dtype)
    diffq_fast.save(quantizer, tmp_path / "a", coding=coding, logits=logits)
    plain = diffq_fast.load(tmp_path / "a")
    for name in ("0", "2"):
        assert torch.equal(plain[f"{name}.weight"], shown(model, x, name).detach())
    assert not [name for name in plain if name.endswith("_range")]
    loaded = mlp().to(dtype)
    assert torch.equal(diffq_fast.load(tmp_path / "a", loaded).eval()(x), model(x))
    again = trained(kind, mlp().to(dtype), steps=2)
    diffq_fast.load(tmp_path / "a", again.model)
    assert torch.equal(again.model.eval()(x), model(x))
    assert again.true_model_size() == quantizer.true_model_size()
    for name, ranges in again.ranges().items():
        assert torch.equal(ranges, quantizer.ranges()[name])
    diffq_fast.save(again, tmp_path / "b", coding=coding, logits=logits)
    ours, theirs = read_packed(tmp_path / "a"), read_packed(tmp_path / "b")
    for name, packed in ours.packed.items():
        assert torch.equal(packed.ranges, theirs.packed[name].ranges)
        assert torch.equal(packed.unpack(), theirs.packed[name].unpack())


def test_short_ranges_take_16_bits_and_are_counted(tmp_path):
    long, short = (trained(kind, steps=1, group_size=16) for kind in ("group", "short"))
    groups, units = [], []
    for quantizer in (long, short):
        quantizer.freeze_bits()
        diffq_fast.save(quantizer, tmp_path / "a")
        packed = read_packed(tmp_path / "a").packed.values()
        ranges = sum(each.size["ranges"] for each in packed)
        groups.append(sum(len(each.widths) for each in packed))
        units.append(sum(-(-len(each.widths) // 16) for each in packed))
        rule = quantizer.size_rule()
        counted = sum(rule.range_bits(weight.parameter.numel()) - 8 for weight in quantizer.weights)
        assert counted == ranges
        version = b'"version":"2"' if quantizer is short else b'"version":"1"'
        assert version in (tmp_path / "a").read_bytes()
        budget = quantizer.bit_budget()
        assert isinstance(budget, BitBudget)
        used = budget.row([quantizer.widths_of(entry) for entry in quantizer.selection.originals])
        assert float(budget.size(used)) / (8 * 2**20) == pytest.approx(quantizer.true_model_size(), rel=1e-6)
    saved = (64 - 16) * groups[0] - 32 * units[0]
    bits = 8 * 2**20 * (long.true_model_size() - short.true_model_size())
    table = sum(
        int((q.widths()[n] * 16).sum()) * s for q, s in ((long, 1), (short, -1)) for n in ("0.weight", "2.weight")
    )
    assert bits == pytest.approx(saved + table, abs=64 * 16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_target_is_met(kind):
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    quantizer = DiffQuantizer(model, min_size=0.001, group_size=16, learn_range=True, noise="uniform", **KINDS[kind])
    quantizer.setup_optimizer(optimizer, lr=0.05)
    target = SizeTarget(quantizer, bits_per_weight=9 if kind == "group" else 6, total_steps=30)
    for _ in range(30):
        optimizer.zero_grad()
        (model(torch.randn(8, 64)).square().mean() + target.penalty()).backward()
        optimizer.step()
        target.step()
    assert target.mb * 0.99 <= quantizer.true_model_size() <= target.mb


def test_a_size_out_of_reach_names_short_ranges():
    quantizer = attach(mlp(), group_size=8, range_scope="group")
    with pytest.raises(ValueError, match="keep ranges in 16 bits"):
        SizeTarget(quantizer, bits_per_weight=4, total_steps=10)


OPTIONS = [None, RangeOptions(True), RangeOptions(True, 4), RangeOptions(False, 16)]


@pytest.mark.parametrize("bits", [3, 12])
@pytest.mark.parametrize("options", OPTIONS)
def test_any_file_with_ranges_is_taken_over(options, bits, tmp_path):
    """Short ranges that the weights do not reach too: the ends are what the file says."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64, bias=False))
    widths = torch.full((128,), bits, dtype=torch.uint8)
    weight = torch.randn(64, 128)
    packed = pack_weight(weight, widths, group_size=64, range_scope="group", options=options)
    write_packed(tmp_path / "a", PackedContents({"0.weight": packed}, {}))
    quantizer = attach(model, group_size=64, range_scope="group")
    diffq_fast.load(tmp_path / "a", model)
    assert torch.equal(shown(model.eval(), torch.zeros(1, 128)), packed.unpack())
    assert torch.equal(quantizer.ranges()["0.weight"], packed.ranges)


def test_ranges_that_short_ones_cannot_give_are_refused(tmp_path):
    quantizer = trained("group")
    diffq_fast.save(quantizer, tmp_path / "a")
    other = trained("short", steps=1)
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(ValueError, match=r"0.weight: .* ranges that are not of 16 bits.* has short_ranges=True"):
        diffq_fast.load(tmp_path / "a", other.model)
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_copies_and_pickles(kind):
    quantizer = trained(kind)
    model, x = quantizer.model.eval(), torch.randn(3, 64)
    expected = model(x)
    fresh = trained(kind, steps=1).model
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), expected)
    for copied in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(copied.model.eval()(x), expected)
        with torch.no_grad():
            copied.weights[0].ends.mul_(0.5)
        assert not torch.equal(copied.model(x), expected)
    assert torch.equal(model(x), expected)
    quantizer.bake()
    assert torch.equal(model(x), expected)
    assert not [name for name in model.state_dict() if "_diffq" in name]


@pytest.mark.parametrize("packed", [False, True])
def test_diffqs_states(packed):
    quantizer = trained("tensor")
    model, x = quantizer.model.eval(), torch.randn(3, 64)
    expected, state = model(x), quantizer.get_quantized_state(packed=packed)
    assert "learn_range" not in state["meta"]["init_kwargs"]
    other = trained("tensor", steps=1)
    other.restore_quantized_state(state)
    assert torch.equal(other.model.eval()(x), expected)
    plain = mlp()
    diffq_fast.restore_quantized_state(plain, state)
    assert torch.equal(plain(x), expected)


# -- fitting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fitted_ranges_have_a_smaller_error(kind, bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    nn.init.normal_(model[0].weight)
    quantizer = attach(model, group_size=64, **KINDS[kind])
    quantizer.freeze_bits()
    with torch.no_grad():
        model[0].weight_diffq.copy_(quantizer.rule().logits(torch.full_like(quantizer.widths()["0.weight"], bits)))
    errors = []
    for clip in (False, True):
        quantizer.fit_ranges(clip=clip)
        errors.append(float((shown(model.eval(), torch.zeros(1, 64)) - model[0].weight).square().sum()))
    assert errors[1] < 0.99 * errors[0]
    quantizer.fit_ranges(clip=False)
    own = functional.weight_range([model[0].weight], group_size=64, range_scope=quantizer.range_scope)
    assert torch.equal(model[0].weight_diffq_range, own)


def test_fitting_to_present_widths_and_to_given_ones():
    quantizer = attach(mlp(), init_bits=4)
    quantizer.fit_ranges()
    present = quantizer.ranges()
    quantizer.fit_ranges(bits=4)
    for name, ranges in quantizer.ranges().items():
        assert torch.equal(ranges, present[name])
    quantizer.fit_ranges(bits=2)
    assert not torch.equal(quantizer.ranges()["0.weight"], present["0.weight"])


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"short_ranges": True, "learn_range": False, "range_scope": "group"},
            "short_ranges=True needs learn_range=True",
        ),
        ({"short_ranges": True}, "short_ranges=True needs range_scope='group', got 'tensor'"),
        ({"rng": "torch"}, "learn_range=True needs rng='philox', got rng='torch'"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, words):
    model = mlp()
    with pytest.raises(ValueError, match=words):
        attach(model, **arguments)
    assert not [name for name in model.state_dict() if "diffq" in name]


def test_a_second_quantizers_ends_are_refused():
    model = mlp()
    attach(model, suffix="_a")
    with pytest.raises(RuntimeError, match=r"already has a parameter 0.weight_a_range"):
        attach(model, suffix="_range", learn_range=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_ends_that_are_not_finite_are_not_exported(value, tmp_path):
    quantizer = attach(mlp())
    with torch.no_grad():
        quantizer.weights[0].ends[0, 1] = value
    with pytest.raises(ValueError, match=r"learned ranges of 0.weight have NaN or infinite ends; call fit_ranges"):
        diffq_fast.save(quantizer, tmp_path / "a")
    with pytest.raises(ValueError, match=r"learned ranges of 0.weight"):
        quantizer.get_quantized_state()


def test_fitting_is_refused_where_it_cannot_be():
    with pytest.raises(RuntimeError, match="fit_ranges: ranges are not learned"):
        attach(mlp(), learn_range=False).fit_ranges()
    for bits in (0, 16, 2.5):
        with pytest.raises(ValueError, match=f"bits must be a whole number from 1 to 15, got {bits}"):
            attach(mlp()).fit_ranges(bits=bits)


def test_sharded_models_are_refused():
    quantizer = attach(mlp())
    assert quantizer.unsharded_only() == "learn_range=True is for whole models; leave it out"
