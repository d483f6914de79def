"""post_training.layer_moments, gathering, unrolled: moments of every kind of layer, by autograd and by linear ones."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from diffq_fast.post_training import layer_moments
from diffq_fast.post_training.calibration import calibrate
from diffq_fast.post_training.gathering import Gathering


def matrix(weight: Tensor) -> Tensor:
    return weight.reshape(len(weight), -1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(output: Tensor, seed: int = 1) -> Tensor:
    return drawn(*output.shape, seed=seed)


CONVOLUTIONS = {
    "stride, padding": (nn.Conv1d(3, 4, 5, stride=2, padding=2), (2, 3, 11)),
    "dilation": (nn.Conv1d(2, 3, 3, dilation=3), (2, 2, 12)),
    "same": (nn.Conv1d(2, 3, 3, padding="same"), (2, 2, 7)),
    "circular": (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 2, 7)),
    "two dimensions": (nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), bias=False), (2, 2, 5, 6)),
    "reflected": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (1, 2, 4, 5)),
    "three dimensions": (nn.Conv3d(1, 2, 2, dilation=(1, 2, 1)), (2, 1, 3, 4, 3)),
    "unbatched": (nn.Conv1d(3, 4, 2), (3, 9)),
}
TRANSPOSED = {
    "stride, padding": (nn.ConvTranspose1d(3, 4, 5, stride=2, padding=1, output_padding=1), (2, 3, 6)),
    "dilation": (nn.ConvTranspose1d(2, 3, 3, dilation=3), (2, 2, 6)),
    "outputs that nothing writes to": (nn.ConvTranspose1d(2, 3, 2, stride=4, output_padding=3), (1, 2, 4)),
    "two dimensions": (nn.ConvTranspose2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0)), (2, 2, 3, 4)),
    "three dimensions": (nn.ConvTranspose3d(1, 2, 2, stride=2), (1, 1, 2, 3, 2)),
    "unbatched": (nn.ConvTranspose1d(3, 4, 2), (3, 5)),
}


def windows_of(layer: nn.Module, inputs: Tensor, row: int) -> Tensor:
    """[positions, columns]: what each output of a row is of the row's weights, by autograd."""
    output = layer(inputs)
    channel = output.movedim(-len(layer.kernel_size) - 1, 0)[row].reshape(-1)
    found = [torch.autograd.grad(each, layer.weight, retain_graph=True)[0][row].reshape(-1) for each in channel]
    return torch.stack(found)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_of_a_convolution_are_those_of_its_windows(name):
    layer, shape = CONVOLUTIONS[name]
    inputs = drawn(*shape)
    gradient = gradient_of(layer(inputs))
    found = layer_moments.of_convolution(layer, inputs)(gradient)
    windows = windows_of(layer, inputs, 0)
    assert found.positions == len(windows)
    torch.testing.assert_close(found.columns, windows.T @ windows, rtol=1e-4, atol=1e-4)
    by_row = gradient.movedim(-len(layer.kernel_size) - 1, 0).flatten(1)
    torch.testing.assert_close(found.rows, by_row.square().sum(1))


@pytest.mark.parametrize("name", TRANSPOSED)
def test_moments_of_a_transposed_convolution_are_those_of_its_inputs_and_the_gradients_windows(name):
    layer, shape = TRANSPOSED[name]
    inputs = drawn(*shape)
    gradient = gradient_of(layer(inputs))
    found = layer_moments.of_transposed_convolution(layer, inputs)(gradient)
    windows = []
    channel = -len(layer.kernel_size) - 1
    places = inputs.movedim(channel, 0)[0]
    for index in range(places.numel()):  # one input at a time: the gradient of its row is its window
        alone = torch.zeros_like(inputs)
        alone.movedim(channel, 0)[0][torch.unravel_index(torch.tensor(index), places.shape)] = 1.0
        total = (layer(alone) * gradient).sum()
        windows.append(torch.autograd.grad(total, layer.weight)[0][0].reshape(-1))
    each, values = torch.stack(windows), inputs.movedim(channel, 0).flatten(1)
    assert found.positions == len(each)
    torch.testing.assert_close(found.columns, each.square().sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.rows, values @ values.T)


