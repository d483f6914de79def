"""RateQuantizer: noise of learned steps, the price of coded levels, and what becomes of them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import diffq_fast
from diffq_fast import RateQuantizer, SizeTarget
from diffq_fast.packed.widths import encode_widths
from diffq_fast.quantizers.attachment import attached_to
from diffq_fast.quantizers.coded_sizes import Coded, Strata, sampled_size
from diffq_fast.reference.classes import class_bytes
from diffq_fast.reference.log_steps import codes_from_steps, steps_from_codes
from diffq_fast.reference.rate import HIGHEST_LEVEL, fixed_bits, level_costs


class Words(nn.Module):
    """An embedding, whose table has one step, and two layers, whose rows have one each."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(300, 32)
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.second(torch.relu(self.first(self.table(x))))


def attached(seed=0, **arguments):
    torch.manual_seed(seed)
    model = Words()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    quantizer = RateQuantizer(model, **{"min_size": 0.001, **arguments})
    quantizer.setup_optimizer(optimizer)
    return model, quantizer, optimizer


def words(seed=1):
    return torch.randint(300, (16,), generator=torch.Generator().manual_seed(seed))


def move(quantizer, factor):
    with torch.no_grad():
        for log_step in quantizer.learned_parameters():
            log_step.add_(torch.tensor(factor).log())


# -- steps and noise -----------------------------------------------------------------------------------------------


def test_a_table_has_one_step_and_a_row_its_own():
    model, _, _ = attached()
    assert model.table.weight_log_step.shape == (1,)
    assert model.first.weight_log_step.shape == (64,)
    deviations = model.first.weight.detach().std(1, correction=0)
    torch.testing.assert_close(model.first.weight_log_step.detach().exp(), deviations / 2)


@pytest.mark.parametrize(("group_size", "groups"), [(0, 1), (8, 256), (7, 293)])
def test_groups_of_any_size(group_size, groups):
    model, quantizer, _ = attached(group_size=group_size)
    assert model.first.weight_log_step.shape == (groups,)
    model(words()).square().mean().backward()
    assert model.first.weight_log_step.grad.abs().sum() > 0
    assert quantizer.true_model_size() > 0


def test_training_adds_uniform_noise_of_one_step():
    model, _, _ = attached()
    seen = []
    model.first.register_forward_pre_hook(lambda module, _: seen.append(module.weight.detach().clone()))
    for _ in range(50):
        model(words())
    noise = (torch.stack(seen) - model.first.weight.detach()) / model.first.weight_log_step.detach().exp()[:, None]
    assert noise.abs().max() <= 0.5001
    # 102,400 draws: the variance of a uniform is known to 0.3 per cent; 5 standard errors
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.015)


def test_eval_sees_multiples_of_the_stored_steps():
    model, quantizer, _ = attached()
    model.eval()
    seen = []
    model.first.register_forward_pre_hook(lambda module, _: seen.append(module.weight.detach().clone()))
    model(words())
    steps = quantizer.steps()["first.weight"]
    assert torch.equal(steps, steps_from_codes(codes_from_steps(steps)))
    levels = (model.first.weight.detach() / steps[:, None]).round()
    assert torch.equal(seen[0], levels * steps[:, None] + 0.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"group_size": -1}, r"group_size must be None or 0 \(one group\)"),
        ({"init_step": 0.0}, "init_step must be positive"),
        ({"sample_share": 0.0}, "sample_share must be above 0"),
        ({"noisy_dtype": "half"}, "noisy_dtype must be None or 'auto'"),
    ],
)
def test_a_bad_argument_is_refused(arguments, text):
    with pytest.raises(ValueError, match=f"RateQuantizer: {text}"):
        RateQuantizer(Words(), **arguments)


# -- the price -----------------------------------------------------------------------------------------------------


def order0_bits(values):
    counts = torch.unique(values, return_counts=True)[1].double()
    share = counts / counts.sum()
    return float(-(share * share.log2()).sum())


