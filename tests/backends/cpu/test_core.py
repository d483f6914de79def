"""The compiled core: its guards, threads, memory formats and instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import diffq_fast.functional
from diffq_fast.backends import cpu
from diffq_fast.backends.cpu import loading
from diffq_fast.reference.sizes import group_count
from support.core_cases import KEY, assert_all_equal, make_logits, make_weights, make_widths, ops, options

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


STATUS = "from diffq_fast.backends import cpu; print(cpu.status())"


@pytest.mark.parametrize("group_size", [0, 7, 8, 20000])
@pytest.mark.parametrize("per_group", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(threads, group_size, per_group):
    weights = make_weights((100001, 40000, 5), torch.float32)
    grads = make_weights((100001, 40000, 5), torch.float32, seed=3)
    logits, widths = make_logits(weights, group_size), make_widths(weights, group_size)

    def everything(number):
        threads(number)
        bounds = ops.weight_range(weights, group_size, per_group)
        chosen = options(group_size, per_group)
        results = list(ops.add_noise(weights, logits, KEY, [0, 1, 2], None, *chosen)[0])
        backward = ops.add_noise_backward(grads, weights, logits, *bounds, KEY, [0, 1, 2], *chosen)
        results += [*backward[0], *backward[1]]
        levels = ops.quantize(weights, widths, bounds[0], group_size, per_group)
        words = diffq_fast.functional.packed_word_count(widths[0], 100001, group_size=group_size)
        return [*results, *levels, ops.pack(levels[0], widths[0], group_size, words)]

    one = everything(1)
    assert_all_equal(everything(2), one)
    assert_all_equal(everything(5), one)


def test_weights_in_other_memory_formats_follow_the_logical_order():
    plain = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    strided = [plain.to(memory_format=torch.channels_last), torch.randn(9, 7).t(), torch.randn(40)[::2]]
    weights = [weight.contiguous() for weight in strided]
    logits, widths = make_logits(weights, 8), make_widths(weights, 8)
    chosen = [0, 1, 2], None, *options(8)
    noisy = ops.add_noise(strided, logits, KEY, *chosen)[0]
    assert_all_equal(noisy, ops.add_noise(weights, logits, KEY, *chosen)[0])
    assert all(tensor.is_contiguous() for tensor in noisy)
    found, _ = ops.weight_range(strided, 8, False)
    levels = ops.quantize(strided, widths, found, 8, False)
    assert_all_equal(levels, ops.quantize(weights, widths, found, 8, False))
    odd_logits = [torch.stack([logit, logit], dim=1)[:, 0] for logit in logits]
    assert_all_equal(ops.add_noise(weights, odd_logits, KEY, *chosen)[0], noisy)


def test_operators_refuse_sizes_that_the_core_would_overrun():
    weights, found = make_weights((64,), torch.float32), torch.tensor([[0.0, 1.0]])
    widths = torch.full((8,), 4, dtype=torch.uint8)
    levels = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"add_noise: logits\[0\]: expected 8 values, .* got 7"):
        ops.add_noise(weights, [torch.zeros(7)], KEY, [0], None, *options(8))
    with pytest.raises(ValueError, match=r"quantize: widths\[0\]: expected 8 values, .* got 7"):
        ops.quantize(weights, [widths[:7]], found, 8, False)
    with pytest.raises(ValueError, match=r"dequantize: ranges: expected float32 \[8, 2\], got torch.float32 \[1, 2\]"):
        ops.dequantize([levels], [widths], found, 8, True, torch.float32)
    with pytest.raises(ValueError, match=r"fake_quantize: widths\[0\]: expected 8 values, .* got 7"):
        ops.fake_quantize(weights, [widths[:7]], found, 8, False)
    with pytest.raises(ValueError, match=r"fake_quantize: ranges: expected float32 \[8, 2\], got .* \[1, 2\]"):
        ops.fake_quantize(weights, [widths], found, 8, True)
    with pytest.raises(ValueError, match="pack: widths must be between 1 and 16 and need exactly word_count words"):
        ops.pack(levels, widths, 8, 7)
    with pytest.raises(ValueError, match=r"unpack: widths must be .* got word_count=9"):
        ops.unpack(torch.zeros(9, dtype=torch.int32), widths, 8, 64)
    with pytest.raises(ValueError, match="unpack_dequantize: widths must be"):
        ops.unpack_dequantize(torch.zeros(8, dtype=torch.int32), widths + 13, found, 8, False, [64], torch.float32)


def test_operators_refuse_keys_streams_and_dtypes_that_the_core_would_overrun():
    weights, logits, grads = make_weights((64,), torch.float32), [torch.zeros(8)], make_weights((64,), torch.float32)
    widths, words = torch.full((8,), 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int32)
    bounds = ops.weight_range(weights, 8, False)
    for key, streams in ((KEY.to(torch.int32), [0]), (KEY.repeat(2), [0]), (KEY, []), (KEY, [0, 1])):
        with pytest.raises(
            ValueError, match=r"add_noise: expected (one int64 key and 1|weights, and as many logits and) streams"
        ):
            ops.add_noise(weights, logits, key, streams, None, *options(8))
        with pytest.raises(ValueError, match="add_noise_backward: expected one int64 key and 1 streams"):
            ops.add_noise_backward(grads, weights, logits, *bounds, key, streams, *options(8))
    with pytest.raises(ValueError, match="noise: expected one int64 key"):
        ops.noise(KEY.to(torch.int32), 0, 0, 8, "uniform")
    with pytest.raises(ValueError, match="noise: begin and count must not be negative nor reach"):
        ops.noise(KEY, 0, 2**63 - 8, 8, "uniform")
    for extremes in (bounds[1].to(torch.int32), bounds[1][:0], bounds[1].flatten()):
        with pytest.raises(ValueError, match=r"add_noise_backward: extremes: expected int64 \[1, 4\]"):
            ops.add_noise_backward(grads, weights, logits, bounds[0], extremes, KEY, [0], *options(8))
    with pytest.raises(ValueError, match=r"unpack: words: expected 32 bits each, got torch\.int16"):
        ops.unpack(words.to(torch.int16), widths, 8, 64)
    with pytest.raises(ValueError, match=r"unpack_dequantize: words: expected 32 bits each, got torch\.uint8"):
        ops.unpack_dequantize(words.to(torch.uint8), widths, bounds[0], 8, False, [64], torch.float32)


@pytest.mark.parametrize("name", ["add_noise", "weight_range", "noise"])
def test_opcheck_passes(name):
    weights, logits = make_weights((40, 9), torch.float32), [torch.zeros(5), torch.zeros(2)]
    arguments = {
        "add_noise": (weights, logits, KEY, [0, 1], None, *options(8)),
        "weight_range": (weights, 8, False),
        "noise": (KEY, 0, 3, 20, "uniform"),
    }[name]
    torch.library.opcheck(getattr(ops, name), arguments)


def test_disabled_core_answers_through_the_reference():
    assert run_python(STATUS, DIFFQ_FAST_DISABLE_CORE="1") == "(False, 'DIFFQ_FAST_DISABLE_CORE is set')"
    code = "import torch, diffq_fast.functional as f; print(f.weight_range([torch.tensor([1., 3.])]).tolist())"
    assert run_python(code, DIFFQ_FAST_DISABLE_CORE="1") == "[[1.0, 3.0]]"


def test_unknown_instruction_set_is_an_error():
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_python(STATUS, DIFFQ_FAST_ISA="avx9")
    assert "ValueError: diffq_fast: DIFFQ_FAST_ISA: expected one of scalar" in caught.value.stderr
    assert "got 'avx9'; unset it to use the best of them" in caught.value.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_computes_with_new_threads():
    code = """
