"""transformers' callback, and accelerate, over two processes as torchrun starts them, against one process."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install '.[hf]')")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed (pip install '.[hf]')")

from diffq_fast import DiffQuantizer, SizeTarget  # noqa: E402
from diffq_fast.integrations.huggingface import DiffqFastCallback  # noqa: E402
from support.hugging_face import bert, output, tokens  # noqa: E402
from support.sharded_runs import as_torchrun  # noqa: E402

STEPS, STOP, BATCH = 8, 4, 16
SMALL = partial(DiffQuantizer, group_size=8, min_size=0.001)


class Sentences(torch.utils.data.Dataset):
    """Sequences whose label is told by their first token."""

    def __len__(self):
        return STOP * BATCH

    def __getitem__(self, index):
        ids = torch.randint(3, 120, (7,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": int(ids[0]) % 3}


class Middle(transformers.TrainerCallback):
    """Notes the state before bits are frozen: what differs in its last bit may freeze to other widths."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == STOP:
            self.state = copy_of(kwargs["model"])


def copy_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def classifier():
    torch.manual_seed(0)
    config = bert()
    config.num_labels, config.hidden_dropout_prob, config.attention_probs_dropout_prob = 3, 0.0, 0.0
    return transformers.BertForSequenceClassification(config)


def train(folder, batch_size):
    """A training to a size by the Trainer: its states in the middle and at the end, its size and outputs."""
    model, middle = classifier(), Middle()
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        logging_steps=4,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo" if dist.is_initialized() else None,
        train_sampling_strategy="sequential",
        average_tokens_across_devices=False,  # else this model's mean is multiplied by the number of processes
    )
    callback = DiffqFastCallback(SMALL, bits_per_weight=6.0, csv="bits.csv")
    trainer = transformers.Trainer(model, args, train_dataset=Sentences(), callbacks=[callback, middle])
    trainer.train()
    found = {"middle": middle.state, "end": copy_of(model), "logs": trainer.state.log_history}
    found |= {"size": callback.quantizer.true_model_size(), "asked": callback.size_target.mb}
    return {**found, "output": output(model, {"input_ids": tokens()})}


def accelerated(folder, batch_size):
    """The same in a loop of one's own, which stops in the middle, and goes on from what accelerate has stored."""
    for resumed in (False, True):
        accelerator = accelerate.Accelerator(cpu=True)
        model = classifier()
        quantizer = SMALL(model)
        optimizer = torch.optim.AdamW(quantizer.parameter_groups(lr=1e-3, bits_lr=0.02))
        target = SizeTarget(quantizer, bits_per_weight=6.0, total_steps=STEPS)
        accelerator.register_for_checkpointing(target)
        data = torch.utils.data.DataLoader(Sentences(), batch_size)
        wrapped, optimizer, data = accelerator.prepare(model, optimizer, data)
        if resumed:
            accelerator.load_state(folder)
        else:
            torch.manual_seed(1)
        for batch in data:
            accelerator.backward(wrapped(**batch).loss + target.penalty())
            optimizer.step()
            target.step()
            optimizer.zero_grad()
        if not resumed:
            accelerator.save_state(folder)
            middle = copy_of(model)
    return {"middle": middle, "end": copy_of(model), "size": quantizer.true_model_size(), "asked": target.mb}


WAYS = {"trainer": train, "accelerate": accelerated}


def run(path):
    as_torchrun()
    rank = dist.get_rank()
    return {
        "trainer": train(Path(path, f"trainer{rank}"), BATCH // 2),
        "accelerate": accelerated(Path(path, "accelerate"), BATCH // 2),
    }


pytestmark = pytest.mark.processes(run=run, world=2)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_does(ranks, way, tmp_path):
    alone = WAYS[way](tmp_path, BATCH)
    for results in ranks:
        found = results[way]
        torch.testing.assert_close(found["middle"], alone["middle"], rtol=1e-3, atol=1e-4)
        assert found["size"] == pytest.approx(alone["size"], rel=1e-2)
        assert 0.9 * found["asked"] < found["size"] <= found["asked"]
        assert all(torch.equal(value, ranks[0][way]["end"][name]) for name, value in found["end"].items())


def test_the_first_process_alone_writes_the_folder_and_the_log(ranks, folder):
    first, second = folder / "trainer0", folder / "trainer1"
    assert (first / "packed" / "config.json").is_file()
    assert len((first / "bits.csv").read_text().splitlines()) == 1 + STEPS // 4
    assert not list(second.rglob("*.safetensors"))
    assert not list(second.rglob("*.csv"))
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(first / "packed")
    for results in ranks:
        assert torch.equal(output(loaded, {"input_ids": tokens()}), results["trainer"]["output"])
