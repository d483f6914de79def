"""Which parameters of a model are quantised, which are tied, and where each one is read from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from .input_quantizer import InputQuantizer
from .shards import is_gathered, is_managed, replaced, trained

BYTES_PER_MB = 2**20
SMALL = 4096  # elements of a small weight


@dataclass(eq=False)
class Slot:
    """A place that holds a parameter: attribute ``name`` of ``module``. Read through ``_parameters`` each time, since
    moving or functionally replacing a model exchanges the tensors there.

    ``fully_shard`` does so in each forward: ``sharded`` is the DTensor that was there before, which is trained.
    """

    module: nn.Module
    name: str
    full_name: str
    rnn_index: int | None = field(default=None)
    sharded: Any = field(default=None, init=False, repr=False)

    @property
    def param(self) -> nn.Parameter:
        """The parameter as it is now; of a sharded one what is trained, also while it is whole."""
        param = self.module._parameters.get(self.name)
        if param.__class__ is not nn.Parameter:
            self.sharded = trained(self.sharded, param)
        if self.sharded is not None:
            return self.sharded
        if param is None:
            raise RuntimeError(
                f"quantizer: the parameter {self.full_name} is gone from its module; detach and attach anew: "
                "parametrise, prune or replace weights first, then attach the quantizer"
            )
        return param

    @property
    def is_shadowed(self) -> bool:
        """Whether a tensor stands in the parameter's place."""
        return self.name in self.module.__dict__

    @property
    def is_whole(self) -> bool:
        """Whether a forward can read all of the parameter: ``fully_shard`` gathers it when its module is called."""
        if self.sharded is None or not is_managed(self.module):
            return True
        return is_gathered(self.module._parameters[self.name], self.sharded)

    @property
    def visible(self) -> torch.Tensor:
        """All of the parameter as a forward reads it, differentiable."""
        if self.sharded is None:
            return self.param
        found = self.module._parameters[self.name]
        return replaced(found if found is not None and is_gathered(found, self.sharded) else self.sharded)


@dataclass(eq=False)
class QuantizedParameter(Slot):
    """A quantised weight. ``tied_to`` is the entry of the same tensor that was met before, else None."""

    tied_to: QuantizedParameter | None = None
    learned_name: str | None = None
    detached: nn.Parameter | None = None
    ends_name: str | None = None
    detached_ends: nn.Parameter | None = None
    sharded_logit: Any = field(default=None, init=False, repr=False)

    @property
    def original(self) -> QuantizedParameter:
        """The entry that owns the width and the noise: itself, or the one it is tied to."""
        return self.tied_to or self

    @property
    def logit(self) -> nn.Parameter:
        """The learned scalar of each group (for LSQ: the scale), a parameter of the owning module."""
        owner = self.tied_to or self
        found = owner.module._parameters.get(cast(str, owner.learned_name), owner.detached)
        if found.__class__ is not nn.Parameter:
            owner.sharded_logit = trained(owner.sharded_logit, found)
        return cast(nn.Parameter, found if owner.sharded_logit is None else owner.sharded_logit)

    @property
    def ends(self) -> nn.Parameter:
        """The learned ends of its ranges, a parameter of the owning module."""
        owner = self.tied_to or self
        return cast(nn.Parameter, owner.module._parameters.get(cast(str, owner.ends_name), owner.detached_ends))

    @property
    def params(self) -> list[nn.Parameter]:
        """The parameter, and what is learned for it, if anything is."""
        owner = self.tied_to or self
        params = [self.param] if owner.learned_name is None else [self.param, self.logit]
        return params if owner.ends_name is None else [*params, self.ends]

    # -- what diffq calls them ---------------------------------------------------------------------------------------

    @property
    def other(self) -> QuantizedParameter | None:
        """``tied_to``."""
        return self.tied_to

    @property
    def scale(self) -> nn.Parameter:
        """What LSQ learns."""
        return self.logit


def in_half_precision(param: torch.Tensor) -> torch.Tensor:
    """What an export in half precision leaves of a parameter; only real floating ones are rounded."""
    return param.half().to(param.dtype) if param.is_floating_point() else param.detach()


def untied(entries: Iterable[QuantizedParameter]) -> list[QuantizedParameter]:
    """The entries that own the widths of ``entries``, each once, in order."""
    return list({entry.tied_to or entry: None for entry in entries})


def small_families(
    entries: Iterable[QuantizedParameter], alike: Callable[[QuantizedParameter], Hashable] = lambda entry: None
) -> list[list[QuantizedParameter]]:
    """Small weights of as many elements, one device and one dtype, and of one value of ``alike``, together; each larger
    one by itself."""
    found: dict[Hashable, list[QuantizedParameter]] = {}
    for entry in entries:
        param = entry.param
        kind: Hashable = (param.numel(), param.device, param.dtype, alike(entry))
        found.setdefault(entry if param.numel() > SMALL else kind, []).append(entry)
    return list(found.values())


