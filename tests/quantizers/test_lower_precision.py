"""``noisy_dtype="auto"``: noisy weights in autocast's dtype, and every result as if autocast had cast them."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import diffq_fast
from diffq_fast import DiffQuantizer

BF16, FP16, F32 = torch.bfloat16, torch.float16, torch.float32


def attach(model, noisy_dtype="auto", **options):
    quantizer = DiffQuantizer(model, **{"min_size": 0, "group_size": 8, **options}, noisy_dtype=noisy_dtype)
    quantizer.no_optimizer()
    return quantizer


def watch(model):
    """The dtypes in which modules find their own parameters when they are called, by name, in order; and the hooks."""
    seen, handles = {}, []

    def look(name):
        def hook(module, args):
            for own in dict(module._parameters):
                if not own.endswith("_diffq") and getattr(module, own) is not None:
                    seen.setdefault(f"{name}.{own}".lstrip("."), []).append(getattr(module, own).dtype)

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(look(name)))
    return seen, handles


def train(build, inputs, noisy_dtype, dtype=BF16, steps=3, backward=True, **options):
    """Outputs and gradients of some steps, and what modules saw."""
    torch.manual_seed(0)
    model = build()
    attach(model, noisy_dtype, **options)
    seen, _ = watch(model)
    results = []
    for step in range(steps):
        torch.manual_seed(step)
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            out = model(*inputs)
        results.append(out.detach())
        if backward:
            out.float().square().mean().backward()
            results += [parameter.grad for parameter in model.parameters()]
    return results, seen


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def assert_changes_nothing(build, *inputs, **options):
    """Returns what modules saw."""
    got, seen = train(build, inputs, "auto", **options)
    expected, plain = train(build, inputs, None, **options)
    assert_same(got, expected)
    assert all(set(dtypes) == {F32} for dtypes in plain.values())
    return seen


# -- what is made in the lower dtype ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("range_scope", ["tensor", "group"])
def test_linear_layers(dtype, range_scope):
    def build():
        return nn.Sequential(nn.Linear(24, 40), nn.LayerNorm(40), nn.GELU(), nn.Linear(40, 7, bias=False))

    seen = assert_changes_nothing(build, torch.randn(5, 24), dtype=dtype, range_scope=range_scope)
    assert seen == {
        **{name: [dtype] * 3 for name in ("0.weight", "0.bias", "3.weight")},
        **{name: [F32] * 3 for name in ("1.weight", "1.bias")},
    }


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d, (2, 6, 20)),
        (nn.Conv2d, (2, 6, 9, 9)),
        (nn.Conv3d, (1, 6, 5, 5, 5)),
        (nn.ConvTranspose1d, (2, 6, 20)),
        (nn.ConvTranspose2d, (2, 6, 9, 9)),
        (nn.ConvTranspose3d, (1, 6, 5, 5, 5)),
    ],
)
def test_convolutions(layer, shape):
    batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 3]
    seen = assert_changes_nothing(lambda: nn.Sequential(layer(6, 8, 3), batch_norm(8)), torch.randn(shape))
    assert seen["0.weight"] == seen["0.bias"] == [BF16] * 3
    assert seen["1.weight"] == [F32] * 3


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, **options)
        self.sizes = options

    def forward(self, x, other):
        return self.attention(x, other, other)[0]


@pytest.mark.parametrize("options", [{}, {"kdim": 12, "vdim": 12}, {"add_bias_kv": True}])
@pytest.mark.parametrize("itself", [True, False])
def test_attention(itself, options):
    x = torch.randn(2, 5, 16)
    other = x if itself and not options.get("kdim") else torch.randn(2, 4, options.get("kdim", 16))
    seen = assert_changes_nothing(lambda: Attention(**options), x, other)
    lowered = {name.split(".", 1)[1] for name, dtypes in seen.items() if set(dtypes) == {BF16}}
    expected = {"in_proj_weight", "in_proj_bias"}
    if "kdim" in options:
        expected = {"q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"}
    assert lowered == expected  # out_proj is read without being called


def test_the_output_projection_of_attention_is_lowered_too():
    model = Attention()
    attach(model)
    found = []
    model.attention.register_forward_pre_hook(lambda module, args: found.append(module.out_proj.weight.dtype))
    with torch.autocast("cpu", dtype=BF16):
        model(*[torch.randn(2, 5, 16)] * 2)
    assert found == [BF16]


def test_a_transformer_layer_with_embedding_and_head():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 11)

        def forward(self, tokens):
            return self.head(self.layers(self.embedding(tokens)))

    seen = assert_changes_nothing(Model, torch.randint(0, 11, (2, 6)))
    assert seen["embedding.weight"] == [F32] * 3
    lowered = ("head.weight", "layers.layers.1.linear1.weight", "layers.layers.0.self_attn.in_proj_weight")
    assert all(seen[name] == [BF16] * 3 for name in lowered)


class Scaled(nn.Linear):
    """A subclass that does something of its own with its weight."""

    def forward(self, x):
        return super().forward(x) * self.weight.exp().mean()


def has_lstm_in_bfloat16():
    """Whether torch runs an LSTM under autocast here: on processors without AVX-512 it does not."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(8, 8)(torch.randn(2, 3, 8))
    except RuntimeError:
        return False
    return True


