"""The surface of DiffQuantizer: attaching, optimizers, training and eval forwards, sizes, copies."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

from diffq_fast import DiffQuantizer
from support.models import Tied, mlp


def attach(model, **arguments):
    quantizer = DiffQuantizer(model, **{"min_size": 0, "group_size": 8, **arguments})
    quantizer.no_optimizer()
    return quantizer


class Spy(nn.Module):
    """Keeps the weight that a forward saw."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        self.__dict__["seen"] = self.inner.weight  # not by assignment, which would register a parameter
        return self.inner(x)


# -- selection -----------------------------------------------------------------------------------------------------


def test_selection_by_size_and_by_patterns():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(4, 4))
    assert list(attach(model, min_size=0.01, exclude=["1.*"]).bits()) == ["0.weight"]


@pytest.mark.parametrize("pattern", [".weight", "weight", "*.weight", "?weight"])
def test_full_names_at_the_root_begin_with_a_dot(pattern):
    assert list(attach(nn.Linear(8, 8), exclude=[pattern]).bits()) == ["bias"]


def test_exclude_as_one_string_is_one_pattern():
    assert list(attach(nn.Linear(8, 8), exclude="*bias").bits()) == ["weight"]


def test_size_limit_is_exclusive():
    model = nn.Linear(64, 64, bias=False)
    limit = 64 * 64 * 4 / 2**20
    assert not attach(model, min_size=limit).bits()
    assert attach(model, min_size=limit - 1e-9).bits()


def test_detect_bound_false_counts_a_shared_tensor_twice():
    once, twice = attach(Tied()), attach(Tied(), detect_bound=False)
    assert len(once.bits()) == 3
    assert len(twice.bits()) == 4
    assert twice.true_model_size() > once.true_model_size()


def test_logits_are_parameters_of_the_owning_modules():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    quantizer = attach(model, group_size=0, suffix="_z")
    assert model[0].weight_z.shape == (1,)
    assert {"0.weight_z", "0.bias_z", "1.weight_z", "1.bias_z"} <= set(model.state_dict())
    assert quantizer._qparams[0].logit is model[0].weight_z
    assert quantizer._qparams[0].name == "weight"
    assert quantizer._get_bits(model[0].weight_z).item() == pytest.approx(8)


def test_a_lazy_parameter_is_refused_by_name():
    with pytest.raises(ValueError, match=r"parameter weight is lazy.*run one forward"):
        DiffQuantizer(nn.LazyLinear(4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"init_bits": 2}, "0 < min_bits < init_bits < max_bits <= 15, got min_bits=2, init_bits=2"),
        ({"min_bits": 0}, "min_bits=0"),
        ({"max_bits": 16}, "max_bits=16"),
        ({"group_size": -1}, "group_size must be 0 .* got -1"),
        ({"noise": "x"}, "noise must be one of 'uniform', 'gaussian', got 'x'"),
        ({"param": "x"}, "param must be one of 'bits', 'noise', got 'x'"),
        ({"rng": "x"}, "rng must be one of 'philox', 'torch', got 'x'"),
        ({"range_scope": "x"}, "range_scope must be one of 'tensor', 'group', got 'x'"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        DiffQuantizer(nn.Linear(2, 2), **arguments)


def test_an_unknown_argument_is_refused_with_those_that_exist():
    with pytest.raises(TypeError, match=r"DiffQuantizer: .*'groupsize'.*group_size"):
        DiffQuantizer(nn.Linear(2, 2), groupsize=8)


def test_a_second_quantizer_is_refused_and_another_suffix_allowed():
    model = nn.Linear(8, 8)
    attach(model)
    with pytest.raises(RuntimeError, match=r"already has a parameter weight_diffq"):
        attach(model)
    attach(model, suffix="_other", exclude=["*_diffq"])


# -- optimizer -----------------------------------------------------------------------------------------------------


def test_setup_optimizer_adds_one_group_without_weight_decay():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1, weight_decay=0.5)
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.setup_optimizer(optimizer, lr=0.25, betas=(0.5, 0.6))
    group = optimizer.param_groups[1]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.25, 0, (0.5, 0.6))
    assert [id(param) for param in group["params"]] == [id(model.weight_diffq), id(model.bias_diffq)]
    with pytest.raises(RuntimeError, match="set up already"):
        quantizer.setup_optimizer(optimizer)