@pytest.mark.parametrize("kind", ["of_convolution", "of_transposed_convolution"])
def test_groups_keep_the_cost_of_each_row(kind):
    """One matrix, or row, of columns for all groups is a mean, but how large a group's are is told by its rows."""
    transposed = kind == "of_transposed_convolution"
    layer = (nn.ConvTranspose1d if transposed else nn.Conv1d)(4, 6, 3, groups=2, bias=False)
    inputs = drawn(2, 4, 9) * torch.tensor([1.0, 1.0, 10.0, 10.0])[:, None]
    gradient = gradient_of(layer(inputs)) * torch.tensor([1.0, 1.0, 1.0, 5.0, 5.0, 5.0])[:, None]
    found = getattr(layer_moments, kind)(layer, inputs)(gradient)
    alone = (nn.ConvTranspose1d if transposed else nn.Conv1d)(2, 3, 3, bias=False)
    costs = []
    for group in range(2):
        mine = slice(2 * group, 2 * group + 2), slice(3 * group, 3 * group + 3)
        parts = getattr(layer_moments, kind)(alone, inputs[:, mine[0]])(gradient[:, mine[1]])
        costs.append(cost_of_rows(parts))
    whole = torch.block_diag(*costs) if transposed else torch.cat(costs)
    torch.testing.assert_close(cost_of_rows(found), whole, rtol=1e-4, atol=1e-3)
    assert found.columns.shape == ((9,) if transposed else (6, 6))


def cost_of_rows(found: layer_moments.Sums) -> Tensor:
    """What an error costs that is the same in all columns and independent."""
    return found.rows * (found.columns.sum() if found.columns.ndim == 1 else found.columns.trace())


def test_only_windows_that_move_an_output_count():
    layer, inputs = nn.Conv1d(2, 3, 3), drawn(1, 2, 40)
    gradient = gradient_of(layer(inputs))
    gradient[..., 20:] = 0
    found = layer_moments.of_convolution(layer, inputs)(gradient)
    short = layer_moments.of_convolution(layer, inputs[..., :22])(gradient[..., :20])
    assert found.positions == 20
    for ours, theirs in zip(found, short, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    back = nn.ConvTranspose1d(2, 3, 3)
    gradient = torch.zeros(1, 3, 42)
    gradient[..., 10] = 1.0
    assert layer_moments.of_transposed_convolution(back, inputs)(gradient).positions == 3
    nothing = layer_moments.of_convolution(layer, inputs)(torch.zeros(1, 3, 38))
    assert (nothing.positions, float(nothing.columns.abs().sum()), float(nothing.rows.sum())) == (0, 0.0, 0.0)


def test_of_many_windows_some_are_taken(monkeypatch):
    layer, inputs = nn.Conv1d(1, 2, 4), drawn(1, 1, 4003)
    gradient = gradient_of(layer(inputs))
    whole = layer_moments.of_convolution(layer, inputs)(gradient)
    monkeypatch.setattr(layer_moments, "MOST_WINDOWS", 500)
    some = layer_moments.of_convolution(layer, inputs)(gradient)
    assert (whole.positions, some.positions) == (4000, 500)
    assert torch.equal(whole.rows, some.rows)
    torch.testing.assert_close(some.columns / some.positions, whole.columns / whole.positions, rtol=0.3, atol=0.2)


def test_wide_windows_have_a_diagonal_only(monkeypatch):
    layer, inputs = nn.Conv1d(2, 2, 4, groups=2), drawn(1, 2, 20)
    gradient = gradient_of(layer(inputs))
    whole = layer_moments.of_convolution(layer, inputs)(gradient)
    monkeypatch.setattr(layer_moments, "MOST_COLUMNS", 3)
    found = layer_moments.of_convolution(layer, inputs)(gradient)
    torch.testing.assert_close(found.columns, whole.columns.diagonal())
    torch.testing.assert_close(found.rows, whole.rows)


# -- layers that are written out ---------------------------------------------------------------------------------------

OPTIONS = ({}, {"batch_first": True}, {"bidirectional": True, "num_layers": 2}, {"bias": False})
RECURRENT = [(kind, options) for kind in (nn.LSTM, nn.GRU, nn.RNN) for options in OPTIONS]
RECURRENT += [(nn.LSTM, {"proj_size": 3}), (nn.RNN, {"nonlinearity": "relu"})]


def parts_of(value: object) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data, value.batch_sizes]
    if isinstance(value, Tensor):
        return [value]
    return [part for each in value if each is not None for part in parts_of(each)]


