"""The callback in Lightning's Trainer: to a size, in every precision, resumed."""

import logging
import warnings
from functools import partial

import pytest
import torch
from torch import nn

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed (pip install '.[lightning]')")

import diffq_fast  # noqa: E402
from diffq_fast import DiffQuantizer  # noqa: E402
from diffq_fast.integrations.lightning import DiffqFastCallback  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers

SMALL = partial(DiffQuantizer, group_size=8, min_size=0.0005)
STEPS = 16


class Digits(pl.LightningModule):
    """``training_step`` calls the module itself."""

    def __init__(self, eps=1e-8):
        super().__init__()
        self.eps = eps
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))

    def forward(self, inputs):
        return self.net(inputs.to(self.net[0].weight.dtype))

    def training_step(self, batch, index):
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs).float(), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, eps=self.eps, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 50)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Parts(Digits):
    """``training_step`` calls a part of it."""

    forward = pl.LightningModule.forward

    def training_step(self, batch, index):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)


def loader():
    inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=8)


def fit(folder, callback, module=None, resume=None, **options):
    settings = {"max_steps": STEPS, "accelerator": "cpu", "logger": False, "log_every_n_steps": 4}
    settings |= {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Digits() if module is None else module
    trainer = pl.Trainer(default_root_dir=folder, callbacks=[callback], **settings | options)
    torch.manual_seed(2)
    trainer.fit(module, loader(), ckpt_path=resume)
    return module, trainer


def parameters(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


PRECISIONS = ["32-true", "bf16-mixed", "bf16-true", "16-true", "64-true"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_training_reaches_its_size_in_every_precision(precision, tmp_path):
    save_to = None if precision == "64-true" else "small/model.safetensors"
    callback = DiffqFastCallback(SMALL, bits_per_weight=6.0, csv="bits.csv", save_to=save_to)
    module = Digits(1e-4 if precision == "16-true" else 1e-8)  # float16 has no 1e-8: weights would become NaN
    module, trainer = fit(tmp_path, callback, module, precision=precision)
    size = callback.quantizer.true_model_size()
    assert 0.9 * callback.size_target.mb < size <= callback.size_target.mb
    assert {logit.dtype for logit in callback.quantizer.learned_parameters()} == {torch.float32}
    assert len((tmp_path / "bits.csv").read_text().splitlines()) == 1 + STEPS // 4
    assert float(trainer.callback_metrics["size_mb"]) == pytest.approx(size)
    if save_to is not None:
        plain = Digits().to(next(module.net.parameters()).dtype)
        diffq_fast.load(tmp_path / save_to, plain)
        inputs = torch.randn(4, 16)
        assert torch.equal(plain.eval()(inputs), module.eval()(inputs))


def test_float16_with_a_scaler_where_the_processor_can(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    callback = DiffqFastCallback(SMALL, bits_per_weight=6.0)
    fit(tmp_path, callback, plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)])
    target = callback.size_target
    assert 0.9 * target.mb < callback.quantizer.true_model_size() <= target.mb

    exact = DiffqFastCallback(SMALL, bits_per_weight=6.0)
    fit(tmp_path, exact)
    assert float(target.price) == pytest.approx(float(exact.size_target.price), rel=0.2)  # not 1,024 times as large


def test_it_trains_as_a_loop_of_ones_own_with_setup_optimizer(tmp_path):
    callback = DiffqFastCallback(SMALL, penalty=3.0, bits_lr=0.05)
    found = parameters(fit(tmp_path, callback, max_steps=4)[0])

    module = Digits()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.1)
    quantizer = SMALL(module)
    quantizer.setup_optimizer(optimizer, lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 50)
    torch.manual_seed(2)
    batches = loader()
    for (inputs, labels), _ in zip(batches, range(4), strict=False):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(inputs), labels) + 3.0 * quantizer.model_size()
        loss.backward()
        optimizer.step()
        scheduler.step()
    expected = parameters(module)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_accumulated_gradients_have_the_price_once(tmp_path):
    class Watched(DiffqFastCallback):
        price = 0.0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.price = sum(float(logit.grad.sum()) for logit in self.quantizer.learned_parameters())

    class Still(Digits):
        def training_step(self, batch, index):
            return 0.0 * super().training_step(batch, index)

    prices = []
    for batches in (1, 4):
        callback = Watched(SMALL, penalty=1000.0)
        fit(tmp_path, callback, Still(), max_steps=1, accumulate_grad_batches=batches)
        prices.append(callback.price)
    assert prices[0] > 0
    assert prices[1] == pytest.approx(prices[0], rel=1e-4)


@pytest.mark.parametrize("stop", [4, 12])  # before the bits are frozen, and after
def test_a_resumed_training_ends_where_the_whole_one_does(stop, tmp_path):
    batches = list(loader())

    class Sure(Digits):  # Lightning keeps no state of the random generators, and begins with the first batch again
        def training_step(self, batch, index):
            torch.manual_seed(self.global_step)
            return super().training_step(batches[self.global_step % len(batches)], index)

    def callback():
        return DiffqFastCallback(SMALL, bits_per_weight=6.0)

    whole = parameters(fit(tmp_path / "whole", callback(), Sure())[0])
    kept = pl.callbacks.ModelCheckpoint(tmp_path / "kept", every_n_train_steps=stop, save_top_k=-1, filename="{step}")
    settings = {"max_steps": STEPS, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        default_root_dir=tmp_path / "kept", callbacks=[callback(), kept], enable_model_summary=False, **settings
    )
    torch.manual_seed(2)
    trainer.fit(Sure(), loader())
    resumed = fit(tmp_path / "resumed", callback(), Sure(), resume=tmp_path / "kept" / f"step={stop}.ckpt")[0]
    again = parameters(resumed)
    assert whole.keys() == again.keys()
    assert not [name for name in whole if not torch.equal(whole[name], again[name])]


def test_the_part_that_training_step_calls_is_quantised(tmp_path):
    callback = DiffqFastCallback(SMALL, penalty=1.0)
    module, _ = fit(tmp_path, callback, Parts(), max_steps=3)
    assert callback.quantizer.model is module.net
    assert diffq_fast.load(tmp_path / "model.safetensors").keys() == Digits().net.state_dict().keys()


def test_a_module_that_is_never_called_is_told(tmp_path):
    class Bypassed(Parts):
        def forward(self, inputs):
            return self.net(inputs)

    with pytest.raises(RuntimeError, match=r"not called the Bypassed that is quantised.*module= the name of the part"):
        fit(tmp_path, DiffqFastCallback(SMALL, penalty=1.0), Bypassed(), max_steps=1)
    module, _ = fit(tmp_path, DiffqFastCallback(SMALL, penalty=1.0, module="net"), Bypassed(), max_steps=1)
    assert any(name.endswith("_diffq") for name, _ in module.net.named_parameters())


def test_a_part_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="module must be a part of the Digits, got 'nets'; it has net"):
        fit(tmp_path, DiffqFastCallback(SMALL, penalty=1.0, module="nets"))


def test_a_size_without_an_end_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="a size needs the number of steps"):
            fit(tmp_path, DiffqFastCallback(SMALL, bits_per_weight=6.0), max_steps=-1, max_epochs=-1)