def test_setup_optimizer_refuses_an_optimizer_that_holds_the_logits():
    model = nn.Linear(8, 8)
    quantizer = DiffQuantizer(model, min_size=0)
    with pytest.raises(RuntimeError, match="create the optimizer before the quantizer"):
        quantizer.setup_optimizer(torch.optim.Adam(model.parameters()))


def test_training_before_setup_raises_and_eval_does_not():
    model = nn.Linear(8, 8)
    quantizer = DiffQuantizer(model, min_size=0)
    with pytest.raises(RuntimeError, match=r"call setup_optimizer\(optimizer\), or no_optimizer\(\)"):
        model(torch.randn(1, 8))
    model.eval()(torch.randn(1, 8))
    quantizer.no_optimizer()
    model.train()(torch.randn(1, 8))


def test_clear_optimizer_takes_the_logits_and_their_state_and_allows_a_new_setup():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters())
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.setup_optimizer(optimizer)
    model(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    quantizer.clear_optimizer(optimizer)
    assert len(optimizer.state_dict()["state"]) == 2
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    quantizer.setup_optimizer(optimizer)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_check_unused_zeroes_the_logits_of_weights_without_gradient():
    model = nn.ModuleDict({"used": nn.Linear(8, 8, bias=False), "unused": nn.Linear(8, 8, bias=False)})
    model.forward = lambda x: model["used"](x)
    quantizer = attach(model)
    (model(torch.randn(2, 8)).sum() + quantizer.model_size()).backward()
    assert model["unused"].weight_diffq.grad.abs().sum() > 0
    quantizer.check_unused()
    assert model["unused"].weight_diffq.grad.abs().sum() == 0
    assert model["used"].weight_diffq.grad.abs().sum() > 0


# -- forwards ------------------------------------------------------------------------------------------------------


def test_every_training_forward_sees_fresh_noise_and_the_parameters_stay():
    model = Spy()
    attach(model, init_bits=3)
    weight, x = model.inner.weight.detach().clone(), torch.randn(2, 8)
    model(x)
    first = model.seen
    model(x)
    assert not torch.equal(first, model.seen)
    assert torch.equal(model.inner.weight, weight)
    assert model.inner.weight is dict(model.named_parameters())["inner.weight"]
    assert (first - weight).abs().max() < (weight.max() - weight.min()) / 7 * 3


def test_noise_follows_the_seed_and_a_larger_step_makes_larger_noise():
    def noise(seed, bits):
        torch.manual_seed(0)
        model = Spy()
        attach(model, init_bits=bits)
        torch.manual_seed(seed)
        model(torch.randn(2, 8))
        return (model.seen - model.inner.weight).detach()

    assert torch.equal(noise(1, 4), noise(1, 4))
    assert not torch.equal(noise(1, 4), noise(2, 4))
    torch.testing.assert_close(noise(1, 4) * 15, noise(1, 5) * 31, rtol=1e-3, atol=1e-6)


def test_training_forward_without_grad_is_noisy_too():
    model = Spy()
    attach(model, init_bits=3)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            model(torch.randn(2, 8))
        assert not torch.equal(model.seen, model.inner.weight)


def test_eval_sees_the_quantised_weights_and_training_resumes_from_the_float_ones():
    model = Spy()
    quantizer = attach(model, init_bits=3)
    weight = model.inner.weight.detach().clone()
    with torch.inference_mode():
        model.eval()(torch.randn(2, 8))
    with quantizer.enter_quantize():
        assert torch.equal(model.seen, model.inner.weight)
        assert len(model.inner.weight.unique()) <= 8
    assert torch.equal(model.inner.weight, weight)
    x = torch.randn(2, 8, requires_grad=True)  # the cache was filled in inference mode, and is used with gradients
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_quantize_stays_until_the_next_training_forward():
    model = Spy()
    quantizer = attach(model, init_bits=3)
    weight, x = model.inner.weight.detach().clone(), torch.randn(2, 8)
    pointer = model.inner.weight.data_ptr()
    assert quantizer.quantize() is True
    assert quantizer.quantize() is False
    quantised = model.inner.weight.detach().clone()
    assert not torch.equal(quantised, weight)
    model.eval()(x)
    assert torch.equal(model.inner.weight, quantised)
    model.train()(x)
    assert torch.equal(model.inner.weight, weight)
    quantizer.quantize()
    quantizer.unquantize()
    quantizer.unquantize()
    assert torch.equal(model.inner.weight, weight)
    assert model.inner.weight.data_ptr() == pointer
    model.eval()(x)
    assert torch.equal(model.seen, quantised)


def test_enter_quantize_puts_back_after_an_exception_and_nests():
    model = nn.Linear(8, 8)
    quantizer = attach(model, init_bits=3)
    weight = model.weight.detach().clone()
    with quantizer.enter_quantize():
        with quantizer.enter_quantize():
            pass
        assert not torch.equal(model.weight, weight)
    with pytest.raises(KeyError), quantizer.enter_quantize():
        raise KeyError
    assert torch.equal(model.weight, weight)


def test_exports_while_quantised_use_the_float_weights():
    model = nn.Linear(8, 8)
    quantizer = attach(model, init_bits=3)
    before = quantizer.get_quantized_state()["quantized"][0][1]
    with quantizer.enter_quantize(), torch.no_grad():
        assert quantizer.get_quantized_state()["quantized"][0][1] == before
        assert torch.equal(quantizer.export_weights()[0].weight, quantizer._eval._replaced[quantizer._qparams[0]][0])


def test_bake_leaves_a_plain_quantised_model():
    model = nn.Linear(8, 8)
    quantizer = attach(model, init_bits=3)
    x = torch.randn(2, 8)
    expected = model.eval()(x)
    quantizer.bake()
    assert torch.equal(model(x), expected)
    assert torch.equal(model.train()(x), expected)
    assert list(model.state_dict()) == ["weight", "bias"]
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_detach_leaves_the_float_weights_and_allows_another_quantizer():
    model = nn.Linear(8, 8)
    quantizer = attach(model, init_bits=3)
    weight = model.weight.detach().clone()
    model.eval()(torch.randn(1, 8))
    quantizer.detach()
    assert torch.equal(model.weight, weight)
    assert list(model.state_dict()) == ["weight", "bias"]
    attach(model)
    model.train()(torch.randn(1, 8))


def test_a_submodule_called_directly_has_its_plain_weights():
    model = Spy()
    attach(model, init_bits=3)
    x = torch.randn(2, 8)
    expected = nn.functional.linear(x, model.inner.weight, model.inner.bias)
    assert torch.equal(model.inner(x), expected)
    model.eval()
    assert torch.equal(model.inner(x), expected)


class CallsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x, depth=1):
        before = self.inner.weight
        if depth:
            x = self(x, depth - 1)
        assert self.inner.weight is before
        return self.inner(x)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_calls_itself_keeps_its_weights_until_the_outer_call_ends(training):
    model = CallsItself().train(training)
    attach(model, init_bits=3)
    model(torch.randn(2, 8)).sum()
    assert "weight" not in model.inner.__dict__


