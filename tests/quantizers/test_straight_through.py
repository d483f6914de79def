"""freeze_bits(straight_through=True): training sees the weights of the export, gradients reach the float ones."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffq_fast import DiffQuantizer, SizeTarget
from support.models import Tied, mlp


def frozen(build=mlp, dtype=torch.float32, straight_through=True, **options):
    """A quantizer of mixed widths that has been frozen."""
    torch.manual_seed(0)
    model = build().to(dtype)
    quantizer = DiffQuantizer(model, **{"min_size": 0, "group_size": 8, **options})
    for logit in quantizer.learned_parameters():
        logit.data.normal_(std=2)
    quantizer.no_optimizer()
    quantizer.freeze_bits(straight_through=straight_through)
    return quantizer


def build_with(parameters, dtype):
    """The same network of float weights, without a quantizer."""
    model = mlp().to(dtype)
    model.load_state_dict(parameters)
    return model


def batch(width=64, dtype=torch.float32):
    return torch.randn(4, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def evaluated(model, inputs):
    model.eval()
    out = model(inputs)
    model.train()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"group_size": 0}, {"group_size": 7}, {"range_scope": "group"}, {"rng": "torch"}, {"extra_bits": 1}],
)
def test_training_sees_the_weights_of_the_evaluation_bit_for_bit(options, dtype):
    model, inputs = frozen(dtype=dtype, **options).model, batch(dtype=dtype)
    torch.manual_seed(3)
    trained = model(inputs)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(3))  # nothing was drawn
    assert torch.equal(trained, evaluated(model, inputs))
    parameters = {name: param for name, param in model.named_parameters() if not name.endswith("_diffq")}
    plain = build_with(parameters, dtype)
    assert not torch.equal(trained, plain(inputs))


def test_gradients_are_those_of_the_rounded_weights():
    quantizer = frozen(lambda: nn.Linear(64, 16, bias=False))
    layer, inputs = quantizer.model, batch()
    plain = evaluated(layer, torch.eye(64)).detach().T.contiguous().requires_grad_()
    layer(inputs).square().sum().backward()
    nn.functional.linear(inputs, plain).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.grad)
    (logit,) = quantizer.learned_parameters()
    assert logit.grad is not None
    assert not logit.grad.any()


def test_the_weights_train_and_the_size_stays():
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.setup_optimizer(optimizer, lr=0.1)
    quantizer.freeze_bits(mb=0.5 * quantizer.true_model_size(), straight_through=True)
    size, inputs = quantizer.true_model_size(), batch()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(inputs) - 1).square().mean()
        (loss + quantizer.model_size()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert quantizer.true_model_size() == size
    # What was trained is what is evaluated: the loss of the export, not of weights before rounding.
    assert torch.equal(model(inputs), evaluated(model, inputs))


def test_unfreezing_brings_the_noise_back():
    quantizer = frozen()
    model, inputs = quantizer.model, batch()
    assert torch.equal(model(inputs), model(inputs))
    quantizer.unfreeze_bits()
    assert not torch.equal(model(inputs), model(inputs))
    quantizer.freeze_bits()
    assert not torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda quantizer: pickle.loads(pickle.dumps(quantizer))])
def test_copies_go_on_without_noise(make_copy):
    model = make_copy(frozen()).model
    assert torch.equal(model(batch()), evaluated(model, batch()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_give_the_same_gradients(reentrant):
    class Wrapped(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            self.inner, self.checkpointed = mlp(), checkpointed

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant) if self.checkpointed else self.inner(x)

    gradients = []
    for checkpointed in (False, True):
        model = frozen(partial(Wrapped, checkpointed)).model
        model(batch().requires_grad_()).square().sum().backward()
        gradients.append([param.grad for param in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert gradients[0][0].any()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_compiled_model_gives_the_same_results_and_gradients():
    torch._dynamo.reset()
    model, inputs = frozen().model, batch()
    results = []
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        out = forward(inputs)
        out.square().sum().backward()
        results.append([out.detach(), *(param.grad for param in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_autocast_with_weights_in_its_dtype_changes_no_result():
    results, seen = [], []
    for noisy_dtype in (None, "auto"):
        model = frozen(noisy_dtype=noisy_dtype).model
        model[2].register_forward_pre_hook(lambda layer, args: seen.append(layer.weight.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            out = model(batch())
        out.float().square().sum().backward()
        results.append([out.detach(), *(param.grad for param in model.parameters())])
    assert seen == [torch.float32, torch.bfloat16]
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_tied_weights_are_rounded_once_and_collect_both_gradients():
    quantizer = frozen(Tied)
    model, inputs = quantizer.model, batch(32)
    model(inputs).square().sum().backward()
    found = model.a.weight.grad.clone()
    plain = Tied()
    values = quantizer.eval_weights(quantizer.selection.originals)  # all parameters, with min_size=0
    with torch.no_grad():
        for entry, value in zip(quantizer.selection.originals, values, strict=True):
            plain.get_parameter(entry.full_name).copy_(value)
    plain(inputs).square().sum().backward()
    assert torch.equal(found, plain.a.weight.grad)


@pytest.mark.parametrize("straight_through", [False, True])
def test_a_size_target_freezes_as_it_is_told(straight_through):
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.setup_optimizer(optimizer, lr=0.1)
    target = SizeTarget(quantizer, bits_per_weight=6, total_steps=10, straight_through=straight_through)

    def resumed():
        other = SizeTarget(quantizer, bits_per_weight=6, total_steps=10, straight_through=straight_through)
        other.load_state_dict(target.state_dict())

    for step in range(6):
        assert torch.equal(model(batch()), model(batch())) == (straight_through and step == 5)
        optimizer.zero_grad()
        (model(batch()).square().mean() + target.penalty()).backward()
        optimizer.step()
        target.step()
    for _ in range(2):
        assert quantizer.bits_frozen
        assert torch.equal(model(batch()), model(batch())) == straight_through
        resumed()