import os, torch, diffq_fast.functional as f
torch.set_num_threads(2)
weight = torch.arange(200000.0)
f.weight_range([weight])
child = os.fork()
if child == 0:
    os._exit(0 if f.weight_range([weight]).tolist() == [[0.0, 199999.0]] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code) == "0"


def test_a_thread_inside_the_core_does_not_abort_a_program_that_ends():
    code = """
import threading, torch, diffq_fast.functional
from diffq_fast.backends.cpu.loading import core
key, z, inside = torch.tensor(1), torch.empty(2000000), threading.Event()
def run():
    while True:
        inside.set()
        core.noise(key.data_ptr(), 0, 0, z.numel(), 1, z.data_ptr(), 2)
for _ in range(3):
    threading.Thread(target=run, daemon=True).start()
inside.wait()
print("ended")
"""
    assert run_python(code) == "ended"


@pytest.mark.skipif(not loading.find_team(), reason="torch has no OpenMP runtime that the core can call")
def test_own_threads_give_what_torchs_threads_give():
    weights = make_weights((300001, 70000), torch.float32)
    logits, grads = make_logits(weights, 8), make_weights((300001, 70000), torch.float32, seed=2)
    options = (8, 2.0, 15.0, "bits", "gaussian", False)
    widths = (torch.arange(group_count(300001, 8)) % 5 + 2).to(torch.uint8)

    def everything():
        noisy, found, extremes = ops.add_noise(weights, logits, KEY, [0, 1], None, *options)
        back = ops.add_noise_backward(grads, weights, logits, found, extremes, KEY, [0, 1], *options)
        words = diffq_fast.functional.quantize_pack(weights[0], widths, found[:1], group_size=8)
        return [*noisy, found, extremes, *back[0], *back[1], words]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with_torchs = everything()
        loading.core.use_team(0)
        with_own = everything()
    finally:
        loading.core.use_team(loading.find_team())
        torch.set_num_threads(before)
    for mine, other in zip(with_own, with_torchs, strict=True):
        assert torch.equal(mine, other)