def test_eval_forwards_from_several_threads():
    torch.manual_seed(0)
    model = mlp().eval()
    attach(model, init_bits=3)
    x = torch.randn(4, 64)
    expected = model(x)
    weight = model[0].weight
    failures = []

    def work():
        for _ in range(50):
            if not torch.equal(model(x), expected):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert model[0].weight is weight
    assert "weight" not in model[0].__dict__


def test_rnn_sees_the_replaced_weights():
    torch.manual_seed(0)
    model = nn.LSTM(8, 8, num_layers=2, bidirectional=True)
    quantizer = attach(model, init_bits=3)
    x = torch.randn(3, 2, 8)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    expected = model(x)[0]
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=False) if a.dim() == 2)
    with quantizer.enter_quantize():
        plain = copy.deepcopy(model)
    plain.eval()
    torch.testing.assert_close(plain(x)[0], expected)
    model.train()(x)[0].sum().backward()
    assert model.weight_hh_l0.grad is not None
    assert model.weight_hh_l1_reverse_diffq.grad.abs().sum() > 0


def test_weights_read_by_other_modules_are_noisy():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 8)

        def forward(self, x):
            self.seen = self.embed.weight
            return nn.functional.linear(self.embed(x), self.embed.weight)

    model = Head()
    attach(model, init_bits=3)
    model(torch.tensor([1, 2])).sum().backward()
    assert not torch.equal(model.seen, model.embed.weight)
    assert model.embed.weight_diffq.grad.abs().sum() > 0


