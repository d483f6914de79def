"""Which weights eval sees: after optimizers of all kinds, writes, other quantizers, ties, in compiled graphs."""

import copy

import pytest
import torch
from torch import nn

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer
from support.models import mlp

X = torch.eye(64)


def attach(model, **arguments):
    quantizer = DiffQuantizer(model, **{"min_size": 0, "group_size": 8, "init_bits": 3, **arguments})
    quantizer.no_optimizer()
    return quantizer


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return self.second(self.first(x))


def quantised_output(model, quantizer):
    with quantizer.enter_quantize():
        return model.second(model.first(X)) if isinstance(model, Two) else model(X)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_eval_follows_a_fused_optimizer_step(make):
    model = nn.Linear(64, 64, bias=False)
    optimizer = make(model.parameters(), lr=0.1, fused=True)
    quantizer = attach(model)
    model(X).sum().backward()
    model.eval()
    before = model(X)
    optimizer.step()
    after = model(X)
    assert not torch.equal(before, after)
    assert torch.equal(after, quantised_output(model, quantizer))
    quantizer.quantize()
    optimizer.step()
    written = model.weight.detach().clone()
    quantizer.unquantize()
    assert torch.equal(model.weight, written)


def test_quantize_and_bake_see_a_write_through_data():
    model = nn.Linear(64, 64, bias=False).eval()
    quantizer = attach(model)
    model(X)
    largest = float(model.weight.abs().max())
    model.weight.data.mul_(3)
    quantizer.quantize()
    assert float(model.weight.abs().max()) == pytest.approx(3 * largest, rel=1e-6)
    quantizer.unquantize()
    model.weight.data.mul_(2)
    quantizer.bake()
    assert float(model.weight.abs().max()) == pytest.approx(6 * largest, rel=1e-6)


def test_eval_follows_exchanged_data_and_options():
    model = nn.Linear(64, 64, bias=False).eval()
    quantizer = attach(model)
    for _ in range(10):
        value = torch.randn(64, 64)
        model.weight.data = value.clone()
        assert torch.equal(model(X), quantised_output(model, quantizer))
        del value
    before = model(X)
    quantizer.extra_bits = 2
    assert not torch.equal(model(X), before)


def test_eval_gives_the_weights_the_gradient_of_the_quantised_ones():
    for quantizer_class, arguments in ((DiffQuantizer, {"group_size": 8}), (UniformQuantizer, {}), (LSQ, {})):
        model = nn.Linear(64, 64)
        quantizer_class(model, min_size=0, **arguments)
        model.eval()(X).square().sum().backward()
        found, model.weight.grad = model.weight.grad, None
        quantised = model(X).detach()
        torch.testing.assert_close(found, (2 * quantised.T @ X), rtol=1e-4, atol=1e-4)


def test_two_quantizers_in_half_precision_leave_each_others_weights():
    model = Two()
    start = copy.deepcopy(model.state_dict())
    first = UniformQuantizer(model, bits=3, min_size=0, exclude=["second.*"], float16=True)
    second = UniformQuantizer(model, bits=5, min_size=0, exclude=["first.*"], float16=True)
    seen = []
    for layer in (model.first, model.second):
        layer.register_forward_hook(lambda module, args, output: seen.append(module.weight.unique().numel()))
    model.eval()(X)
    assert seen[0] <= 8
    assert 8 < seen[1] <= 32
    first.quantize()
    second.quantize()
    first.unquantize()
    second.unquantize()
    for name, value in start.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_an_excluded_name_of_a_tied_weight_is_quantised_in_eval():
    model = Two()
    model.second.weight = model.first.weight
    quantizer = attach(model, exclude=["second.*"])
    found = model.eval()(X)
    assert torch.equal(found, quantised_output(model, quantizer))
    assert model.second.weight is model.first.weight