def test_other_modules_keep_their_own_dtype():
    recurrent = nn.LSTM if has_lstm_in_bfloat16() else partial(nn.RNN, num_layers=2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.lstm = nn.GRU(8, 8, batch_first=True), recurrent(8, 8, batch_first=True)
            self.norm, self.prelu = nn.GroupNorm(2, 8), nn.PReLU(8)
            self.scaled, self.bilinear = Scaled(8, 8), nn.Bilinear(8, 8, 8)
            self.free = nn.Parameter(torch.randn(8))

        def forward(self, x):
            x = self.lstm(self.gru(x.float())[0].float())[0].float()[:, -1]
            x = self.prelu(self.norm(x)) * self.free
            return self.bilinear(x.float(), self.scaled(x).float())

    seen = assert_changes_nothing(Model, torch.randn(2, 3, 8))
    assert {dtype for dtypes in seen.values() for dtype in dtypes} == {F32}


def test_tied_weights_keep_their_own_dtype():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.head.weight = self.embedding.weight
            self.second.weight = self.first.weight

        def forward(self, tokens):
            return self.head(self.second(self.first(self.embedding(tokens))))

    seen = assert_changes_nothing(Model, torch.randint(0, 11, (2, 6)))
    tied = ("embedding.weight", "head.weight", "first.weight", "second.weight")
    assert all(seen[name] == [F32] * 3 for name in tied)
    assert seen["first.bias"] == [BF16] * 3


def test_weights_that_are_no_float32_keep_their_own_dtype():
    for dtype in (torch.float64, FP16):
        model = nn.Linear(8, 8).to(dtype)
        attach(model)
        found = []
        model.register_forward_pre_hook(lambda module, args, found=found: found.append(module.weight.dtype))
        with torch.autocast("cpu", dtype=BF16):
            model(torch.randn(2, 8, dtype=dtype))
        assert found == [dtype]


def test_a_patched_forward_keeps_its_own_dtype():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    attach(model)
    model[0].forward = lambda x: functional.linear(x, model[0].weight) * model[0].weight.sum()
    seen, _ = watch(model)
    with torch.autocast("cpu", dtype=BF16):
        model(torch.randn(2, 8))
    assert seen["0.weight"] == [F32]
    assert seen["1.weight"] == [BF16]


def test_the_root_may_be_a_layer_itself():
    assert_changes_nothing(lambda: nn.Linear(16, 8), torch.randn(3, 16))


def test_without_autocast_nothing_changes():
    model = nn.Sequential(nn.Linear(8, 8))
    attach(model)
    seen, _ = watch(model)
    model(torch.randn(2, 8)).sum().backward()
    with torch.autocast("cpu", dtype=BF16, enabled=False):
        model(torch.randn(2, 8)).sum().backward()
    assert seen == {"0.weight": [F32] * 2, "0.bias": [F32] * 2}


# -- reads that need the weight's own dtype ------------------------------------------------------------------------


class Nested(nn.Module):
    """Regions without autocast, and with another dtype, inside the root's forward."""

    def __init__(self):
        super().__init__()
        self.first, self.exact, self.other, self.last = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        with torch.autocast("cpu", enabled=False):
            x = self.exact(x.float())
        with torch.autocast("cpu", dtype=FP16):
            x = self.other(x)
        return self.last(x)


def test_regions_with_autocast_off_or_of_another_dtype():
    seen = assert_changes_nothing(Nested, torch.randn(4, 16))
    assert seen["first.weight"] == seen["last.weight"] == [BF16] * 3
    assert seen["exact.weight"] == seen["other.weight"] == [F32] * 3


def test_autocast_inside_of_the_forward_alone_is_not_seen():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            with torch.autocast("cpu", dtype=BF16):
                return self.layer(x)

    model = Inside()
    attach(model)
    seen, _ = watch(model)
    assert model(torch.randn(2, 16)).dtype == BF16
    assert seen["layer.weight"] == [F32]


class Twice(nn.Module):
    def __init__(self, times=2):
        super().__init__()
        self.layer, self.once, self.times = nn.Linear(16, 16), nn.Linear(16, 16), times

    def forward(self, x):
        for _ in range(self.times):
            x = torch.relu(self.layer(x))
        return self.once(x)


@pytest.mark.parametrize("times", [2, 3])
def test_a_layer_called_several_times_sums_its_gradients_in_float32(times):
    """In the first step they are summed in two parts, which may round otherwise; the forward is the same even there."""
    x = torch.randn(4, 16)
    got, seen = train(lambda: Twice(times), (x,), "auto")
    expected, _ = train(lambda: Twice(times), (x,), None)
    step = len(got) // 3
    assert_same(got[:1] + got[step:], expected[:1] + expected[step:])
    for one, other in zip(got[1:step], expected[1:step], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert seen["layer.weight"] == [BF16] + [F32] * (3 * times - 1)
    assert seen["once.weight"] == [BF16] * 3


def test_a_first_read_without_gradients_leaves_later_ones_theirs():
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                target = self.layer(x.float())
            with torch.inference_mode(), torch.autocast("cpu", enabled=False):
                self.layer(x.float())
            return self.layer(x) - target

    assert_changes_nothing(Teacher, torch.randn(4, 16))


def test_the_gradient_reaches_the_kernel_in_the_lower_dtype(monkeypatch):
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    attach(model)
    dtypes = []
    with torch.autocast("cpu", dtype=BF16):
        out = model(torch.randn(2, 16))
    node = out.grad_fn
    while type(node).__name__ != "_AddNoiseBackward":
        node = next(function for function, _ in node.next_functions if function and "Accumulate" not in str(function))
    node.register_prehook(lambda grads: dtypes.extend(grad.dtype for grad in grads if grad is not None))
    out.float().sum().backward()
    assert dtypes == [BF16]
    assert model[0].weight.grad.dtype == F32


# -- checkpoints, copies, compilation ------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Regions with layers read once, read twice, and read with autocast off."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.blocks = nn.ModuleList([Nested(), Twice(), Attention()])
        self.reentrant = reentrant

    def region(self, block, *inputs):
        if self.reentrant is None:
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=self.reentrant)

    def forward(self, x):
        x = self.embed(x)
        x = self.region(self.blocks[0], x)
        x = self.region(self.blocks[1], x)
        return self.region(self.blocks[2], x, x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_regions(reentrant):
    x = torch.randn(2, 5, 16)
    got, seen = train(lambda: Checkpointed(reentrant), (x,), "auto")
    expected, _ = train(lambda: Checkpointed(reentrant), (x,), None)
    without, _ = train(Checkpointed, (x,), None)
    step = len(got) // 3  # in the first one, layers turn out to be read twice or without autocast
    assert_same(got[:1] + got[step:], expected[:1] + expected[step:])
    for one, other in zip(got, without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert set(seen["embed.weight"]) == set(seen["blocks.2.attention.in_proj_weight"]) == {BF16}


@pytest.mark.parametrize("preserve", [True, False])
def test_the_whole_model_in_a_checkpoint(preserve):
    def step(noisy_dtype, checkpointed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        attach(model, noisy_dtype)
        x = torch.randn(3, 16)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=BF16):
            run = checkpoint(model, x, use_reentrant=False, preserve_rng_state=preserve) if checkpointed else model(x)
        run.float().square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    assert_same(step("auto", True), step(None, False))


def test_copies_and_pickles_train_alike():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Twice())
    quantizer = attach(model)
    x = torch.randn(3, 16)

    def step(net):
        torch.manual_seed(1)
        seen, handles = watch(net)
        with torch.autocast("cpu", dtype=BF16):
            out = net(x)
        out.float().sum().backward()
        for handle in handles:
            handle.remove()
        return [out.detach(), *(parameter.grad for parameter in net.parameters())], seen

    step(model)  # finds the layer that is called twice
    model.zero_grad()
    twins = copy.deepcopy((model, quantizer)), pickle.loads(pickle.dumps((model, quantizer)))
    expected, seen = step(model)
    assert seen["1.layer.weight"] == [F32, F32]
    for twin, twin_quantizer in twins:
        assert twin_quantizer.noisy_dtype == "auto"
        got, seen_by_twin = step(twin)
        assert_same(got, expected)
        assert seen_by_twin == seen


def test_nothing_stays_behind_after_an_exception():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(8, 8))
    attach(model)
    with pytest.raises(RuntimeError), torch.autocast("cpu", dtype=BF16):
        model(torch.randn(2, 16))
    assert model[0].weight is model[0]._parameters["weight"]


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_and_blocks(whole):
    torch._dynamo.reset()

    def step(noisy_dtype, compiled):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 4)))
        quantizer = attach(model, noisy_dtype)
        run = model
        if compiled and whole:
            run = torch.compile(model, fullgraph=True, backend="aot_eager")
        elif compiled:
            model[1].compile(fullgraph=True, backend="aot_eager")
        results = []
        for seed in range(3):
            torch.manual_seed(seed)
            model.zero_grad()
            with torch.autocast("cpu", dtype=BF16):
                out = run(torch.linspace(-1, 1, 48).view(3, 16))
            (out.float().square().sum() + 1e-3 * quantizer.model_size()).backward()
            results += [out.detach(), *(parameter.grad for parameter in model.parameters())]
        return results

    expected = step(None, False)
    assert_same(step("auto", False), expected)
    assert_same(step("auto", True), expected)


# -- the argument --------------------------------------------------------------------------------------------------


def test_the_argument_is_checked_shown_and_kept():
    model = nn.Linear(16, 8)
    with pytest.raises(ValueError, match=r"DiffQuantizer: noisy_dtype must be None or 'auto', got torch\.bfloat16"):
        DiffQuantizer(model, noisy_dtype=BF16)
    with pytest.raises(ValueError, match=r"noisy_dtype='auto' needs rng='philox', got rng='torch'"):
        DiffQuantizer(model, noisy_dtype="auto", rng="torch")
    quantizer = DiffQuantizer(model, min_size=0, noisy_dtype="auto")
    assert "noisy_dtype=auto" in repr(quantizer)
    assert "noisy_dtype" not in str(quantizer.get_quantized_state()["meta"])


def test_a_packed_file_takes_the_argument(tmp_path):
    model = nn.Linear(16, 8)
    quantizer = attach(model)
    diffq_fast.save(quantizer, tmp_path / "model.safetensors")
    other = nn.Linear(16, 8)
    diffq_fast.load(tmp_path / "model.safetensors", other)
    x = torch.randn(3, 16)
    assert torch.equal(model.eval()(x), other.eval()(x))