def test_attention_projections_that_are_not_called_are_noisy_and_quantised():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    quantizer = attach(model, init_bits=3)
    x = torch.randn(2, 5, 16)
    out = model(x)
    assert not torch.equal(out, model(x))
    out.sum().backward()
    assert model.self_attn.out_proj.weight_diffq.grad.abs().sum() > 0
    assert model.self_attn.in_proj_weight_diffq.grad.abs().sum() > 0
    model.eval()
    with torch.inference_mode():  # the fast path reads parameters directly
        fast = model(x)
    with quantizer.enter_quantize():
        plain = copy.deepcopy(model)
    for handle_owner in plain.modules():
        handle_owner._forward_pre_hooks.clear()
        handle_owner._forward_hooks.clear()
    with torch.inference_mode():
        torch.testing.assert_close(plain(x), fast, rtol=1e-5, atol=1e-5)


# -- gradients -----------------------------------------------------------------------------------------------------


def test_several_forwards_before_one_backward_and_accumulation():
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    attach(model, init_bits=4)
    x = torch.randn(2, 8)
    torch.manual_seed(1)
    (model(x).square().sum() + model(x).square().sum()).backward()
    together = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    for _ in range(2):
        model(x).square().sum().backward()
    for found, expected in zip(model.parameters(), together, strict=True):
        torch.testing.assert_close(found.grad, expected)


def test_frozen_weights_stay_frozen():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    attach(model)
    model[0].weight.requires_grad_(False)
    model[0].weight_diffq.requires_grad_(False)
    model(torch.randn(2, 8)).sum().backward()
    assert model[0].weight.grad is None
    assert model[0].weight_diffq.grad is None
    assert model[1].weight_diffq.grad is not None


def test_noise_backward_runs_right_behind_the_last_use():
    """The gradient of the last layer's weight is complete before the first layer's backward has run."""
    order = []
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    attach(model)
    import diffq_fast.quantizers.noise as module

    original, module.BUCKET_BYTES = module.BUCKET_BYTES, 1
    try:
        model[0].register_full_backward_hook(lambda *_: order.append("first layer"))
        model[1].weight.register_post_accumulate_grad_hook(lambda *_: order.append("last weight"))
        model(torch.randn(2, 8, requires_grad=True)).sum().backward()
    finally:
        module.BUCKET_BYTES = original
    assert order == ["last weight", "first layer"]


def test_size_penalty_lowers_the_bits():
    torch.manual_seed(0)
    model = nn.Linear(16, 16)
    optimizer = torch.optim.Adam(model.parameters())
    quantizer = DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.setup_optimizer(optimizer, lr=0.5)
    before = quantizer.bits_per_weight()["weight"]
    for _ in range(5):
        optimizer.zero_grad()
        (model(torch.randn(4, 16)).square().mean() + 1e4 * quantizer.model_size()).backward()
        optimizer.step()
    assert before == pytest.approx(8, abs=1e-4)
    assert quantizer.bits_per_weight()["weight"] < 6


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_sizes_follow_the_formula():
    model = nn.Linear(64, 48)
    quantizer = attach(model, group_size=8)
    groups = 64 * 48 // 8 + 6
    bits = (64 * 48 + 48) * 8 + 2 * (64 + 8) + groups * 3  # log2(1 + 8 - 2) rounded up
    assert quantizer.true_model_size() == pytest.approx(bits / 8 / 2**20, rel=1e-6)
    assert quantizer.model_size().dim() == 0
    assert attach(nn.Linear(64, 48), min_size=1).true_model_size() == (64 * 48 + 48) * 4 / 2**20
    assert attach(nn.Linear(64, 48), min_size=1, float16=True).true_model_size() == (64 * 48 + 48) * 2 / 2**20


def test_ranges_per_group_count_in_the_size():
    tensor, group = (attach(nn.Linear(64, 48, bias=False), range_scope=scope) for scope in ("tensor", "group"))
    assert (group.true_model_size() - tensor.true_model_size()) * 8 * 2**20 == pytest.approx(64 * (384 - 1), rel=1e-4)


def test_compressed_size_does_not_depend_on_the_workers():
    quantizer = attach(nn.Linear(256, 256))
    assert quantizer.compressed_model_size(num_workers=1) == quantizer.compressed_model_size(num_workers=8)
    assert 0 < quantizer.compressed_model_size(9) < 256 * 256 * 4 / 2**20


