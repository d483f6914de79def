"""One model and several threads: eval forwards share what they see; a training forward that would share is refused."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer

X = torch.randn(3, 8)


class Meeting(nn.Module):
    """Waits in the middle of a forward, if asked to, until it is let go."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.checkpointed = False

    def forward(self, x, inside=None, go_on=None):
        x = checkpoint(self.first, x, use_reentrant=False) if self.checkpointed else self.first(x)
        if inside is not None:
            inside.set()
            assert go_on.wait(60)
        return self.last(x)


QUANTIZERS = {
    "diffq": lambda model: DiffQuantizer(model, min_size=0, group_size=8, init_bits=3),
    "uniform": lambda model: UniformQuantizer(model, bits=3, min_size=0, qat=True),
    "lsq": lambda model: LSQ(model, bits=3, min_size=0),
}


def attach(name="diffq"):
    torch.manual_seed(0)
    model = Meeting()
    QUANTIZERS[name](model).no_optimizer()
    return model


class Inside:
    """A thread that is inside of a forward as long as the context lasts."""

    def __init__(self, call):
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.pool = ThreadPoolExecutor(1)
        self.result = self.pool.submit(call, self.inside, self.go_on)

    def __enter__(self):
        assert self.inside.wait(60)
        return self

    def __exit__(self, *error):
        self.go_on.set()
        self.output = self.result.result()
        self.pool.shutdown()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_training_forward_while_another_thread_is_inside_is_refused(name):
    model = attach(name)
    torch.manual_seed(1)
    with (
        Inside(lambda *events: model(X, *events)) as other,
        pytest.raises(RuntimeError, match="another thread was inside"),
    ):
        model(X)
    other.output.sum().backward()
    expected = attach(name)
    torch.manual_seed(1)
    torch.testing.assert_close(other.output, expected(X))
    assert model.first.weight is model.first._parameters["weight"]
    model(X).sum().backward()  # and alone again it trains


@pytest.mark.parametrize("name", QUANTIZERS)
def test_an_eval_forward_while_another_thread_trains_is_refused(name):
    model = attach(name)
    with Inside(lambda *events: model(X, *events)):
        model.eval()
        with torch.no_grad(), pytest.raises(RuntimeError, match="in eval mode began on one thread"):
            model(X)
    assert model.first.weight is model.first._parameters["weight"]


def test_eval_with_gradients_does_not_share_weights_that_have_none():
    model = attach().eval()

    def without_gradients(*events):
        with torch.no_grad():
            return model(X, *events)

    expected = without_gradients()
    with Inside(without_gradients):
        assert torch.equal(without_gradients(), expected)
        with pytest.raises(RuntimeError, match=r"all of them under torch\.no_grad"):
            model(X)
    with Inside(lambda *events: model(X, *events)):
        assert torch.equal(without_gradients(), expected)
        model(X).sum().backward()
    assert model.first.weight.grad.abs().sum() > 0


def test_threads_that_see_float_weights_train_at_the_same_time():
    model = Meeting()
    UniformQuantizer(model, bits=3, min_size=0)
    with Inside(lambda *events: model(X, *events)) as other:
        expected = model(X)
    assert torch.equal(other.output, expected)


def test_a_checkpoint_is_not_computed_again_while_another_thread_is_inside():
    model = attach()
    model.checkpointed = True
    loss = model(X.clone().requires_grad_()).sum()
    with Inside(lambda *events: model(X, *events)), pytest.raises(RuntimeError, match="checkpoint was computed again"):
        loss.backward()
    assert model.first.weight is model.first._parameters["weight"]


def test_checkpoints_of_threads_that_take_turns_have_the_noise_of_their_own_forward():
    """Both threads' forwards have the same numbers: the first of each."""
    grads = {}
    for checkpointed in (True, False):
        model = attach()
        model.checkpointed = checkpointed
        parameter = model.first.weight
        pools = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]

        def forward(seed, model=model):
            torch.manual_seed(seed)
            return model(X.clone().requires_grad_()).square().sum()

        losses = [pool.submit(forward, seed).result() for seed, pool in enumerate(pools)]
        for seed, pool in enumerate(pools):
            grads[seed, checkpointed] = pool.submit(torch.autograd.grad, losses[seed], parameter).result()[0]
            pool.shutdown()
    for seed in (0, 1):
        torch.testing.assert_close(grads[seed, True], grads[seed, False])


def test_many_threads_that_train_one_model_end_in_errors_and_not_in_a_crash():
    model = attach()
    errors, done = [], []

    def work():
        for _ in range(200):
            try:
                torch.autograd.grad(model(X).sum(), list(model.parameters()))
                done.append(1)
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(errors) == 800
    assert done
    assert all("another thread was inside" in error for error in errors)
    assert model.first.weight is model.first._parameters["weight"]