def check_outputs(layer: nn.Module, *arguments: object, **options: object) -> None:
    """Watched, a layer gives what it gives otherwise, and afterwards it is what it was."""
    layer.eval()
    expected = parts_of(layer(*arguments, **options))
    with ExitStack() as stack:
        Gathering().watch(layer, stack)
        found = parts_of(layer(*arguments, **options))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert "forward" not in vars(layer)
    assert not layer._forward_hooks


@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_recurrent_layers_give_what_they_do_otherwise(kind, options):
    layer = kind(5, 7, **options)
    depth = (2 if options.get("bidirectional") else 1) * options.get("num_layers", 1)
    sequences = pack_sequence([drawn(count, 5, seed=count) for count in (3, 5, 2)], enforce_sorted=False)
    batch = 4 if options.get("batch_first") else 3
    states = [drawn(depth, batch, options.get("proj_size", 7)), drawn(depth, batch, 7)][: 2 if kind is nn.LSTM else 1]
    given = tuple(states) if kind is nn.LSTM else states[0]
    check_outputs(layer, drawn(4, 3, 5))
    check_outputs(layer, drawn(4, 3, 5), given)
    check_outputs(layer, drawn(4, 5))
    check_outputs(layer, sequences)
    three = [each[:, :3].contiguous() for each in states]
    check_outputs(layer, sequences, tuple(three) if kind is nn.LSTM else three[0])


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_give_what_they_do_otherwise(kind):
    for options, shape in (({}, (3, 5)), ({"bias": False}, (5,))):
        layer, state = kind(5, 7, **options), drawn(*shape[:-1], 7)
        check_outputs(layer, drawn(*shape))
        check_outputs(layer, drawn(*shape), (state, state) if kind is nn.LSTMCell else state)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 6, "vdim": 5},
    ],
)
def test_attention_gives_what_it_does_otherwise(options):
    layer = nn.MultiheadAttention(8, 2, **options)
    given = [drawn(3, 3, options.get(name, 8), seed=place) for place, name in enumerate(("embed", "kdim", "vdim"))]
    hidden = torch.tensor([[False, False, True]] * 3)
    check_outputs(layer, *given)
    check_outputs(layer, *given, need_weights=False)
    check_outputs(layer, *given, key_padding_mask=hidden, average_attn_weights=False)
    check_outputs(layer, *[each[0] for each in given])
    if "kdim" not in options:
        causal = nn.Transformer.generate_square_subsequent_mask(3)
        check_outputs(layer, given[0], given[0], given[0], attn_mask=causal, is_causal=True, need_weights=False)