# -- copies and files ----------------------------------------------------------------------------------------------


def test_deepcopy_drives_the_copy():
    model = Spy()
    attach(model, init_bits=3)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 8)
    twin(x)
    assert not torch.equal(twin.seen, twin.inner.weight)
    with torch.no_grad():
        twin.inner.weight.zero_()
        twin.inner.bias.zero_()
    assert twin.eval()(x).abs().sum() == 0
    assert model.eval()(x).abs().sum() > 0


def test_pickle_and_torch_save_keep_a_working_quantizer():
    model = mlp()
    quantizer = attach(model, init_bits=4)
    model(torch.randn(2, 64)).sum().backward()
    model.eval()(torch.randn(2, 64))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    x = torch.randn(2, 64)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    loaded.train()(x).sum().backward()
    assert pickle.loads(pickle.dumps(quantizer)).true_model_size() == quantizer.true_model_size()


def test_resume_from_state_dicts_is_bit_equal():
    def build():
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        quantizer = DiffQuantizer(model, min_size=0, group_size=8)
        quantizer.setup_optimizer(optimizer, lr=0.1)
        return model, optimizer, quantizer

    def step(model, optimizer, quantizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        (model(torch.randn(4, 64)).square().mean() + quantizer.model_size()).backward()
        optimizer.step()

    whole = build()
    for seed in range(6):
        step(*whole, seed)
    part = build()
    for seed in range(3):
        step(*part, seed)
    states = copy.deepcopy((part[0].state_dict(), part[1].state_dict()))
    resumed = build()
    resumed[0].load_state_dict(states[0])
    resumed[1].load_state_dict(states[1])
    for seed in range(3, 6):
        step(*resumed, seed)
    for found, expected in zip(resumed[0].state_dict().values(), whole[0].state_dict().values(), strict=True):
        assert torch.equal(found, expected)


def test_repr_names_the_class_and_the_arguments_that_differ():
    quantizer = DiffQuantizer(nn.Linear(2, 2), min_size=0.0, group_size=8, exclude=["a*"], max_bits=15.0)
    assert repr(quantizer) == (
        "DiffQuantizer(model=Linear(in_features=2, out_features=2, bias=True),min_size=0.0,group_size=8,exclude=['a*'])"
    )


def test_attributes_may_be_set_on_a_quantizer():
    quantizer = attach(nn.Linear(2, 2))
    quantizer.penalty = 5
    assert copy.deepcopy(quantizer).penalty == 5


def test_weights_written_while_quantised_are_kept():
    model = nn.Linear(8, 8)
    quantizer = attach(model, init_bits=3)
    bias = model.bias.detach().clone()
    quantizer.quantize()
    with torch.no_grad():
        model.weight.fill_(2)
    assert quantizer.export_weights()[0].weight.eq(2).all()
    quantizer.unquantize()
    assert model.weight.eq(2).all()
    assert torch.equal(model.bias, bias)


def test_tied_parameters_in_half_precision_are_rounded_at_every_place():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].bias = model[0].bias
    quantizer = attach(model, min_size=0.001, float16=True)
    x = torch.randn(2, 64)
    found = model.eval()(x)
    assert model[1].bias is model[0].bias
    with quantizer.enter_quantize():
        assert torch.equal(model(x), found)


def test_sizes_and_exports_work_after_detach():
    model = nn.Linear(8, 8)
    quantizer = attach(model, init_bits=3)
    before = quantizer.true_model_size(), quantizer.get_quantized_state()["quantized"][0][1]
    quantizer.detach()
    quantizer.detach()
    assert (quantizer.true_model_size(), quantizer.get_quantized_state()["quantized"][0][1]) == before
    assert list(model.state_dict()) == ["weight", "bias"]


def test_remembered_forwards_keep_no_weights_alive():
    model = Spy()
    quantizer = attach(model, init_bits=3)
    references = []
    for training in (True, False, True, False):
        with torch.set_grad_enabled(training):
            model.train(training)(torch.randn(2, 8))
        references.append(weakref.ref(model.__dict__.pop("seen")))
    assert references[-1]() is not None
    quantizer._eval.kept.clear()
    gc.collect()
    assert [reference() for reference in references] == [None] * 4
