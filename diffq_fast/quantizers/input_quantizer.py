"""What rounds the input of one layer: a module of the layer, which holds the range and the bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .. import functional
from ..reference.activations import activation_step, clipped, round_activation
from ..reference.bits import bits_from_logits, initial_logit, whole_bits
from .replay import inside_backward
from .shards import is_sharded, largest_of, trained, whole, write
from .stored_input import StoredInput

NAME = "input_quantizer"  # of the attribute of a layer


class Shown(NamedTuple):
    """What a training forward shows the input of one layer: the key of its noise, and the range, both 0-dim; and, where
    learned bits are sharded, the whole logit. ``groups``: of the processes that agree where no range is known yet."""

    key: Tensor
    range: Tensor
    logit: Tensor | None = None
    groups: Sequence[Any] = ()


class Replays(Protocol):
    """Knows which forward a checkpoint computes again."""

    def shown_again(self, index: int) -> Shown | None:
        """What input ``index`` saw; None: not known, what is shown now is right."""


class InputQuantizer(nn.Module):
    """Rounds what a layer is given, or, in training, adds the noise of rounding to it. Not made by hand.

    Attributes:
        range: float32, 0-dim buffer: the running mean of each batch's largest magnitude; 0 until one was seen.
        logit: float32 ``[1]`` of learned bits, or None.

    Args:
        bits: whole number, 2 … 15; of learned bits those at the start.
        limits: between which bits are learned; None: they are fixed.
        noise: "uniform", or None: round in training too.
        device: of the layer.
    """

    range: Tensor
    logit: nn.Parameter | None
    sharded_logit: Any = None  # as ``fully_shard`` keeps it between forwards

    def __init__(
        self, bits: int, limits: tuple[float, float] | None, noise: str | None, device: torch.device | str
    ) -> None:
        super().__init__()
        self.fixed_bits, self.limits, self.noise = bits, limits, noise
        self.register_buffer("range", torch.zeros((), dtype=torch.float32, device=device))
        logit = None
        if limits is not None:
            logit = nn.Parameter(initial_logit(bits, *limits).reshape(1).to(device))
        self.register_parameter("logit", logit)
        self.shown: Shown | None = None
        self.seen: Tensor | None = None  # the largest magnitude in the forward that runs
        self.place: tuple[Replays, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as the layer is to see it; of its shape and dtype."""
        if not x.is_floating_point() or not x.numel():
            return x
        if is_sharded(x) or is_sharded(self.range):
            raise of_parallelism()
        if not self.training:
            return self.rounded(x, self.range, self.bits(exact=True))
        shown, again = self.shown, False
        if not torch.compiler.is_compiling() and inside_backward() and self.place is not None:
            replays, index = self.place
            shown, again = replays.shown_again(index) or shown, True
        return x if shown is None else self._trained(x, shown, again)

    def _trained(self, x: Tensor, shown: Shown, again: bool) -> Tensor:
        with torch.no_grad():
            largest = x.detach().abs().amax().to(torch.float32)
            largest = largest_of(torch.where(largest.isfinite(), largest, shown.range), shown.groups)
            if not again:
                self.seen = largest if self.seen is None else torch.maximum(self.seen, largest)
            range = torch.where(shown.range > 0, shown.range, largest)
        if self.noise is None:
            return self.rounded(x, range, self._whole_bits_learned(shown.logit))
        within = clipped(x, range)
        step = activation_step(range, self.bits(logit=shown.logit)).reshape(1)
        return functional.add_uniform_noise([within], [step], shown.key, group_sizes=[0], dtype=x.dtype)[0]

    def rounded(self, x: Tensor, range: Tensor, bits: Tensor | float) -> Tensor:
        """``x`` at its levels; as it is where no range is known yet."""
        return torch.where(range > 0, round_activation(x, range, bits), x)

    @property
    def trained_logit(self) -> nn.Parameter | None:
        """The logit that is trained: under ``fully_shard`` a DTensor, also while a forward has gathered it."""
        found = self.logit
        if found.__class__ is not nn.Parameter:
            self.__dict__["sharded_logit"] = trained(self.sharded_logit, found)
        return found if self.sharded_logit is None else self.sharded_logit

    def bits(self, exact: bool = False, logit: Tensor | None = None) -> Tensor | float:
        """A number, or, of learned bits, float32 ``[1]``.

        Args:
            exact: whole ones, those of eval and export.
            logit: the whole one, where the model is sharded and they are not ``exact``.
        """
        learned = self.trained_logit
        if learned is None or self.limits is None:
            return float(self.fixed_bits)
        if not exact:
            return bits_from_logits(learned if logit is None else logit, *self.limits)
        with torch.no_grad():
            return whole_bits(bits_from_logits(whole(learned), *self.limits)).to(torch.float32)

    def _whole_bits_learned(self, logit: Tensor | None) -> Tensor | float:
        """Whole bits, with the gradient of the learned ones."""
        bits = self.bits(logit=logit)
        if not isinstance(bits, Tensor):
            return bits
        return whole_bits(bits.detach()).to(torch.float32) + (bits - bits.detach())

    # -- files ---------------------------------------------------------------------------------------------------------

    def stored(self, learned: bool) -> StoredInput | None:
        """What a file keeps; None where no range is known. Reads values on the host."""
        range = float(self.range)
        if not range > 0:
            return None
        own = self.trained_logit
        logit = float(whole(own)) if learned and own is not None else None
        return StoredInput(int(self.bits(exact=True)), range, logit)

    def problem(self, stored: StoredInput) -> str | None:
        """Why these bits cannot be taken over, or None."""
        if self.limits is None:
            return None if stored.bits == self.fixed_bits else f"has {stored.bits} bits, here are {self.fixed_bits}"
        if self.logit_for(stored) is not None:
            return None
        low, high = self.limits
        return f"has {stored.bits} bits, which are not learned between {low:g} and {high:g}"

    def logit_for(self, stored: StoredInput) -> Tensor | None:
        """The logit that gives the bits, float32 ``[1]``: the file's own, where that does; None where none does."""
        low, high = self.limits or (0.0, 0.0)
        candidates = [] if stored.logit is None else [torch.tensor(stored.logit, dtype=torch.float32, device="cpu")]
        for bits in (stored.bits, stored.bits + 0.25, stored.bits - 0.25):
            candidates += [initial_logit(bits, low, high)] if low < bits < high else []
        for logit in candidates:
            if int(whole_bits(bits_from_logits(logit, low, high))) == stored.bits:
                return logit.reshape(1)
        return None

    @torch.no_grad()
    def take(self, stored: StoredInput) -> None:
        """Take over what a file keeps; :meth:`problem` was None."""
        self.range.fill_(stored.range)
        own = self.trained_logit
        logit = None if own is None else self.logit_for(stored)
        if own is not None and logit is not None:
            write(own, logit)

    # -- what torch asks of a module -----------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InputQuantizer:
        """Move, but do not cast: range and logit stay float32 under ``.half()``."""

        def keeping(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.detach().to(moved.device)

        return super()._apply(keeping, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "shown": None, "seen": None}

    def extra_repr(self) -> str:
        learned = "" if self.limits is None else f", learned between {self.limits[0]:g} and {self.limits[1]:g}"
        return f"bits={self.fixed_bits}{learned}, noise={self.noise!r}"


def of_parallelism() -> RuntimeError:
    """The error of an input or a range that tensor parallelism has made a DTensor."""
    return RuntimeError(
        "ActivationQuantizer: the input of a layer, or its range, is a DTensor of tensor parallelism, which is not "
        "supported; use fully_shard alone (docs/activations.md)"
    )


def quantize_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The pre-hook of a layer; torch's own have one input, the first argument."""
    quantizer = module._modules[NAME]
    if quantizer is not None and args:
        return (quantizer(args[0]), *args[1:]), kwargs
    if quantizer is not None and "input" in kwargs:
        return args, {**kwargs, "input": quantizer(kwargs["input"])}
    return args, kwargs


def input_quantizers(model: nn.Module) -> Iterator[tuple[str, InputQuantizer]]:
    """Those on the layers of ``model``, by the layer's name, each once."""
    for name, module in model.named_modules():
        if isinstance(module, InputQuantizer):
            yield name.removesuffix(NAME).removesuffix("."), module


def without_inputs(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The model's state_dict ``state`` after what these modules hold was taken out of it."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, InputQuantizer):
            for name in module.state_dict():
                state.pop(f"{prefix}.{name}", None)
    return state


def export_inputs(model: nn.Module, learned: bool) -> dict[str, StoredInput]:
    """The inputs of ``model`` whose range is known, by the layer's name, as a packed file keeps them."""
    stored = {name: each.stored(learned) for name, each in input_quantizers(model)}
    return {name: each for name, each in stored.items() if each is not None}


def without_logits(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``model`` without the learned bits of inputs."""
    own = {id(each.logit) for _, each in input_quantizers(model)}
    return [param for param in model.parameters() if id(param) not in own]