def test_half_precision_leaves_other_kinds_of_numbers_alone():
    model = nn.Linear(64, 64)
    model.register_parameter("count", nn.Parameter(torch.tensor([70001, 3000001]), requires_grad=False))
    model.register_parameter("phase", nn.Parameter(torch.tensor([1 + 2j])))
    quantizer = attach(model, float16=True)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append((module.count.clone(), module.phase.clone())))
    model.eval()(X)
    assert seen[0][0].tolist() == [70001, 3000001]
    assert seen[0][1].tolist() == [1 + 2j]
    assert quantizer.export_model().half == set()


def test_a_value_that_half_precision_cannot_hold_is_refused_by_exports():
    model = nn.Linear(64, 64)
    quantizer = attach(model, min_size=0.001, float16=True)
    with torch.no_grad():
        model.bias[3] = 1e6
    with pytest.raises(ValueError, match="bias has elements beyond 65,504"):
        quantizer.export_weights()


def test_unquantize_of_a_copy_keeps_what_was_loaded_into_it():
    model = nn.Linear(64, 64)
    quantizer = attach(model)
    quantizer.quantize()
    twin = copy.deepcopy(quantizer)
    other = nn.Linear(64, 64)
    twin.model.load_state_dict(other.state_dict(), strict=False)
    twin.unquantize()
    assert torch.equal(twin.model.weight, other.weight)


def test_a_parameter_that_was_replaced_is_named():
    model = nn.Linear(64, 64)
    quantizer = attach(model)
    nn.utils.parametrizations.weight_norm(model)
    with pytest.raises(RuntimeError, match="parameter weight is gone from its module"):
        quantizer.true_model_size()


def test_a_shallow_copy_is_refused():
    model = nn.Linear(64, 64)
    attach(model)
    with pytest.raises(RuntimeError, match=r"shallow copy or a replica.*copy\.deepcopy"):
        copy.copy(model)(X)


def test_check_unused_zeroes_where_the_gradient_is_zero():
    model = Two()
    quantizer = attach(model)
    (model(X).sum() * 0 + quantizer.model_size()).backward()
    assert model.first.weight_diffq.grad.abs().sum() > 0
    quantizer.check_unused()
    assert model.first.weight_diffq.grad.abs().sum() == 0


def test_the_width_table_counts_from_the_smallest_width_when_bits_are_taken_away():
    model = nn.Linear(64, 64, bias=False)
    quantizer = attach(model, min_bits=4, init_bits=6, extra_bits=-3)
    with torch.no_grad():
        model.weight_diffq[0] = -20  # 4 bits, less 3
    groups = 64 * 64 // 8
    bits = 8 * 3 * (groups - 1) + 8 * 1 + 64 + 8 + groups * 2  # widths 1 … 3: two bits each
    assert quantizer.true_model_size() * 8 * 2**20 == pytest.approx(bits, rel=1e-6)


def test_a_write_through_data_between_evals_is_seen_after_a_training_forward():
    model = nn.Linear(64, 64, bias=False)
    attach(model)
    before = model.eval()(X)
    model.train()(X)
    model.weight.data.mul_(2)
    torch.testing.assert_close(model.eval()(X), 2 * before)


# -- compiled ------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    return lambda model: torch.compile(model, backend="eager")


@pytest.mark.parametrize("make", [Two, mlp])
def test_a_compiled_forward_under_quantize_does_not_change_later_ones(make, compiler):
    model = make().eval()
    quantizer = attach(model)
    compiled = compiler(model)
    with torch.no_grad():
        with quantizer.enter_quantize():
            under = compiled(X)
        found = compiled(X)
        quantizer.quantize()
        compiled(X)
        quantizer.unquantize()
        again = compiled(X)
        expected = model(X)
    for output in (under, found, again):
        torch.testing.assert_close(output, expected)
    assert not any("weight" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("make", [Two, mlp])
def test_a_compiled_training_forward_ends_quantize(make, compiler):
    model = make()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    quantizer = attach(model)
    compiled = compiler(model)
    compiled(X)
    quantizer.quantize()
    try:
        compiled(X).sum().backward()
    except RuntimeError as error:
        assert "unquantize()" in str(error)  # noqa: PT017  (either is right, silence is not)
    quantizer.unquantize()
    for name, value in start.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_model_compiled_and_run_before_attaching_gets_its_noise(compiler):
    model = Two()
    compiled = compiler(model)
    compiled(X)
    attach(model)
    assert not torch.equal(compiled(X), compiled(X))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x):
        return torch.relu(self.inner(x))


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(x)


