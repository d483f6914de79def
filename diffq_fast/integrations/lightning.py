"""Lightning: a callback that trains with a quantizer, to a size, and writes a packed file at the end.

``docs/integrations.md`` has an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..packed.save_load import save
from ..quantizers.base import BaseQuantizer
from ..watch.bits_log import BitsLog
from .training import Goal, MakesQuantizer, QuantizedTraining, diffq

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    try:  # the same code under its older name
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError:
        needs = "diffq_fast.integrations.lightning needs Lightning: pip install 'diffq_fast[lightning]'"
        raise ImportError(f"{needs} ({error})") from error

__all__ = ["DiffqFastCallback"]


class DiffqFastCallback(Callback):
    """Trains a LightningModule, or a part of it, with a quantizer; see ``integrations.huggingface`` for Trainer's.

    ``Trainer(callbacks=[DiffqFastCallback(mb=2.0)])``. The quantizer is attached before ``configure_optimizers``, so
    that what it learns is among ``self.parameters()``; it has its own learning rate in the optimizer that holds it. The
    price of the size is added to the gradients and not to the loss. Checkpoints are Lightning's, and trainings resume
    from them. Precisions, accumulation and clipping are the Trainer's.

    Args:
        quantizer: makes a quantizer for the module, such as ``partial(DiffQuantizer, group_size=64)``; or one that is
            on it already.
        module: name of the part that is quantised (``"model"``, ``"net.encoder"``): the one that ``training_step``
            calls. None: the LightningModule itself if it has a ``forward``, else the only part with parameters.
        penalty: loss per MB, or
        mb, bits_per_weight: the size to reach, see :class:`diffq_fast.SizeTarget`.
        bits_lr: learning rate of what is learned; None: 0.02 where that is bits, else the optimizer's own.
        size_target: further arguments of the SizeTarget.
        total_steps: of the optimizer; None: what the Trainer estimates.
        save_to: packed file inside of ``default_root_dir``, written at the end; None: none.
        csv: file inside of ``default_root_dir`` for the bits of each weight; None: none.

    Attributes:
        quantizer: the one that trains; there once the training is set up.
        size_target: the SizeTarget, once the training has begun, if a size is asked for.

    Raises:
        ValueError: both a penalty and a size are asked for.
    """

    def __init__(
        self,
        quantizer: MakesQuantizer | BaseQuantizer = diffq,
        *,
        module: str | None = None,
        penalty: float | None = None,
        mb: float | None = None,
        bits_per_weight: float | None = None,
        bits_lr: float | None = None,
        size_target: Mapping[str, Any] | None = None,
        total_steps: int | None = None,
        save_to: str | None = "model.safetensors",
        csv: str | None = None,
    ) -> None:
        goal = Goal(quantizer, penalty, mb, bits_per_weight, bits_lr, dict(size_target or {}))
        self._training = QuantizedTraining(type(self).__name__, goal)
        self._module, self._total_steps = module, total_steps
        self._save_to, self._csv = save_to, csv
        self._log: BitsLog | None = None
        self._restored: Mapping[str, Any] | None = None
        self._steps = 0

    @property
    def quantizer(self) -> BaseQuantizer:
        return self._training.quantizer

    @property
    def size_target(self) -> Any:
        return self._training.target

    def _takes_part(self, trainer: Trainer) -> bool:
        """Whether sizes and files need this process: each one, where each holds parts of the weights."""
        return trainer.is_global_zero or self.quantizer.selection.mesh is not None

    # -- Lightning's hooks ---------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._training.attach(_part(pl_module, self._module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches if self._total_steps is None else self._total_steps
        if self._training.goal.has_target and steps == float("inf"):
            raise ValueError(
                "DiffqFastCallback: a size needs the number of steps, and the Trainer knows of no end; give it "
                "max_steps or max_epochs, or give total_steps"
            )
        self._training.begin(trainer.optimizers, 1 if steps == float("inf") else int(steps))
        if self._restored is not None:
            self._training.load_state_dict(self._restored)
            self._restored = None
        self._steps = trainer.global_step
        if self._csv is not None:
            into = {"csv": _place(trainer, self._csv)} if trainer.is_global_zero else {"tensorboard": _Nowhere()}
            self._log = BitsLog(self.quantizer, **into)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._training.check_called("give module= the name of the part that training_step calls")
        scaler, batches = getattr(trainer.precision_plugin, "scaler", None), trainer.accumulate_grad_batches
        self._training.add_price(lambda price: (price if scaler is None else scaler.scale(price)) / batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if trainer.global_step == self._steps:  # gradients are still summed up
            return
        self._steps = trainer.global_step
        self._training.step()
        if self._steps % trainer.log_every_n_steps == 0:
            pl_module.log_dict(self._training.sizes())
            if self._log is not None and self._takes_part(trainer):
                self._log.step(self._steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training.end()
        if self._save_to is not None and self._takes_part(trainer):
            save(self.quantizer, _place(trainer, self._save_to))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training.repair()

    def state_dict(self) -> dict[str, Any]:
        return self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


class _Nowhere:
    """What processes log to that take part in a log and do not write it."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        pass


def _place(trainer: Trainer, name: str) -> Path:
    """Of a file inside of ``default_root_dir``, in a folder that is there."""
    path = Path(trainer.default_root_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _part(pl_module: LightningModule, name: str | None) -> nn.Module:
    """The module that is quantised."""
    if name is not None:
        try:
            return pl_module.get_submodule(name)
        except AttributeError:
            parts = ", ".join(each for each, _ in pl_module.named_children())
            raise ValueError(
                f"DiffqFastCallback: module must be a part of the {type(pl_module).__name__}, got {name!r}; it has "
                f"{parts or 'none'}"
            ) from None
    if type(pl_module).forward is not LightningModule.forward:
        return pl_module
    trained = {each: part for each, part in pl_module.named_children() if any(True for _ in part.parameters())}
    if len(trained) != 1:
        raise ValueError(
            f"DiffqFastCallback: {type(pl_module).__name__} has no forward, and {len(trained)} parts with parameters "
            f"({', '.join(trained)}); give module= the name of the one that training_step calls"
        )
    return next(iter(trained.values()))