DENSITIES = {
    "normal": lambda: torch.randn(2**20),
    "Laplace": lambda: torch.distributions.Laplace(0.0, 0.7).sample((2**20,)),
    "student": lambda: torch.distributions.StudentT(3.0).sample((2**20,)),
    "shifted": lambda: torch.randn(2**20) + 0.3,
}


@pytest.mark.parametrize("step", [0.05, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", DENSITIES)
def test_the_sampled_size_is_the_entropy_of_the_levels(name, step):
    torch.manual_seed(0)
    weight = DENSITIES[name]()
    log_step = torch.full((1,), step).log().requires_grad_()
    size = sampled_size([Coded(weight, log_step, 0)], 1 / 32, False)
    entropy = order0_bits((weight / step).round())
    expected = entropy + fixed_bits(weight.numel(), torch.tensor(entropy)).item() / weight.numel()
    # The bits of a level deviate by at most 1.7 from their mean, that of 32,768 samples by 0.0094: 3 standard errors.
    assert size.item() / weight.numel() == pytest.approx(expected, abs=0.029)


@pytest.mark.parametrize("step", [0.05, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["normal", "Laplace", "student"])
def test_the_slope_is_that_of_the_entropy(name, step):
    """To 20 per cent: the slope is that of costs which are linear between levels, the entropy itself has waves."""
    torch.manual_seed(0)
    weight = DENSITIES[name]()
    log_step = torch.full((1,), step).log().requires_grad_()
    (slope,) = torch.autograd.grad(sampled_size([Coded(weight, log_step, 0)], 1 / 32, False), log_step)
    larger, smaller = (order0_bits((weight / (step * factor)).round()) for factor in (1.05, 1 / 1.05))
    expected = (larger - smaller) / (2 * torch.tensor(1.05).log().item())
    assert slope.item() / weight.numel() == pytest.approx(expected, rel=0.2)


def test_costs_are_those_of_a_distribution_and_finite_far_out():
    counts = torch.zeros(2, 2 * HIGHEST_LEVEL + 1)
    counts[0, HIGHEST_LEVEL - 2 : HIGHEST_LEVEL + 3] = torch.tensor([1.0, 20, 100, 20, 1])
    counts[1, HIGHEST_LEVEL] = 50.0  # all zero
    costs = level_costs(counts)
    assert costs.isfinite().all()
    assert costs.max() <= 24
    torch.testing.assert_close(costs.neg().exp2().sum(1), torch.ones(2), atol=2e-3, rtol=0)
    assert costs[1, HIGHEST_LEVEL] < 0.01


@pytest.mark.parametrize(
    ("count", "group_size", "share"), [(1000, 0, 0.5), (9000, 7, 0.5), (20000, 8, 0.2), (4100, 100, 1)]
)
def test_a_sample_stands_for_every_element(count, group_size, share):
    """Each element is drawn as often as the others, weighed by what its piece stands for."""
    coded = Coded(torch.zeros(count), torch.zeros(-(-count // group_size) if group_size else 1), group_size)
    strata = Strata.of(coded, share)
    torch.manual_seed(0)
    seen = torch.zeros(count)
    for _ in range(300):
        _, elements, standing_for = strata.sample(torch.rand(1, strata.draws()).clamp(1e-6, 1 - 1e-6))
        assert elements.unique().numel() == elements.numel()
        seen.index_add_(0, elements.reshape(-1), standing_for.expand_as(elements).reshape(-1))
    assert seen.sum().item() / 300 == pytest.approx(count, rel=0.01)
    # a mean of 300 draws; standing_for is at most 1 / share, here 5: five standard errors are below 1
    assert (seen / 300 - 1).abs().max() < 1


def test_the_size_is_a_function_of_the_model_alone():
    _, quantizer, _ = attached()
    before = torch.get_rng_state()
    assert torch.equal(quantizer.model_size(), quantizer.model_size())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_price_reaches_the_steps_and_not_the_weights_unless_asked():
    for asked in (False, True):
        model, quantizer, _ = attached(rate_to_weights=asked)
        quantizer.model_size().backward()
        assert (model.first.weight_log_step.grad < 0).all()
        assert (model.first.weight.grad is not None) == asked
    assert (model.first.weight.grad * model.first.weight).sum() > 0  # smaller weights are cheaper


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0, 8.0])
def test_the_estimate_is_within_two_per_cent_of_the_file(factor):
    _, quantizer, _ = attached(sample_share=0.5)
    move(quantizer, factor)
    assert quantizer.model_size().item() == pytest.approx(quantizer.true_model_size(), rel=0.02)


def test_a_group_may_die_and_costs_nothing():
    model, quantizer, _ = attached()
    move(quantizer, 1e4)
    model.eval()
    assert torch.equal(model(words()), model.second.bias.expand(16, -1))
    for name, bits in quantizer.bits_per_weight().items():
        count = model.get_parameter(name).numel()
        assert bits * count == 16 * -(-count // 512)  # the fewest words that a file may have


# -- training ------------------------------------------------------------------------------------------------------


def train(steps, mb, straight_through=True, seed=0):
    model, quantizer, optimizer = attached(seed)
    target = SizeTarget(quantizer, mb=mb, total_steps=steps, straight_through=straight_through)
    wanted = torch.randn(300, 32)
    for step in range(steps):
        batch = words(step)
        loss = (model(batch) - wanted[batch]).square().mean() + target.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        target.step()
    return model, quantizer


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("bits", [3.0, 1.5, 0.7])
def test_a_size_target_is_met_in_coded_megabytes(bits, straight_through):
    count = 300 * 32 + 2 * 64 * 32
    mb = (count * bits / 8 + 4 * (64 + 32) + 150) / 2**20  # and the biases, and what a step costs
    _, quantizer = train(120, mb, straight_through)
    assert quantizer.bits_frozen
    assert mb * 0.99 <= quantizer.true_model_size() <= mb


def test_a_target_below_the_least_size_is_refused():
    _, quantizer, _ = attached()
    with pytest.raises(ValueError, match="SizeTarget: the target must be at least"):
        SizeTarget(quantizer, mb=1e-4, total_steps=10)
    with pytest.raises(ValueError, match=r"RateQuantizer.freeze_bits: mb must be at least"):
        quantizer.freeze_bits(mb=1e-4)


def test_frozen_steps_stay_and_training_sees_the_weights_of_eval():
    model, quantizer, optimizer = attached()
    quantizer.freeze_bits(straight_through=True)
    before = quantizer.steps()
    for step in range(3):
        optimizer.zero_grad()
        (model(words(step)).square().mean() + quantizer.model_size()).backward()
        optimizer.step()
    after = quantizer.steps()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.first.weight.grad.abs().sum() > 0
    trained = model(words())
    model.eval()
    assert torch.equal(model(words()), trained)
    quantizer.unfreeze_bits()
    assert not quantizer.bits_frozen


def test_frozen_noise_has_the_stored_steps():
    model, quantizer, _ = attached()
    quantizer.freeze_bits()
    model(words()).sum().backward()
    assert (model.first.weight_log_step.grad == 0).all()  # in the graph, as a distributed wrapper wants it
    steps = quantizer.steps()["first.weight"]
    torch.testing.assert_close(model.first.weight_log_step.detach().exp(), steps)


# -- the rest of the house -----------------------------------------------------------------------------------------


def test_state_dict_copies_and_pickles_carry_the_steps():
    model, quantizer, _ = attached()
    move(quantizer, 1.7)
    expected = quantizer.steps()
    other, loaded, _ = attached(seed=3)
    other.load_state_dict(model.state_dict())
    copies = [loaded, attached_to(copy.deepcopy(model))[0], attached_to(pickle.loads(pickle.dumps(model)))[0]]
    for each in copies:
        assert all(torch.equal(each.steps()[name], steps) for name, steps in expected.items())
        assert each.true_model_size() == quantizer.true_model_size()
        assert torch.equal(each.model_size(), quantizer.model_size())


def test_a_copy_of_a_frozen_model_is_frozen():
    model, quantizer, _ = attached()
    quantizer.freeze_bits(straight_through=True)
    again = copy.deepcopy(model)
    assert attached_to(again)[0].bits_frozen
    assert torch.equal(again(words()), model(words()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_computes_again_with_the_same_noise(reentrant):
    def gradients(inside):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)))
        RateQuantizer(model, min_size=0).no_optimizer()
        block = model[1]
        if inside:
            inner = block.forward
            block.forward = lambda x: checkpoint(inner, x, use_reentrant=reentrant)
        torch.manual_seed(1)
        model(torch.randn(4, 16)).square().sum().backward()
        return {name: param.grad for name, param in model.named_parameters()}

    plain = gradients(False)
    for name, grad in gradients(True).items():
        torch.testing.assert_close(grad, plain[name], msg=name)


def test_compiled_it_gives_the_same_numbers():
    torch._dynamo.reset()

    def run(compiled):
        model, quantizer, _ = attached()
        torch.manual_seed(5)
        call = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        loss = call(words()).square().mean() + quantizer.model_size()
        loss.backward()
        return loss.item(), model.first.weight_log_step.grad

    (plain, plain_grad), (loss, grad) = run(False), run(True)
    assert loss == pytest.approx(plain, rel=1e-5)
    torch.testing.assert_close(grad, plain_grad)


def test_tied_weights_count_once():
    torch.manual_seed(0)
    model = Words()
    model.head = nn.Linear(32, 300, bias=False)
    model.head.weight = model.table.weight
    quantizer = RateQuantizer(model, min_size=0.001)
    assert len(quantizer.learned_parameters()) == 3
    _, alone, _ = attached()
    assert quantizer.true_model_size() == pytest.approx(alone.true_model_size())


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0, 1e4])
def test_a_file_has_the_weights_of_eval_and_the_size_that_was_said(factor, tmp_path):
    model, quantizer, _ = attached()
    move(quantizer, factor)
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    data = len(content) - 8 - int.from_bytes(content[:8], "little")  # without the header
    assert data / 2**20 == pytest.approx(quantizer.true_model_size(), rel=0.01)

    plain = Words()
    diffq_fast.load(tmp_path / "model.safetensors", plain)
    model.eval()
    assert torch.equal(plain(words()), model(words()))

    other, loaded, _ = attached(seed=3)
    diffq_fast.load(tmp_path / "model.safetensors", other)
    assert all(torch.equal(loaded.steps()[name], steps) for name, steps in quantizer.steps().items())
    other.eval()
    assert torch.equal(other(words()), model(words()))


def test_a_file_of_another_quantizer_is_refused(tmp_path):
    model = Words()
    diffq_fast.save(diffq_fast.UniformQuantizer(model, min_size=0.001), tmp_path / "model.safetensors")
    other, _, _ = attached()
    with pytest.raises(ValueError, match=r"missing in the file: table\.weight_log_step"):
        diffq_fast.load(tmp_path / "model.safetensors", other)
    with pytest.raises(ValueError, match="this RateQuantizer has coded multiples of steps"):
        diffq_fast.load(tmp_path / "model.safetensors", other, strict=False)


def test_weights_that_are_not_finite_are_not_exported():
    model, quantizer, _ = attached()
    with torch.no_grad():
        model.first.weight_log_step[3] = float("nan")
    attempts = [
        quantizer.check_exportable,
        quantizer.true_model_size,
        lambda: quantizer.model_size(exact=True),
        quantizer.bits_per_weight,
        lambda: model.eval()(words()),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"a step of first\.weight is NaN"):
            attempt()


def test_a_model_with_nothing_to_quantise_has_its_plain_size():
    quantizer = RateQuantizer(nn.Linear(4, 4))
    assert quantizer.true_model_size() == 20 * 4 / 2**20
    assert quantizer.model_size().item() == pytest.approx(20 * 4 / 2**20)


def rows_of_different_sizes():
    """A layer whose rows have deviations from 0.02 to 2, with one step for all: small and large levels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 256, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(256, 512) * torch.logspace(-1.7, 0.3, 256)[:, None])
    quantizer = RateQuantizer(model, min_size=0)
    with torch.no_grad():
        quantizer.learned_parameters()[0].fill_(math.log(0.1))
    return model, quantizer


def test_the_size_counts_the_classes_that_a_file_has(tmp_path):
    _, quantizer = rows_of_different_sizes()
    diffq_fast.save(quantizer, tmp_path / "file")
    report = diffq_fast.inspect(tmp_path / "file")
    assert len(report.weights[0].histogram) > 1, "expected rows of several classes"
    written = report.file_bytes - report.bytes_by_purpose["header"]
    assert quantizer.true_model_size() * 2**20 == pytest.approx(written, rel=0.005)


@pytest.mark.parametrize("group_size", [None, 64, 8])
@pytest.mark.parametrize("step", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("spread", [0.0, 0.6, 1.0])
def test_the_sampled_size_counts_classes_too(spread, step, group_size):
    """Rows of different sizes under one step; at a spread of 1 one table for all takes 10 to 30 per cent more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(384, 1536, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(1536, 384) * torch.exp(spread * torch.randn(1536, 1)))
    quantizer = RateQuantizer(model, min_size=0, group_size=group_size)
    with torch.no_grad():
        quantizer.learned_parameters()[0].fill_(math.log(step))
    assert quantizer.model_size().item() == pytest.approx(quantizer.true_model_size(), rel=0.02)


def test_a_size_that_fits_is_met_on_disk_where_a_file_has_classes(tmp_path):
    _, quantizer = rows_of_different_sizes()
    wanted = 0.9 * quantizer.true_model_size()
    quantizer.freeze_bits(mb=wanted)
    diffq_fast.save(quantizer, tmp_path / "file")
    report = diffq_fast.inspect(tmp_path / "file")
    written = (report.file_bytes - report.bytes_by_purpose["header"]) / 2**20
    assert 0.99 * wanted <= written <= wanted


def test_a_size_is_met_where_weights_lie_on_their_levels():
    """Then all steps of nearly an octave give the same bits: a search must not go by how they fall elsewhere."""
    torch.manual_seed(0)
    model = nn.Linear(512, 256, bias=False)
    step = steps_from_codes(torch.tensor([-53], dtype=torch.int16))
    with torch.no_grad():
        levels = torch.randn(256, 512).mul(0.7).round().clamp(-1, 1)
        model.weight.copy_((levels + 0.02 * torch.randn(256, 512)) * step)
    quantizer = RateQuantizer(model, min_size=0)
    with torch.no_grad():
        quantizer.learned_parameters()[0].copy_(step.log().expand(256))
    wanted = 0.98 * quantizer.true_model_size()
    quantizer.freeze_bits(mb=wanted)
    assert 0.97 * wanted <= quantizer.true_model_size() <= wanted


@pytest.mark.parametrize("seed", range(40))
def test_the_bytes_of_classes_are_those_of_the_file(seed):
    generator = torch.Generator().manual_seed(seed)
    number = int(torch.randint(0, 400, (1,), generator=generator))
    lengths = torch.randint(1, (2, 20, 3000)[seed % 3], (number,), generator=generator)
    classes = torch.randint(1, 2 + seed % 9, (number,), generator=generator).to(torch.uint8)
    classes = classes.repeat_interleave(lengths)
    assert class_bytes(classes) == len(encode_widths(classes.numpy())[1])


# -- weights, sizes and models that are out of the ordinary ----------------------------------------------------------


@pytest.mark.parametrize("weight", [torch.ones(64), torch.full((64,), 0.3), 1000 + 1e-3 * torch.linspace(-1, 1, 64)])
def test_eval_keeps_a_weight_that_hardly_varies(weight):
    model = nn.LayerNorm(64)
    with torch.no_grad():
        model.weight.copy_(weight)
    quantizer = RateQuantizer(model, min_size=0)
    model.eval()
    inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.layer_norm(inputs, (64,), weight)
    torch.testing.assert_close(model(inputs).detach(), expected, rtol=1e-4, atol=1e-4 * float(weight.abs().max()))
    assert float(weight.abs().max() / quantizer.steps()["weight"]) <= 32767


@pytest.mark.parametrize("mb", [1.0, math.inf])
def test_steps_that_fit_a_large_size_keep_every_level_in_16_bits(mb):
    model, quantizer, _ = attached()
    quantizer.freeze_bits(mb=mb)
    model.eval()
    steps = quantizer.steps()
    for name, layer in (("first", model.first), ("second", model.second)):
        assert float((layer.weight.detach().abs().amax(1) / steps[f"{name}.weight"]).max()) < 32767.5
    with torch.no_grad():
        seen = model(words())
        quantizer.detach()
        torch.testing.assert_close(seen, model(words()), rtol=1e-3, atol=1e-4)


def test_the_size_of_levels_beyond_16_bits_is_that_of_the_file(tmp_path):
    model, quantizer, _ = attached()
    model.first.weight.data.mul_(1e30)
    diffq_fast.save(quantizer, tmp_path / "file")
    raw = (tmp_path / "file").read_bytes()
    stored = len(raw) - 8 - int.from_bytes(raw[:8], "little")
    assert stored == pytest.approx(quantizer.true_model_size() * 2**20, rel=0.02)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("group_size", [0, 64])
def test_the_size_of_a_weight_far_from_zero_is_that_of_the_file(group_size, spread, tmp_path):
    model = nn.Linear(512, 512, bias=False)
    noise = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.weight.copy_(0.3 + spread * noise)
    quantizer = RateQuantizer(model, min_size=0, group_size=group_size)
    with torch.no_grad():  # some steps per deviation
        quantizer.learned_parameters()[0].fill_(math.log(max(spread / 4, 2e-5)))
    diffq_fast.save(quantizer, tmp_path / "file")
    raw = (tmp_path / "file").read_bytes()
    stored = 8 * (len(raw) - 8 - int.from_bytes(raw[:8], "little")) / 512**2
    assert quantizer.true_model_size() * 8 * 2**20 / 512**2 == pytest.approx(stored, rel=0.01, abs=0.01)
    assert quantizer.model_size().item() * 8 * 2**20 / 512**2 == pytest.approx(stored, rel=0.02, abs=0.03)


def test_a_weight_without_elements(tmp_path):
    model, other = (nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
    for each in (model, other):
        each[0].empty = nn.Parameter(torch.zeros(0, 8))
    quantizer = RateQuantizer(model, min_size=-1)
    quantizer.no_optimizer()
    (model(torch.randn(2, 8)).sum() + quantizer.model_size()).backward()
    quantizer.freeze_bits(mb=0.001)
    diffq_fast.save(quantizer, tmp_path / "file")
    inputs = torch.randn(2, 8)
    assert torch.equal(diffq_fast.load(tmp_path / "file", other)(inputs), model.eval()(inputs))


def test_freezing_a_model_with_nothing_to_quantise_changes_nothing():
    quantizer = RateQuantizer(nn.Linear(2, 2))
    quantizer.freeze_bits(mb=1.0)
    assert quantizer.true_model_size() == pytest.approx(4 * 6 / 2**20)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_not_frozen(value):
    model, quantizer, _ = attached()
    model.first.weight_log_step.data[3] = value
    for mb in (None, 0.01):
        with pytest.raises(ValueError, match=r"RateQuantizer: a step of first.weight is NaN or infinite"):
            quantizer.freeze_bits(mb=mb)
    assert not quantizer.bits_frozen


def test_a_model_that_has_changed_is_told_by_all_that_reads_its_weights():
    model, quantizer, _ = attached()
    model.first = nn.Linear(32, 64)
    for read in (quantizer.freeze_bits, quantizer.steps, quantizer.bits_per_weight):
        with pytest.raises(RuntimeError, match=r"the module of first.weight is no longer part of the model"):
            read()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_size_does_not_know_the_default_dtype(dtype):
    _, quantizer, _ = attached()
    expected = quantizer.model_size()
    torch.set_default_dtype(dtype)
    try:
        assert quantizer.model_size().dtype == torch.float32
        assert torch.equal(quantizer.model_size(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_coding_that_is_none_is_refused(tmp_path):
    _, quantizer, _ = attached()
    with pytest.raises(ValueError, match="save: coding must be one of 'auto', 'fixed', 'coded', got 'huffman'"):
        diffq_fast.save(quantizer, tmp_path / "file", coding="huffman")
