"""Training operators on a CUDA device among streams, graphs and other devices, without waiting, and beyond 2**31
elements."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import default
from support.gpu_tensors import KEY, assert_same, cuda, make, ops, options

pytestmark = pytest.mark.gpu


def test_cuda_graph_replays_with_new_keys_and_weights():
    weights, logits, grads = (cuda(make((8192, 100), seed=s)) for s in (0, 1, 3))
    logits = [logits[0][:1024], logits[1][:13]]
    key = KEY.cuda()

    def passes():
        noisy, ranges, extremes = ops.add_noise(weights, logits, key, [0, 1], None, *options())
        gradients = ops.add_noise_backward(grads, weights, logits, ranges, extremes, key, [0, 1], *options())
        return [*noisy, ranges, *gradients[0], *gradients[1]]

    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            passes()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = passes()
        for change in (1, 2):
            key.fill_(change)
            weights[0].mul_(1.5)
            graph.replay()
            assert_same(captured, passes())


def test_other_streams_and_threads_of_work():
    weights, logits = cuda(make((8192, 100))), cuda(make((1024, 13), seed=1))
    with torch.no_grad():
        expected = ops.add_noise(weights, logits, KEY.cuda(), [0, 1], None, *options())[0]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in range(3)]
        results = []
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(ops.add_noise(weights, logits, KEY.cuda(), [0, 1], None, *options())[0])
        torch.cuda.synchronize()
    for result in results:
        assert_same(result, expected)


def test_moved_weights_are_found_again():
    """The table of addresses follows the tensors, whether or not the allocator gives them their old places."""
    weights, logits = cuda(make((8192, 100))), cuda(make((1024, 13), seed=1))
    with torch.no_grad():
        expected = ops.add_noise(weights, logits, KEY.cuda(), [0, 1], None, *options())[0]
        for _ in range(3):
            weights, logits = [w.clone() for w in weights], [lg.clone() for lg in logits]
            assert_same(ops.add_noise(weights, logits, KEY.cuda(), [0, 1], None, *options())[0], expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_several_devices_in_one_process():
    """Work goes to the tensors' device and its current stream, whichever device is the current one."""
    results = []
    for name in ("cuda:0", "cuda:1", "cuda:0"):
        weights, logits, grads = ([t.to(name) for t in make((8192, 104), seed=s)] for s in (0, 1, 3))
        logits, key = [logits[0][:1024], logits[1][:13]], KEY.to(name)
        with torch.cuda.device(0), torch.no_grad():
            noisy, ranges, extremes = ops.add_noise(weights, logits, key, [0, 1], None, *options())
            back = ops.add_noise_backward(grads, weights, logits, ranges, extremes, key, [0, 1], *options())
        assert {tensor.device for tensor in (*noisy, ranges, *back[0], *back[1])} == {torch.device(name)}
        results.append([tensor.cpu() for tensor in (*noisy, ranges, *back[0], *back[1])])
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_a_step_waits_for_nothing():
    weights = [w.requires_grad_() for w in cuda(make((8192, 100)))]
    logits = [lg.requires_grad_() for lg in cuda(make((1024, 13), seed=1))]
    key = KEY.cuda()
    for step in range(3):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            noisy, _, _ = ops.add_noise(weights, logits, key, [0, 1], None, *options())
            sum(n.sum() for n in noisy).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    count = 2**31 + 8 * 5
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * 2 * count + 2**31:
        pytest.skip("needs about 16 GB of free GPU memory")
    weight = torch.zeros(count, dtype=torch.bfloat16, device="cuda")
    weight[-1], weight[-2] = 1.0, -1.0
    logits = [torch.zeros(1, device="cuda")]
    with torch.no_grad():
        (noisy,), ranges, extremes = ops.add_noise([weight], logits, KEY.cuda(), [3], None, *options(0))
    assert ranges.tolist() == [[-1.0, 1.0]]
    assert extremes.tolist() == [[count - 2, count - 1, 1, 1]]
    z = default.noise(KEY, 3, count - 40, 38, "uniform")
    step = 1 / (2**8.5 - 1)
    torch.testing.assert_close(noisy[-40:-2].float().cpu(), 2 * step * z, rtol=2**-7, atol=1e-6)