def test_a_direct_call_of_a_compiled_block_does_not_take_its_noise_away():
    torch._dynamo.reset()
    model = Root()
    attach(model)
    model.block.compile(backend="eager")
    plain = model.block.inner(X).relu()
    for _ in range(2):
        assert torch.equal(model.block(X), plain)
        assert not torch.equal(model(X), model(X))
    model(X).sum().backward()
    assert model.block.inner.weight_diffq.grad.abs().sum() > 0


# -- writes that torch does not count ----------------------------------------------------------------------------------


def write_by_data(tensor, value):
    tensor.data.copy_(value)


def write_by_numpy(tensor, value):
    tensor.detach().numpy()[...] = value.numpy()


def write_uncounted(tensor, value):
    with torch.autograd._unsafe_preserve_version_counter(tensor), torch.no_grad():
        tensor.copy_(value)


WRITES = [write_by_data, write_by_numpy, write_uncounted]
KINDS = {
    "diffq": attach,
    "uniform": lambda model: UniformQuantizer(model, bits=3, min_size=0),
    "lsq": lambda model: LSQ(model, bits=3, min_size=0),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", KINDS)
def test_eval_sees_writes_that_move_no_version(name, write):
    model = mlp().eval()
    quantizer = KINDS[name](model)
    with torch.no_grad():
        for param in model.parameters():
            before, stored = model(X), param.detach().clone()
            write(param, 3 * stored if param.dim() else stored / 2)
            after = model(X)
            assert not torch.equal(before, after)
            assert torch.equal(after, quantised_output(model, quantizer))
            write(param, stored)
            assert torch.equal(model(X), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("place", [0, 17, 16383])
def test_eval_sees_one_changed_element_of_64_kb(place, dtype):
    model = nn.Linear(128, 128 if dtype != torch.float64 else 64, bias=False).to(dtype).eval()
    quantizer = attach(model, group_size=0)
    x = torch.eye(128, dtype=dtype)
    model(x)
    place = min(place, model.weight.numel() - 1)
    write_by_data(model.weight.detach().view(-1)[place : place + 1], torch.full((1,), 2.0, dtype=dtype))
    found = model(x)
    with quantizer.enter_quantize():
        assert torch.equal(found, model(x))


def test_eval_sees_rows_that_change_places_and_in_time_any_element_of_a_large_weight():
    model = nn.Linear(512, 512, bias=False).eval()  # 1 MB: 16 looks
    attach(model, group_size=0)
    x = torch.eye(512)
    with torch.no_grad():
        before = model(x)
        write_by_data(model.weight, model.weight.detach().roll(1, 0))
        assert torch.equal(model(x), before.roll(1, 1))
        write_by_data(model.weight[300, 7:8], torch.full((1,), 9.0))
        expected = 9 if any(float(model(x)[7, 300]) > 8 for _ in range(16)) else 0
    assert expected == 9


def test_eval_sees_an_average_that_is_swapped_in_and_out():
    model = mlp()
    attach(model)
    average = [param.detach() / 2 for param in model.parameters()]
    model.eval()
    with torch.no_grad():
        raw = model(X)
        stored = [param.detach().clone() for param in model.parameters()]
        for param, value in zip(model.parameters(), average, strict=True):
            param.data.copy_(value)
        averaged = model(X)
        for param, value in zip(model.parameters(), stored, strict=True):
            param.data.copy_(value)
        assert not torch.equal(averaged, raw)
        assert torch.equal(model(X), raw)


def test_eval_sees_writes_to_parts_that_half_precision_rounds_and_to_strided_weights():
    model = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last).eval()
    attach(model, min_size=0.001, float16=True)
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        for param in (model.bias, model.weight):
            before = model(x)
            param.data.mul_(3)
            assert not torch.equal(model(x), before)
