"""transformers: packed folders for ``from_pretrained`` and ``save_pretrained``, and a callback for ``Trainer``.

Importing this module registers the method ``"diffq_fast"`` with transformers; nothing else has to be called, and no
code comes from a model's folder. ``docs/integrations.md`` has examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..packed.save_load import save
from ..quantizers.base import BaseQuantizer
from ..watch.bits_log import BitsLog
from .training import Goal, MakesQuantizer, QuantizedTraining, diffq

try:
    from transformers import TrainerCallback, TrainingArguments

    from .huggingface_folder import write_adapted_base
    from .huggingface_loading import DiffqFastConfig, DiffqFastHfQuantizer, outermost, pack_on_save, save_float
except ImportError as error:
    raise ImportError(
        f"diffq_fast.integrations.huggingface needs transformers 5.24 or newer: pip install 'diffq_fast[hf]' ({error})"
    ) from error

__all__ = ["DiffqFastCallback", "DiffqFastConfig", "DiffqFastHfQuantizer", "pack_on_save", "save_float"]

STATE = "diffq_fast_state.pt"  # in a checkpoint's folder


class DiffqFastCallback(TrainerCallback):
    """Trains the model of a transformers ``Trainer`` with a quantizer, to a size, and writes it packed at the end.

    ``Trainer(model, args, callbacks=[DiffqFastCallback(mb=2.0)], ...)``. The quantizer is attached when the Trainer is
    made; what it learns has its own learning rate in the Trainer's optimizer, under the Trainer's schedule. The price
    of the size is added to the gradients and not to the loss, so the loss in logs is the task's. Checkpoints are
    those of the Trainer, and trainings resume from them.

    Args:
        quantizer: makes a quantizer for the model, such as ``partial(DiffQuantizer, group_size=64)``; or one that is on
            the model already.
        penalty: loss per MB, or
        mb, bits_per_weight: the size to reach, see :class:`diffq_fast.SizeTarget`.
        bits_lr: learning rate of what is learned; None: 0.02 where that is bits, else the Trainer's.
        size_target: further arguments of the SizeTarget.
        save_to: folder of the packed model inside of ``output_dir``, written at the end; None: none.
        config: of the packed folder.
        csv: file inside of ``output_dir`` for the bits of each weight, a row whenever the Trainer logs; None: none.

    Attributes:
        quantizer: the one that trains; there once the Trainer is made.
        size_target: the SizeTarget, once the training has begun, if a size is asked for.

    Raises:
        ValueError: both a penalty and a size are asked for.
    """

    def __init__(
        self,
        quantizer: MakesQuantizer | BaseQuantizer = diffq,
        *,
        penalty: float | None = None,
        mb: float | None = None,
        bits_per_weight: float | None = None,
        bits_lr: float | None = None,
        size_target: Mapping[str, Any] | None = None,
        save_to: str | None = "packed",
        config: DiffqFastConfig | None = None,
        csv: str | None = None,
    ) -> None:
        goal = Goal(quantizer, penalty, mb, bits_per_weight, bits_lr, dict(size_target or {}))
        self._training = QuantizedTraining(type(self).__name__, goal)
        self._save_to, self._config, self._csv = save_to, config, csv
        self._log: BitsLog | None = None

    @property
    def quantizer(self) -> BaseQuantizer:
        return self._training.quantizer

    @property
    def size_target(self) -> Any:
        return self._training.target

    # -- Trainer's events ----------------------------------------------------------------------------------------------

    def on_init_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise ValueError(
                "DiffqFastCallback: deepspeed and fsdp of TrainingArguments shard the weights that the quantizer looks "
                "at; train on one device or with DDP"
            )
        self._training.attach(_quantised_part(kwargs["model"]))
        if kwargs.get("optimizer") is not None:  # the user's; the scheduler will be made of all its groups
            self._training.take_groups([_unwrapped(kwargs["optimizer"])])

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.attach(_quantised_part(kwargs["model"]))
        save_float(self.quantizer)
        self._training.begin([_unwrapped(kwargs["optimizer"])], state.max_steps)
        if state.global_step:
            self._training.load_state_dict(self._stored(args, state.global_step))
        if self._csv is not None and args.should_save:
            self._log = BitsLog(self.quantizer, csv=Path(args.output_dir, self._csv))

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        if scaler is None:
            self._training.add_price()
        else:
            self._training.add_price(scaler.scale)

    def on_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.check_called("make a quantizer of the part that is called, and give it to the callback")
        self._training.step()

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs.get("logs")
        if logs is None or "loss" not in logs:  # of an evaluation, or the summary of the training
            return
        sizes = self._training.sizes()
        logs |= sizes
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1] |= sizes
        if self._log is not None:
            self._log.step(state.global_step, loss=logs["loss"])

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        folder = _checkpoint(args, state.global_step)
        if args.should_save and folder.is_dir():
            torch.save(self._training.state_dict(), folder / STATE)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.end()
        model, processing = kwargs["model"], kwargs.get("processing_class")
        adapted = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
        if not adapted:
            self._pack_on_save()
        if self._save_to is None or not args.should_save:
            return
        folder = Path(args.output_dir, self._save_to)
        if adapted:
            write_adapted_base(
                self.quantizer, model, folder, DiffqFastConfig() if self._config is None else self._config
            )
        else:
            _save(model, folder, self.quantizer)
        if processing is not None:
            processing.save_pretrained(folder)

    def _pack_on_save(self) -> None:
        if any(True for _ in outermost(self.quantizer.model)):
            pack_on_save(self.quantizer, self._config)

    def _stored(self, args: TrainingArguments, step: int) -> Any:
        """What :meth:`on_save` wrote at a step, in the folder that is resumed from."""
        given = args.resume_from_checkpoint
        folders = [Path(given)] if isinstance(given, str) else []
        folders.append(_checkpoint(args, step))
        for folder in folders:
            if (folder / STATE).is_file():
                return torch.load(folder / STATE, map_location="cpu", weights_only=True)
        raise RuntimeError(
            f"DiffqFastCallback: the training goes on from step {step}, but there is no {STATE} in "
            f"{' or '.join(map(str, folders))}; give TrainingArguments(resume_from_checkpoint=...) the folder of the "
            "checkpoint, made with this callback"
        )


def _quantised_part(model: nn.Module) -> nn.Module:
    """The model; of a Sequential, whose parts may be called alone as a SentenceTransformer's are, the one part with a
    transformers model. That part and not its model, whose ``forward`` it calls by itself."""
    if isinstance(model, nn.Sequential):
        parts = [part for part in model.children() if any(True for _ in outermost(part))]
        if len(parts) == 1:
            return parts[0]
    return model


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside of accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _checkpoint(args: TrainingArguments, step: int) -> Path:
    return Path(args.output_dir, f"checkpoint-{step}")


def _save(model: nn.Module, folder: Path, quantizer: BaseQuantizer) -> None:
    """The model as it saves itself, packed; one that does not is written as a packed file alone."""
    own: Any = getattr(model, "save_pretrained", None)
    if own is not None:
        own(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    save(quantizer, folder / "model.safetensors")