class LinearLSTM(nn.Module):
    """An LSTM of linear layers, [batch, time, 5] to its last outputs."""

    def __init__(self, whole: nn.LSTM):
        super().__init__()
        self.inputs, self.hidden = nn.Linear(5, 28), nn.Linear(7, 28)
        self.load_state_dict(
            {
                "inputs.weight": whole.weight_ih_l0,
                "inputs.bias": whole.bias_ih_l0,
                "hidden.weight": whole.weight_hh_l0,
                "hidden.bias": whole.bias_hh_l0,
            }
        )

    def forward(self, values):
        hidden = cell = values.new_zeros(len(values), 7)
        for step in values.unbind(1):
            i, f, g, o = (self.inputs(step) + self.hidden(hidden)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return hidden


class Last(nn.Module):
    def __init__(self, whole: nn.LSTM):
        super().__init__()
        self.lstm = whole

    def forward(self, values):
        return self.lstm(values)[0][:, -1]


def test_moments_of_a_recurrent_layer_are_those_of_linear_ones():
    torch.manual_seed(0)
    whole = nn.LSTM(5, 7, batch_first=True)
    data = [drawn(3, 4, 5, seed=seed) for seed in range(3)]
    ours, theirs = calibrate(Last(whole), data), calibrate(LinearLSTM(whole), data)
    assert ours.keys() == {f"lstm.weight_{part}_l0.{kind}" for part in ("ih", "hh") for kind in ("columns", "rows")}
    for part, name in (("ih", "inputs"), ("hh", "hidden")):
        for kind in ("columns", "rows"):
            expected = theirs[f"{name}.weight.{kind}"]
            assert float(expected.abs().max()) > 0
            torch.testing.assert_close(ours[f"lstm.weight_{part}_l0.{kind}"], expected, rtol=1e-4, atol=1e-6)


class LinearAttention(nn.Module):
    def __init__(self, whole: nn.MultiheadAttention):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        for layer, weight in zip((self.query, self.key, self.value), whole.in_proj_weight.chunk(3), strict=True):
            layer.load_state_dict({"weight": weight, "bias": torch.zeros(8)})
        self.out.load_state_dict(whole.out_proj.state_dict())

    def forward(self, values):
        query, key, value = (
            layer(values).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    def __init__(self, whole: nn.MultiheadAttention):
        super().__init__()
        self.whole = whole

    def forward(self, values):
        return self.whole(values, values, values, need_weights=False)[0]


def test_moments_of_attention_are_those_of_linear_layers():
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(8, 2, batch_first=True)
    data = [drawn(3, 4, 8, seed=seed) for seed in range(3)]
    ours, theirs = calibrate(SelfAttention(whole), data), calibrate(LinearAttention(whole), data)
    parts = ("query", "key", "value")
    rows = torch.cat([theirs[f"{part}.weight.rows"] for part in parts])
    torch.testing.assert_close(ours["whole.in_proj_weight.rows"], rows, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours["whole.in_proj_weight.columns"], theirs["query.weight.columns"])
    for kind in ("columns", "rows"):
        torch.testing.assert_close(
            ours[f"whole.out_proj.weight.{kind}"], theirs[f"out.weight.{kind}"], rtol=1e-4, atol=1e-6
        )


def test_an_encoder_layer_of_frozen_weights_is_seen_whole():
    """Where nothing is learned torch computes such a layer as one piece, unless somebody watches it."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    found = {name.rsplit(".", 1)[0] for name in calibrate(layer, [drawn(2, 4, 8)])}
    assert found == {name for name, each in layer.named_parameters() if each.ndim > 1}


@pytest.mark.parametrize("frozen", [False, True])
def test_what_writes_onto_an_output_does_not_change_its_gradient(frozen):
    def moments(inplace):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(inplace), nn.Conv1d(3, 2, 3), nn.ReLU(inplace))
        return calibrate(model.requires_grad_(not frozen), [drawn(2, 2, 9)])

    ours, theirs = moments(inplace=True), moments(inplace=False)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Own(nn.LSTM):
    def forward(self, values, state=None):
        return super().forward(2 * values, state)


def test_a_class_with_a_forward_of_its_own_is_left_alone():
    layer = Own(5, 7)
    check_outputs(layer, drawn(4, 3, 5))


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "4.weight"])
def test_moments_of_convolutions_foretell_how_far_the_outputs_move(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 8, 4, stride=2, bias=False),
        nn.Tanh(),
        nn.Conv1d(8, 8, 3, padding=1, groups=2, bias=False),
        nn.Tanh(),
        nn.ConvTranspose1d(8, 2, 4, stride=2),
    )
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight *= 0.3  # where tanh is nearly linear
    data = [drawn(8, 2, 40, seed=seed) for seed in range(20)]
    found, weight = calibrate(model, data), model.get_parameter(name)
    parts = found[name + ".rows"], found[name + ".columns"]
    rows, columns = (each.diag() if each.ndim == 1 else each for each in parts)
    foretold = moved = 0.0
    with torch.no_grad():
        before = [model(each) for each in data]
        for seed in range(10):
            change = 1e-3 * drawn(*weight.shape, seed=100 + seed)
            foretold += float(((rows @ matrix(change)) * (matrix(change) @ columns)).sum())
            weight += change
            moved += sum(float((model(each) - old).square().sum()) for each, old in zip(data, before, strict=True))
            weight -= change
    assert foretold == pytest.approx(moved, rel=0.2)


def test_the_products_of_gpt_2_are_understood():
    kind = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    layer, linear = kind(6, 4), nn.Linear(4, 6)
    linear.load_state_dict({"weight": layer.weight.T, "bias": layer.bias})
    data = [drawn(3, 5, 4, seed=seed) for seed in range(2)]
    ours, theirs = calibrate(layer, data), calibrate(linear, data)
    torch.testing.assert_close(ours["weight.rows"], theirs["weight.columns"])
    torch.testing.assert_close(ours["weight.columns"], theirs["weight.rows"])