def params_of(slots: Iterable[Slot]) -> list[nn.Parameter]:
    """The parameters in these places, as they are now."""
    return [slot.param for slot in slots]


def learned_of(entries: Iterable[QuantizedParameter]) -> list[nn.Parameter]:
    """What is learned for these weights, if anything is: all logits, then all ends of ranges."""
    entries = list(entries)
    logits = [entry.logit for entry in entries if entry.original.learned_name is not None]
    return logits + [entry.ends for entry in entries if entry.original.ends_name is not None]


@dataclass
class Selection:
    """What :func:`select` found, in the order of ``named_modules()`` and then of each module's own parameters.

    ``quantised`` has tied places of a weight too, ``originals`` each weight once. ``rest`` names each unquantised
    tensor once; ``rest_ties`` are the other places of one, each with the place in ``rest``. ``aliases`` are excluded
    places of tensors that are quantised at another place.
    """

    quantised: list[QuantizedParameter]
    rest: list[Slot]
    rest_ties: list[tuple[Slot, Slot]]
    aliases: list[tuple[Slot, QuantizedParameter]]

    def __post_init__(self) -> None:
        self.mesh: Any = None  # of the processes over which the weights are sharded
        self.originals = [entry for entry in self.quantised if entry.tied_to is None]

    def ties(self) -> list[tuple[Slot, Slot]]:
        """Places that show the tensor of another place, with that one; those of quantised entries left out."""
        return [*self.rest_ties, *self.aliases]


def select(
    model: nn.Module, min_size: float, exclude: Sequence[str], detect_bound: bool, who: str = "quantizer"
) -> Selection:
    """Choose the parameters to quantise: floating, larger than ``min_size`` MB of float32, not excluded.

    Args:
        model: the module whose parameters are walked.
        min_size: in MB (2**20 bytes), counted at 4 bytes per element.
        exclude: fnmatch patterns against a parameter's name and its full name ``"<module name>.<name>"``.
        detect_bound: see a tensor that is met again as tied to the place where it was met before.

    Raises:
        ValueError: for a lazy parameter that has no shape yet.
    """
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    quantised: list[QuantizedParameter] = []
    rest: list[Slot] = []
    rest_ties: list[tuple[Slot, Slot]] = []
    excluded: list[Slot] = []
    seen: dict[int, Slot] = {}
    for slot, pattern_name in _walk(model):
        param = slot.param
        if isinstance(param, UninitializedParameter):
            raise ValueError(
                f"{who}: parameter {slot.full_name} is lazy and has no shape yet; run one forward, then attach"
            )
        if _is_excluded(slot, pattern_name, exclude) or not _is_large(param, min_size):
            excluded.append(slot)
            met = seen.setdefault(id(param), slot)
            if met is slot:
                rest.append(slot)
            elif not isinstance(met, QuantizedParameter):
                rest_ties.append((slot, met))
            continue
        met = seen.get(id(param), slot)
        tied_to = met if detect_bound and isinstance(met, QuantizedParameter) else None
        entry = QuantizedParameter(slot.module, slot.name, slot.full_name, slot.rnn_index, tied_to=tied_to)
        quantised.append(entry)
        seen[id(param)] = tied_to or entry
    owners = {id(entry.param): entry.original for entry in quantised}
    aliases = [(slot, owners[id(slot.param)]) for slot in excluded if id(slot.param) in owners]
    shared = {slot for slot, _ in aliases}
    return Selection(quantised, rest, [tie for tie in rest_ties if tie[0] not in shared], aliases)


def _walk(model: nn.Module) -> Iterator[tuple[Slot, str]]:
    for module_name, module in model.named_modules():
        if isinstance(module, InputQuantizer):
            continue  # its bits are no weights
        flat_names = getattr(module, "_flat_weights_names", ()) if isinstance(module, nn.RNNBase) else ()
        for name, param in module._parameters.items():
            if param is None:
                continue
            full_name = f"{module_name}.{name}" if module_name else name
            rnn_index = flat_names.index(name) if name in flat_names else None
            yield Slot(module, name, full_name, rnn_index), f"{module_name}.{name}"


def _is_excluded(slot: Slot, pattern_name: str, exclude: Sequence[str]) -> bool:
    return any(fnmatch(slot.name, pattern) or fnmatch(pattern_name, pattern) for pattern in exclude)


def _is_large(param: torch.Tensor, min_size: float) -> bool:
    return param.is_floating_point() and param.numel() > min_size * BYTES_PER_MB / 4
