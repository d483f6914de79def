"""Frozen bits: training at the widths of the export, which no optimizer, loading or saving changes."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import diffq_fast
from diffq_fast import DiffQuantizer, RateQuantizer, SizeTarget
from support.models import Tied, mlp

OPTIONS = {"min_size": 0, "group_size": 8, "init_bits": 5}


def training(model=None, steps=5, optimizer=torch.optim.AdamW, **options):
    """A model whose logits have moved and whose optimizer has momentum: (quantizer, one more step)."""
    torch.manual_seed(0)
    model = model or mlp()
    optimizer = optimizer(model.parameters(), lr=1e-2)
    quantizer = DiffQuantizer(model, **OPTIONS | options)
    quantizer.setup_optimizer(optimizer, lr=0.3, weight_decay=0.1)

    def step():
        inputs = torch.randn(4, next(model.parameters()).shape[-1])
        optimizer.zero_grad(set_to_none=False)
        (model(inputs).square().mean() + quantizer.model_size()).backward()
        optimizer.step()

    for _ in range(steps):
        step()
    return quantizer, step


def widths(quantizer):
    return {record.name: record.widths.clone() for record in quantizer.export_weights()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_freezing_takes_the_widths_of_the_export():
    quantizer, _ = training()
    before, size = widths(quantizer), quantizer.true_model_size()
    assert not quantizer.bits_frozen
    quantizer.freeze_bits()
    assert quantizer.bits_frozen
    assert_same(widths(quantizer), before)
    assert quantizer.true_model_size() == size
    assert quantizer.model_size().item() == size
    assert {bits.dtype for bits in quantizer.bits().values()} == {torch.float32}
    assert_same(quantizer.bits(), {name: width.float() for name, width in before.items()})


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.AdamW, torch.optim.Adagrad, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)],
)
def test_no_optimizer_moves_frozen_logits(optimizer):
    quantizer, step = training(optimizer=optimizer)
    quantizer.freeze_bits()
    frozen = [logit.detach().clone() for logit in quantizer.learned_parameters()]
    weights = [entry.param.detach().clone() for entry in quantizer.selection.originals]
    size = quantizer.true_model_size()
    for _ in range(3):
        step()
    for logit, value in zip(quantizer.learned_parameters(), frozen, strict=True):
        assert torch.equal(logit, value)
    assert all(
        not torch.equal(entry.param, old) for entry, old in zip(quantizer.selection.originals, weights, strict=True)
    )
    assert quantizer.true_model_size() == size


@pytest.mark.parametrize("named", [False, True])
def test_nor_does_one_whose_closure_makes_the_gradients(named):
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    quantizer = DiffQuantizer(model, **OPTIONS)
    quantizer.setup_optimizer(optimizer, lr=0.3)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.randn(4, next(model.parameters()).shape[-1])).square().mean() + quantizer.model_size()
        loss.backward()
        return loss

    def step():
        return optimizer.step(closure=closure) if named else optimizer.step(closure)

    for _ in range(3):  # momentum
        step()
    quantizer.freeze_bits()
    logits = [logit.detach().clone() for logit in quantizer.learned_parameters()]
    weight = model[0].weight.detach().clone()
    assert step().item() > 0
    assert not torch.equal(model[0].weight, weight)
    for logit, before in zip(quantizer.learned_parameters(), logits, strict=True):
        assert torch.equal(logit, before)


def test_unfrozen_bits_are_learned_again_from_their_whole_numbers():
    quantizer, step = training()
    quantizer.freeze_bits()
    before = widths(quantizer)
    quantizer.unfreeze_bits()
    assert not quantizer.bits_frozen
    assert_same(widths(quantizer), before)
    frozen = [logit.detach().clone() for logit in quantizer.learned_parameters()]
    step()
    assert all(not torch.equal(logit, old) for logit, old in zip(quantizer.learned_parameters(), frozen, strict=True))


@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize(
    "options", [{}, {"min_bits": 2, "init_bits": 2.2}, {"extra_bits": 1}, {"param": "noise"}, {"group_size": 0}]
)
def test_frozen_noise_is_as_large_as_a_step_of_the_export(options, rng):
    """Divided by the step of the export it is U[-1/2, 1/2), whatever the width."""
    quantizer, _ = training(nn.Linear(64, 32, bias=False), rng=rng, **options)
    quantizer.freeze_bits()
    (width,) = widths(quantizer).values()
    quantizer.noise = "uniform"
    weight = quantizer.model.weight.detach().clone()
    torch.manual_seed(1)
    noisy = quantizer.model(torch.eye(64)).detach().T
    step = (weight.max() - weight.min()) / (2.0 ** width.double() - 1)
    per_element = step.repeat_interleave(quantizer.group_size or 2048).view_as(weight)
    draws = (noisy - weight) / per_element
    assert draws.abs().max() <= 0.5 + 1e-3
    assert draws.abs().max() > 0.495  # of 2048 uniform draws; false alarm rate 1e-9
    assert draws.std() == pytest.approx(12**-0.5, rel=0.1)


def test_the_gradient_of_the_weights_is_that_at_whole_bits():
    """Against autograd through the noisy weight's formula, with the noise that a frozen forward has drawn."""
    quantizer, _ = training(nn.Linear(16, 8, bias=False), rng="torch")
    quantizer.freeze_bits()
    weight = quantizer.model.weight
    inputs, target = torch.randn(3, 16), torch.randn(3, 8)
    weight.grad = None
    torch.manual_seed(1)
    (quantizer.model(inputs) * target).sum().backward()
    torch.manual_seed(1)
    noise = torch.randn(weight.numel()) / 2
    (width,) = widths(quantizer).values()
    again = weight.detach().clone().requires_grad_()
    step = (again.max() - again.min()) / (2.0 ** width.float() - 1).repeat_interleave(8)
    (nn.functional.linear(inputs, again + (step * noise).view_as(again)) * target).sum().backward()
    torch.testing.assert_close(weight.grad, again.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_recompute_with_the_frozen_noise(reentrant):
    quantizer, _ = training()
    quantizer.freeze_bits()
    model, inputs = quantizer.model, torch.randn(4, 64, requires_grad=True)

    class Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.inner, self.wrap = mlp(), wrap

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant) if self.wrap else self.inner(x)

    gradients = []
    for wrap in (False, True):
        wrapped = Wrapped(wrap)
        wrapped.inner.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("_diffq")})
        frozen = DiffQuantizer(wrapped, **OPTIONS)
        for logit, other in zip(frozen.learned_parameters(), quantizer.learned_parameters(), strict=True):
            logit.data.copy_(other)
        frozen.no_optimizer()
        frozen.freeze_bits()
        torch.manual_seed(2)
        wrapped(inputs).square().sum().backward()
        gradients.append({name: param.grad for name, param in wrapped.named_parameters()})
    assert_same(*gradients)
    assert all(not gradients[0][name].any() for name in gradients[0] if name.endswith("_diffq"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_compiled_model_follows_freezing_and_unfreezing():
    torch._dynamo.reset()
    quantizer, _ = training()
    compiled = torch.compile(quantizer.model, backend="aot_eager", fullgraph=True)
    inputs = torch.randn(4, 64)

    def both():
        outputs = []
        for forward in (compiled, quantizer.model):
            torch.manual_seed(3)
            outputs.append(forward(inputs))
        torch.testing.assert_close(*outputs)
        return outputs[0].detach()

    learned = both()
    quantizer.freeze_bits()
    frozen = both()
    assert not torch.allclose(learned, frozen)
    quantizer.unfreeze_bits()
    with torch.no_grad():
        for logits in quantizer.learned_parameters():
            logits += 0.3
    assert not torch.allclose(both(), frozen)


def test_state_dict_and_a_second_freeze_give_the_same_widths():
    quantizer, _ = training()
    quantizer.freeze_bits(mb=0.8 * quantizer.true_model_size())
    fresh = DiffQuantizer(mlp(), **OPTIONS)
    fresh.model.load_state_dict(quantizer.model.state_dict())
    assert_same(widths(fresh), widths(quantizer))
    fresh.freeze_bits()
    assert_same(widths(fresh), widths(quantizer))
    assert_same(fresh.model.state_dict(), quantizer.model.state_dict())


def test_loading_into_a_frozen_model_freezes_what_was_loaded():
    quantizer, _ = training()
    frozen = DiffQuantizer(mlp(), **OPTIONS)
    frozen.no_optimizer()
    frozen.freeze_bits()
    frozen.model(torch.randn(2, 64))
    quantizer.freeze_bits()
    frozen.model.load_state_dict(quantizer.model.state_dict())
    assert_same(frozen.bits(), quantizer.bits())
    outputs = []
    for each in (frozen, quantizer):
        torch.manual_seed(0)
        outputs.append(each.model(torch.ones(2, 64)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("logits", [False, True])
def test_packed_files_bring_the_widths_back(tmp_path, logits):
    quantizer, _ = training()
    quantizer.freeze_bits(mb=0.8 * quantizer.true_model_size())
    diffq_fast.save(quantizer, tmp_path / "frozen", logits=logits)
    fresh = DiffQuantizer(mlp(), **OPTIONS)
    diffq_fast.load(tmp_path / "frozen", fresh.model)
    fresh.freeze_bits()
    assert_same(widths(fresh), widths(quantizer))


def test_legacy_states_bring_the_widths_back():
    quantizer, _ = training()
    quantizer.freeze_bits()
    fresh = DiffQuantizer(mlp(), **OPTIONS)
    fresh.restore_quantized_state(quantizer.get_quantized_state())
    fresh.freeze_bits()
    assert_same(widths(fresh), widths(quantizer))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_of_a_frozen_quantizer_is_frozen_by_itself(duplicate):
    original, _ = training()
    original.freeze_bits()
    quantizer = duplicate(original)
    assert quantizer.bits_frozen
    assert_same(widths(quantizer), widths(original))
    logits = [logit.detach().clone() for logit in quantizer.learned_parameters()]
    optimizer = torch.optim.AdamW(quantizer.model.parameters(), lr=0.1)
    quantizer.model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    assert all(torch.equal(logit, old) for logit, old in zip(quantizer.learned_parameters(), logits, strict=True))
    quantizer.unfreeze_bits()
    assert original.bits_frozen


@pytest.mark.parametrize("options", [{}, {"group_size": 1}, {"param": "noise"}, {"float16": True}, {"extra_bits": -1}])
@pytest.mark.parametrize("share", [0.6, 0.9, 1.1, 1.5])
def test_freezing_to_a_size_comes_within_a_group_of_it(options, share):
    quantizer, _ = training(**options)
    mb = share * quantizer.true_model_size()
    quantizer.freeze_bits(mb=mb)
    assert quantizer.true_model_size() <= mb * (1 + 1e-6)
    assert quantizer.true_model_size() > 0.98 * mb


def test_an_unreachable_size_is_refused_with_the_smallest_one():
    quantizer, _ = training()
    before = quantizer.model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(ValueError, match=r"freeze_bits: mb must be at least 0\.00\d+.* 2 bits everywhere, got 0\.0001"):
        quantizer.freeze_bits(mb=1e-4)
    assert not quantizer.bits_frozen
    assert_same(quantizer.model.state_dict(), before)


@pytest.mark.parametrize("mb", ["0.1", [0.1], True])
@pytest.mark.parametrize("make", [DiffQuantizer, RateQuantizer])
def test_a_size_that_is_no_number_is_refused(make, mb):
    quantizer = make(nn.Linear(32, 32), min_size=0)
    with pytest.raises(
        TypeError, match=rf"{make.__name__}\.freeze_bits: mb must be a number, got {re.escape(repr(mb))}"
    ):
        quantizer.freeze_bits(mb=mb)
    with pytest.raises(TypeError, match=r"SizeTarget: mb must be a number"):
        SizeTarget(quantizer, mb=mb, total_steps=10)
    with pytest.raises(ValueError, match=r"freeze_bits: mb must be a number, got nan"):
        quantizer.freeze_bits(mb=float("nan"))
    assert not quantizer.bits_frozen


def test_tied_weights_freeze_once():
    quantizer, step = training(Tied())
    quantizer.freeze_bits()
    size = quantizer.true_model_size()
    step()
    assert quantizer.true_model_size() == size
    assert len(quantizer.bits()) == len(quantizer.selection.originals)


def test_the_size_of_frozen_bits_can_still_be_a_loss():
    quantizer, _ = training()
    quantizer.freeze_bits()
    for logit in quantizer.learned_parameters():
        logit.grad = None
    quantizer.model_size().backward()
    assert all(not logit.grad.any() for logit in quantizer.learned_parameters())


def test_eval_is_the_same_before_and_after_freezing():
    quantizer, _ = training()
    quantizer.model.eval()
    inputs = torch.randn(3, 64)
    before = quantizer.model(inputs)
    quantizer.freeze_bits()
    assert torch.equal(quantizer.model(inputs), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_in_other_dtypes_freeze(dtype):
    torch.manual_seed(0)
    model = mlp().to(dtype)
    quantizer = DiffQuantizer(model, **OPTIONS)
    model.to(dtype)
    quantizer.no_optimizer()
    quantizer.freeze_bits(mb=0.9 * quantizer.true_model_size())
    size = quantizer.true_model_size()
    model(torch.randn(2, 64, dtype=dtype)).sum().backward()
    assert quantizer.true_model_size() == size
    assert {bits.dtype for bits in quantizer.bits().values()} == {torch.float32}
