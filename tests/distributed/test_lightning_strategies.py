"""Lightning's callback over two processes, in DistributedDataParallel and sharded, against one process."""

import logging
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed (pip install '.[lightning]')")

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy  # noqa: E402

import diffq_fast  # noqa: E402
from diffq_fast import DiffQuantizer  # noqa: E402
from diffq_fast.integrations.lightning import DiffqFastCallback  # noqa: E402
from support.sharded_runs import as_torchrun, whole  # noqa: E402

STEPS, STOP = 8, 4
SMALL = partial(DiffQuantizer, group_size=8, min_size=0.0005)
STRATEGIES = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "sharded": lambda: ModelParallelStrategy(2, 1, process_group_backend="gloo"),
}


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.learning = None  # the state before bits are frozen
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, index):
        if self.global_step == STOP - 1:
            self.learning = self.state()
        torch.manual_seed(self.global_step)  # Lightning keeps no state of the random generators
        inputs, labels = (each.chunk(self.trainer.world_size)[self.global_rank] for each in batch)
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def state(self):
        return {name: whole(value) for name, value in self.net.state_dict().items()}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def fit(folder, strategy=None, resume=None):
    """A training to a size: its states before bits are frozen and at the end, and its size."""
    inputs = torch.randn(STOP * 16, 16, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :3].argmax(1))
    callback = DiffqFastCallback(SMALL, bits_per_weight=6.0, csv="bits.csv")
    kept = pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=STOP, save_top_k=-1, filename="{step}")
    settings = {} if strategy is None else {"devices": 2, "strategy": strategy}
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        default_root_dir=folder,
        callbacks=[callback, kept],
        max_steps=STEPS,
        accelerator="cpu",
        log_every_n_steps=2,
        use_distributed_sampler=False,
        **settings,
        **quiet,
    )
    module = Digits()
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=16), ckpt_path=resume)
    states = {"learning": module.learning, "end": module.state()}
    return {**states, "size": callback.quantizer.true_model_size(), "asked": callback.size_target.mb}


def quietly(*args, **options):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers
        return fit(*args, **options)


def run(path):
    as_torchrun()
    results = {name: quietly(Path(path, name), make()) for name, make in STRATEGIES.items()}
    for name, make in STRATEGIES.items():
        resume = Path(path, name, f"step={STOP}.ckpt")
        results[f"{name}, resumed"] = quietly(Path(path, f"{name}, resumed"), make(), resume)
    return results


RUNS = [*STRATEGIES, *(f"{name}, resumed" for name in STRATEGIES)]
pytestmark = pytest.mark.processes(run=run, world=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return quietly(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_train_as_one_does(ranks, alone, name):
    for results in ranks:
        torch.testing.assert_close(results[name]["learning"], alone["learning"], rtol=1e-3, atol=1e-4)
        assert results[name]["size"] == pytest.approx(alone["size"], rel=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_every_strategy_reaches_the_size_and_resumes(ranks, name):
    for results in ranks:  # what differs in its last bit freezes to other widths, so the end is compared among these
        assert 0.9 * results[name]["asked"] < results[name]["size"] <= results[name]["asked"]
        torch.testing.assert_close(results[name]["end"], ranks[0]["ddp"]["end"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_the_first_process_writes_the_model_and_the_log(ranks, folder, name):
    rows = (folder / name / "bits.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *(["2", "4"] if "," not in name else []), "6", "8"]
    assert float(rows[-1].split(",")[1]) == ranks[0][name]["size"]
    one, quantised = Digits(), Digits()
    SMALL(quantised.net)
    quantised.net.load_state_dict(ranks[0][name]["end"])
    diffq_fast.load(folder / name / "model.safetensors", one.net)
    inputs = torch.randn(4, 16)
    assert torch.equal(one.eval().net(inputs), quantised.eval().net(inputs))
