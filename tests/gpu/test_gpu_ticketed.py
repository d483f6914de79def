"""The forward in one launch against the form in two, on a CUDA device: equal bit for bit, whatever runs beside it."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference.options import NoiseOptions
from diffq_fast.reference.sizes import group_count

pytestmark = pytest.mark.gpu

KEY = torch.tensor(-0x123456789ABCDEF)
# Empty, tiny, ragged and large weights: more tiles than programs run at a time.
COUNTS = (0, 1, 9, 8191, 8192, 8193, 100_003, 3 * 2**20 + 5, 20_000_000, 1023)
MANY = [8193, 50_001] + [700] * 1200
LAUNCHES, SEVERAL = 1000, (3_000_000, 100, 8192 * 9)
BESIDE, REPLAYED = (20_000_000, 500_000, 12_000_000), (8192, 100_003, 100)


def make(counts, dtype=torch.float32, seed=0):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return [torch.randn(count, generator=generator, device="cuda").to(dtype) for count in counts]


def passes(weights, group_size=8, noise_kind="uniform", dtype=None, key=KEY):
    """The forward in two launches and in one, each as a list of tensors."""
    from diffq_fast.backends.triton.add_noise import noisy_weights

    logits = make([group_count(weight.numel(), group_size) for weight in weights], seed=1)
    options = NoiseOptions(group_size, noise_kind=noise_kind)
    arguments = weights, logits, key.cuda(), list(range(len(weights))), options, dtype

    def form(one_launch):
        noisy, ranges, extremes = noisy_weights(*arguments, one_launch=one_launch)
        return [*noisy, ranges, extremes]

    return lambda: form(False), lambda: form(True)


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("group_size", [0, 1, 8, 1024])
@pytest.mark.parametrize(
    ("dtype", "noisy"), [(torch.float32, None), (torch.float32, torch.bfloat16), (torch.float16, None)]
)
def test_one_launch_equals_two(dtype, noisy, group_size):
    weights = make(COUNTS, dtype)
    weights[3][17], weights[5] = float("nan"), weights[5].clamp(-1, 1)
    for noise_kind in ("uniform", "gaussian"):
        two, one = passes(weights, group_size, noise_kind, noisy)
        assert_same(one(), two())


def test_unaligned_views_and_many_small_weights_equal_two_launches():
    weights = [weight[1:] for weight in make(MANY)]
    two, one = passes(weights)
    assert_same(one(), two())


def test_a_thousand_launches_leave_their_counters_at_zero():
    two, one = passes(make(SEVERAL))
    expected = two()
    for _ in range(LAUNCHES):
        got = one()
    assert_same(got, expected)


def test_launches_of_several_streams_at_once_equal_two_launches():
    """Programs of other launches take multiprocessors away: nobody may wait for one that never runs."""
    bucket = make(BESIDE)
    two, one = passes(bucket)
    expected = two()
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(4)], []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(one())
        torch.cuda.synchronize()
        for result in results:
            assert_same(result, expected)
        results.clear()


def test_a_cuda_graph_replays_the_one_launch():
    weights = make(REPLAYED)
    two, one = passes(weights)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        one()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The key and the logits are made anew by every call, so capture what the launcher itself does.
    from diffq_fast.backends.triton.add_noise import noisy_weights

    logits, key = make([group_count(count, 8) for count in REPLAYED], seed=1), KEY.cuda()
    arguments = weights, logits, key, [0, 1, 2], NoiseOptions(8, noise_kind="uniform")
    with torch.cuda.graph(graph):
        noisy, ranges, _ = noisy_weights(*arguments, one_launch=True)
    for _ in range(3):
        weights[1].mul_(1.5)
        graph.replay()
        assert_same([*noisy, ranges], two()[:-1])
