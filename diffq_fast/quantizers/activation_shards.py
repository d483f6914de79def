"""Rounded inputs of a sharded model: ranges that all processes have alike, and bits that are learned by all of them."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from .gathering import gathered
from .input_quantizer import InputQuantizer
from .shards import (
    groups_of,
    is_managed,
    is_sharded,
    is_split_by_parallelism,
    largest_of,
    replicated,
    running_data_parallel,
)

WHO = "ActivationQuantizer"


class InputShards:
    """What the processes that train one model tell each other about its inputs.

    Args:
        model: the root.
        inputs: on its layers, by name.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, InputQuantizer]) -> None:
        self._model, self._inputs = model, inputs
        self.mesh: Any = None  # of the processes over which the model is sharded
        self.given: list[nn.Parameter] = []  # to an optimizer

    def look(self) -> None:
        """Note how the model is sharded. All of it must be in shards.

        Raises:
            RuntimeError: it is sharded in a way that is not supported, with the name, and what to do.
        """
        self.mesh = None
        held = None
        for name, module in self._model.named_modules():
            held = name if held is None and is_managed(module) and module._parameters else held
            for own, param in module._parameters.items():
                if param is not None and not isinstance(module, InputQuantizer) and is_sharded(param):
                    self._note(f"{name}.{own}".removeprefix("."), module, param)
        if held is not None and self.mesh is None:
            raise _unsupported(
                f"{held or 'the model'} is held by fully_shard, but stands there whole: a forward has gathered it; "
                "attach to the outermost FSDP module, after reshard() on each"
            )
        learned = self.learned()  # reading one notes it
        if self.given and any(map(is_not, self.given, learned)):
            raise _unsupported(
                "the model was sharded after setup_optimizer, and the optimizer still holds the learned bits from "
                "before; make it after fully_shard, and call setup_optimizer then"
            )

    def _note(self, name: str, module: nn.Module, param: Any) -> None:
        if is_split_by_parallelism(module, param):
            raise _unsupported(
                f"{name} is split by tensor parallelism, where inputs cannot be quantised: processes that share one "
                "input would see it with noise of their own; use fully_shard alone, over one or two dimensions"
            )
        if self.mesh is not None and self.mesh != param.device_mesh:
            raise _unsupported(f"{name} is sharded over another mesh than parameters before it; give all one mesh")
        self.mesh = param.device_mesh

    def refuse_plain(self) -> None:
        """RuntimeError where learned bits stand beside a sharded model as they were: nobody would average them."""
        for name, each in self._inputs.items():
            if self.mesh is not None and each.trained_logit is not None and not is_sharded(each.trained_logit):
                raise _unsupported(
                    f"the learned bits of {name} are not sharded, while the model is: call fully_shard on the "
                    "outermost module too, and do not give them to ignored_params"
                )

    def place(self) -> None:
        """Keep bits that are learned from here on on every process of the mesh."""
        for each in self._inputs.values():
            if self.mesh is not None and each.logit is not None:
                each.logit = nn.Parameter(replicated(each.logit.detach(), self.mesh))

    def logits(self) -> list[Tensor]:
        """Learned bits of a sharded model, whole and differentiable, for one forward: their gradient is the mean over
        the processes. None where the model is not sharded, or learns no bits."""
        return [] if self.mesh is None else gathered(self.learned(), averaged=True)

    def learned(self) -> list[nn.Parameter]:
        """The logits that are trained."""
        found = [each.trained_logit for each in self._inputs.values()]
        return [each for each in found if each is not None]

    def groups(self, by_layers: bool = False) -> list[Any]:
        """The process groups that are in this forward together: none where this process is by itself, and where
        gradients of DistributedDataParallel stay apart (``no_sync``, ``join``).

        Args:
            by_layers: none either where each process may call layers that others do not call.
        """
        if self.mesh is not None:
            return groups_of(self.mesh)
        parallel = running_data_parallel()
        if parallel is None or not parallel.require_backward_grad_sync:
            return []
        joining = getattr(getattr(parallel, "_join_config", None), "enable", False)
        return [] if joining or (by_layers and parallel.find_unused_parameters) else [parallel.process_group]

    def agree(self) -> None:
        """Have all processes go on with the largest range of each input that any of them has."""
        groups = self.groups()
        if not groups:
            return
        by_device: dict[torch.device, list[Tensor]] = {}
        for each in self._inputs.values():
            by_device.setdefault(each.range.device, []).append(each.range)
        with torch.no_grad():
            for ranges in by_device.values():
                found = largest_of(torch.stack(ranges), groups)
                torch._foreach_copy_(ranges, list(found.unbind()))


def _unsupported(what: str) -> RuntimeError:
    return RuntimeError(f"{WHO}: {what} (docs/activations.md)")
