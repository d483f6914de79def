"""The callback in transformers' Trainer: to a size, resumed, with accelerate and with PEFT."""

import json
import warnings
from functools import partial

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install '.[hf]')")
pytest.importorskip("accelerate", reason="accelerate is not installed (pip install '.[hf]')")

import diffq_fast  # noqa: E402
from diffq_fast import LSQ, DiffQuantizer, SizeTarget, UniformQuantizer  # noqa: E402
from diffq_fast.integrations.huggingface import DiffqFastCallback  # noqa: E402
from support.hugging_face import bert, made, output, tokens  # noqa: E402

SMALL = partial(DiffQuantizer, group_size=8, min_size=0.001, float16=True)
STEPS = 12


class Sentences(torch.utils.data.Dataset):
    """Sequences whose label is told by their first token."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = torch.randint(3, 120, (7,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": int(ids[0]) % 3}


def classifier():
    torch.manual_seed(0)
    config = bert()
    config.num_labels = 3
    return transformers.BertForSequenceClassification(config)


def trainer_of(folder, callback, model=None, optimizers=(None, None), **options):
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 4}
    settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 1}
    args = transformers.TrainingArguments(str(folder), **settings | options)
    model = classifier() if model is None else model
    callbacks = [] if callback is None else [callback]
    return transformers.Trainer(model, args, train_dataset=Sentences(), callbacks=callbacks, optimizers=optimizers)


def parameters(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def same(one, another):
    assert one.keys() == another.keys()
    return [name for name in one if not torch.equal(one[name], another[name])]


def test_a_training_reaches_its_size_and_leaves_a_packed_folder(tmp_path):
    callback = DiffqFastCallback(SMALL, bits_per_weight=5.0, csv="bits.csv")
    trainer = trainer_of(tmp_path, callback, max_steps=40)
    trainer.train()
    size, wanted = callback.quantizer.true_model_size(), callback.size_target.mb
    assert 0.95 * wanted < size <= wanted
    logged = [entry for entry in trainer.state.log_history if "size_mb" in entry]
    assert len(logged) == 10
    assert logged[0]["bits"] > logged[-1]["bits"]
    assert logged[-1]["size_mb"] == size
    assert len((tmp_path / "bits.csv").read_text().splitlines()) == 1 + 10

    inputs = {"input_ids": tokens()}
    expected = output(trainer.model, inputs)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    # what is not quantised is in half precision there, and in the evaluation too
    assert torch.equal(output(loaded, inputs), expected)
    trainer.save_model(tmp_path / "again")  # as users end their programs
    first, second = (diffq_fast.load(tmp_path / name / "model.safetensors") for name in ("packed", "again"))
    assert not same(first, second)


def test_it_trains_as_a_loop_of_ones_own_with_setup_optimizer(tmp_path):
    model, seen = classifier(), []
    model.register_forward_pre_hook(lambda *args: seen.append((args[2], torch.get_rng_state())), with_kwargs=True)
    callback = DiffqFastCallback(SMALL, penalty=3.0, bits_lr=0.05, save_to=None)
    options = {"lr_scheduler_type": "constant", "weight_decay": 0.1, "optim": "adamw_torch", "max_steps": 4}
    trainer = trainer_of(tmp_path, callback, model, max_grad_norm=0, **options)
    trainer.train()
    found = parameters(model)

    model = classifier()
    decayed = trainer.get_decay_parameter_names(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in decayed) == chosen], "weight_decay": 0.1 * chosen}
        for chosen in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    quantizer = SMALL(model)
    quantizer.setup_optimizer(optimizer, lr=0.05)
    model.train()
    assert len(seen) == 4
    for inputs, generator in seen:
        torch.set_rng_state(generator)
        optimizer.zero_grad()
        (model(**inputs).loss + 3.0 * quantizer.model_size()).backward()
        optimizer.step()
    expected = parameters(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_resumed_training_ends_where_the_whole_one_does(tmp_path):
    def callback():
        return DiffqFastCallback(SMALL, bits_per_weight=5.0)

    whole = trainer_of(tmp_path / "whole", callback())
    whole.train()
    for stop in (4, 8):  # before the bits are frozen, and after
        folder = tmp_path / f"stopped-{stop}"
        trainer_of(folder, callback(), save_strategy="steps", save_steps=stop).train()
        resumed = trainer_of(folder, callback())
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
        assert not same(parameters(whole.model), parameters(resumed.model)), stop
    first, second = (diffq_fast.load(path / "packed" / "model.safetensors") for path in (tmp_path / "whole", folder))
    assert not same(first, second)


def test_resuming_from_a_checkpoint_without_the_state_is_refused(tmp_path):
    trainer_of(tmp_path, None, save_strategy="steps", save_steps=4).train()
    trainer = trainer_of(tmp_path, DiffqFastCallback(SMALL, penalty=1.0))
    with pytest.raises((RuntimeError, ValueError), match=r"no diffq_fast_state.pt|parameter group"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_accumulated_gradients_have_the_price_once(tmp_path):
    prices = []

    class Watched(DiffqFastCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            logits = self.quantizer.learned_parameters()
            prices.append(sum(float(logit.grad.sum()) for logit in logits))

    class Still(transformers.Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return 0.0 * super().compute_loss(model, inputs, *args, **kwargs)

    expected = None
    for batches in (1, 4):
        model = classifier()
        callback = Watched(SMALL, penalty=1000.0, save_to=None)
        options = {"max_steps": 1, "gradient_accumulation_steps": batches, "max_grad_norm": 0, "report_to": "none"}
        args = transformers.TrainingArguments(
            str(tmp_path), per_device_train_batch_size=8, save_strategy="no", disable_tqdm=True, use_cpu=True, **options
        )
        Still(model, args, train_dataset=Sentences(), callbacks=[callback]).train()
        expected = prices[0] if expected is None else expected
    assert expected > 0
    assert prices[1] == pytest.approx(expected, rel=1e-4)


def test_an_optimizer_that_the_user_made_gets_a_group(tmp_path):
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    callback = DiffqFastCallback(SMALL, penalty=1.0, bits_lr=0.05, save_to=None)
    trainer_of(tmp_path, callback, model, (optimizer, None), max_steps=2).train()
    assert len(optimizer.param_groups) == 2
    assert optimizer.param_groups[1]["initial_lr"] == 0.05


def test_groups_that_the_user_made_stay(tmp_path):
    model = classifier()
    quantizer = SMALL(model)
    optimizer = torch.optim.AdamW(quantizer.parameter_groups(lr=1e-3, bits_lr=0.03))
    trainer_of(tmp_path, DiffqFastCallback(quantizer, save_to=None), model, (optimizer, None), max_steps=2).train()
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-3, 0.03]


@pytest.mark.parametrize("scheme", [partial(LSQ, min_size=0.001), partial(UniformQuantizer, min_size=0.001, qat=True)])
def test_quantizers_without_learned_bits_train_and_are_saved(scheme, tmp_path):
    trainer = trainer_of(tmp_path, DiffqFastCallback(scheme), max_steps=3)
    trainer.train()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    inputs = {"input_ids": tokens()}
    assert torch.equal(output(loaded, inputs), output(trainer.model, inputs))


def test_a_training_may_begin_with_a_packed_folder(tmp_path):
    for number in range(2):
        start = classifier()
        if number:
            start = type(start).from_pretrained(tmp_path / "0" / "packed")
        trainer = trainer_of(tmp_path / str(number), DiffqFastCallback(SMALL, penalty=1.0), start, max_steps=3)
        trainer.train()
        trainer_of(tmp_path, None, start)  # a Trainer takes it for what it is: a model that can be trained
    inputs = {"input_ids": tokens()}
    loaded = type(start).from_pretrained(tmp_path / "1" / "packed")
    assert torch.equal(output(loaded, inputs), output(start, inputs))


def test_a_size_of_a_quantizer_without_bits_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"needs a quantizer that learns bits .* got UniformQuantizer"):
        trainer_of(tmp_path, DiffqFastCallback(UniformQuantizer, mb=1.0))


def test_a_part_that_is_never_called_is_told(tmp_path):
    class Bypassing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, input_ids, labels=None):
            return self.inner.forward(input_ids=input_ids, labels=labels)

    model = Bypassing()
    callback = DiffqFastCallback(SMALL(model.inner), penalty=1.0, save_to=None)
    with pytest.raises(RuntimeError, match="has not called the BertForSequenceClassification that is quantised"):
        trainer_of(tmp_path, callback, model).train()


def test_a_penalty_beside_a_size_is_refused():
    with pytest.raises(ValueError, match="expected penalty, or a size"):
        DiffqFastCallback(penalty=1.0, mb=1.0)


def test_a_callback_is_for_one_model(tmp_path):
    callback = DiffqFastCallback(SMALL, penalty=1.0)
    trainer_of(tmp_path, callback)
    with pytest.raises(RuntimeError, match="is not the one that its quantizer is on"):
        trainer_of(tmp_path, callback)


def test_accelerate_prepares_model_and_groups_and_resumes(tmp_path):
    from accelerate import Accelerator

    def training(stop=None, start=None):
        accelerator = Accelerator(cpu=True)
        model = classifier()
        quantizer = SMALL(model)
        optimizer = torch.optim.AdamW(quantizer.parameter_groups(lr=1e-3, bits_lr=0.05))
        model, optimizer = accelerator.prepare(model, optimizer)
        target = SizeTarget(quantizer, bits_per_weight=6.0, total_steps=8)
        accelerator.register_for_checkpointing(target)
        torch.manual_seed(1)
        first = 0
        if start is not None:
            accelerator.load_state(str(start))
            first = 4
        model.train()
        for step in range(first, 8):
            batch = [Sentences()[8 * (step % 8) + place] for place in range(8)]
            inputs = torch.stack([each["input_ids"] for each in batch])
            labels = torch.tensor([each["labels"] for each in batch])
            optimizer.zero_grad()
            accelerator.backward(model(input_ids=inputs, labels=labels).loss + target.penalty())
            optimizer.step()
            target.step()
            if step == 3 and stop is not None:
                accelerator.save_state(str(stop))
        return parameters(model)

    whole = training(stop=tmp_path / "state")
    assert not same(whole, training(start=tmp_path / "state"))


def peft_training(folder, **options):
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install '.[hf]')")
    model, auto, inputs = made("llama")
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )

    class Text(Sentences):
        def __getitem__(self, index):
            ids = super().__getitem__(index)["input_ids"]
            return {"input_ids": ids, "labels": ids}

    quantizer = partial(SMALL, float16=False, exclude=["*lora_*"])  # PEFT keeps adapters in float32
    settings = {"max_steps": 8, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none"}
    settings |= {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 1}
    args = transformers.TrainingArguments(str(folder), **settings | options)
    callback = DiffqFastCallback(quantizer, bits_per_weight=7.0)
    trainer = transformers.Trainer(adapted, args, train_dataset=Text(), callbacks=[callback])
    return trainer, auto, inputs, peft


def test_adapters_train_on_a_base_that_is_quantised(tmp_path):
    trainer, auto, inputs, peft = peft_training(tmp_path)
    trainer.train()
    expected = output(trainer.model, inputs)
    base = auto.from_pretrained(tmp_path / "packed")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "packed" / "adapter")
    torch.testing.assert_close(output(model, inputs), expected, rtol=1e-5, atol=1e-6)
    names = diffq_fast.load(tmp_path / "packed" / "model.safetensors")
    assert not [name for name in names if "lora_" in name or "base_layer" in name]


def test_a_training_of_adapters_resumes_though_their_checkpoints_have_no_bits(tmp_path):
    whole = peft_training(tmp_path / "whole")[0]
    whole.train()
    peft_training(tmp_path / "stopped", save_strategy="steps", save_steps=4)[0].train()
    resumed = peft_training(tmp_path / "stopped")[0]
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    assert not same(parameters(whole.model), parameters(resumed.model))


def test_adapters_train_on_a_folder_that_stays_packed(tmp_path):
    from diffq_fast.integrations.huggingface import DiffqFastConfig, pack_on_save

    peft = pytest.importorskip("peft", reason="peft is not installed (pip install '.[hf]')")
    model, auto, inputs = made("llama")
    pack_on_save(SMALL(model))
    model.save_pretrained(tmp_path)
    packed = auto.from_pretrained(tmp_path, quantization_config=DiffqFastConfig(packed=True))
    adapted = peft.get_peft_model(packed, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    before = output(adapted, inputs)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    assert not torch.allclose(output(adapted, inputs), before)
    adapted.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2
    with pytest.raises(AttributeError, match="load the model without packed=True to change it, or to merge adapters"):
        adapted.merge_and_unload()


def test_a_plain_module_in_trainer_is_written_as_a_packed_file(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(7, 64)
            self.head = nn.Linear(64, 3)

        def forward(self, input_ids, labels=None):
            scores = self.head(self.layer(input_ids.float() / 100).relu())
            return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_of(
            tmp_path, DiffqFastCallback(partial(DiffQuantizer, min_size=0), penalty=1.0), Net(), max_steps=3
        ).train()
    assert diffq_fast.load(tmp_path / "packed" / "model.safetensors").keys() == Net().state_dict().keys()
