"""DiffQ: pseudo quantisation noise with learned numbers of bits (Défossez, Adi, Synnaeve, TMLR 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..legacy import entries as legacy_entries
from ..reference.bits import PARAMS, bits_from_logits, initial_logit, logits_from_bits, whole_bits
from ..reference.operators import group_count
from ..reference.philox import NOISE_KINDS
from .base import remembers_arguments
from .bit_budget import table_bits
from .export import ExportedWeight
from .freezing import FreezableBits
from .lower_precision import LOWER_DTYPES, Dtypes, Lowered, LoweringMaker, LowerPrecision
from .replay import Forward, Maker, generator_state
from .selection import QuantizedParameter, untied
from .torch_noise import TorchNoise

BUCKET_BYTES = 64 * 2**20

# Makes the weights of a bucket for training, in a dtype, or each in its own (None).
BucketMaker = Callable[[Sequence[QuantizedParameter], torch.dtype | None], list[Tensor]]
RNGS = ("philox", "torch")


class DiffQuantizer(FreezableBits):
    """Trains a model with learned numbers of bits: each weight gets noise as large as one quantisation step.

    Three lines in a training loop::

        quantizer = DiffQuantizer(model, group_size=8)      # after the optimizer is made
        quantizer.setup_optimizer(optimizer)
        loss = task_loss + penalty * quantizer.model_size()

    In train mode every forward of ``model`` sees freshly noisy weights; in eval mode it sees the quantised ones; the
    stored parameters never change. The logits are parameters ``<name><suffix>`` of the owning modules, so they are in
    ``state_dict``, in DDP and in copies.

    Args:
        model: any module; it is not replaced.
        min_size: parameters of up to this many MB (as float32) are not quantised.
        float16: keep the parameters that are not quantised in half precision, in eval and export.
        group_size: consecutive elements that share a number of bits; 0: one for the whole weight. The last group of a
            weight may be shorter.
        min_bits, max_bits: the open interval of the learned bits, ``0 < min_bits < max_bits``.
        param: ``"bits"`` or ``"noise"``, see :func:`diffq_fast.functional.bits_from_logits`.
        noise: ``"gaussian"`` (N(0, 1)/2) or ``"uniform"`` (U[-1/2, 1/2)), in units of one step.
        init_bits: bits at the start, strictly between min_bits and max_bits.
        extra_bits: added to the learned bits in eval and export.
        suffix: of the logits' names.
        exclude: fnmatch patterns of parameters to leave alone, against ``name`` and ``"<module name>.<name>"``.
        detect_bound: a tensor used at several places has one width, one noise and is stored once.
        rng: ``"philox"`` (the package's own noise, from one key per forward) or ``"torch"`` (torch's generator, slower:
            the numbers that diffq 0.2.4 draws under the same seed).
        range_scope: ``"tensor"`` or ``"group"`` (each group has its own minimum and maximum; the two floats per
            group count in every size).
        noisy_dtype: None: a noisy weight has its weight's dtype. ``"auto"``: under autocast, the float32 weights of
            linear, convolution and attention layers are made in autocast's dtype, which spares its casts and gives the
            same results; for models that read those weights only by calling the layers (``docs/training.md``).

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: a parameter's name already ends in ``suffix``.
    """

    @remembers_arguments
    def __init__(
        self,
        model: nn.Module,
        min_size: float = 0.01,
        float16: bool = False,
        group_size: int = 1,
        min_bits: float = 2,
        max_bits: float = 15,
        param: str = "bits",
        noise: str = "gaussian",
        init_bits: float = 8,
        extra_bits: float = 0,
        suffix: str = "_diffq",
        exclude: Sequence[str] = [],  # as in diffq; never written to
        detect_bound: bool = True,
        *,
        rng: str = "philox",
        range_scope: str = "tensor",
        noisy_dtype: str | None = None,
    ) -> None:
        _check_choice("param", param, PARAMS)
        _check_choice("noise", noise, NOISE_KINDS)
        _check_choice("rng", rng, RNGS)
        _check_choice("range_scope", range_scope, ("tensor", "group"))
        if not 0 < min_bits < init_bits < max_bits <= 15:
            raise ValueError(
                "DiffQuantizer: expected 0 < min_bits < init_bits < max_bits <= 15, got "
                f"min_bits={min_bits}, init_bits={init_bits}, max_bits={max_bits}"
            )
        if noisy_dtype not in (None, "auto"):
            raise ValueError(f"DiffQuantizer: noisy_dtype must be None or 'auto', got {noisy_dtype!r}")
        if noisy_dtype is not None and rng != "philox":
            raise ValueError(f"DiffQuantizer: noisy_dtype={noisy_dtype!r} needs rng='philox', got rng={rng!r}")
        if group_size < 0:
            raise ValueError(f"DiffQuantizer: group_size must be 0 (one group) or positive, got {group_size}")
        self._refuse_second(model, suffix)
        super().__init__(model, min_size, float16, exclude, detect_bound)
        self.group_size = group_size
        self.min_bits, self.max_bits, self.param = min_bits, max_bits, param
        self.noise, self.init_bits, self.extra_bits = noise, init_bits, extra_bits
        self.rng, self.range_scope = rng, range_scope
        self.noisy_dtype = noisy_dtype
        self._lower_precision = LowerPrecision(model, self._qparams) if noisy_dtype == "auto" else None
        self._tallies: dict[tuple[int, ...], Tensor] = {}
        self._register_learned(suffix, self._initial_logits)
        self._streams = {entry: index for index, entry in enumerate(self._firsts)}
        self._attach()

    def _initial_logits(self, entry: QuantizedParameter) -> Tensor:
        start = float(initial_logit(self.init_bits, self.min_bits, self.max_bits, self.param))
        groups = group_count(entry.param.numel(), self.group_size)
        return torch.full((groups,), start, dtype=torch.float32, device=entry.param.device)

    # -- optimizer ---------------------------------------------------------------------------------------------------

    def setup_optimizer(self, optimizer: torch.optim.Optimizer, lr: float = 1e-3, **kwargs: Any) -> None:
        """Add the logits to ``optimizer``, as one group with ``weight_decay`` 0.

        Args:
            optimizer: made before this quantizer, so that it does not hold the logits yet.
            lr: learning rate of the logits.
            kwargs: other options of the group.

        Raises:
            RuntimeError: the optimizer holds the logits already, or another one was set up.
        """
        self._add_to_optimizer(optimizer, **{"lr": lr, "weight_decay": 0, **kwargs})

    # -- bits --------------------------------------------------------------------------------------------------------

    def _get_bits(self, logit: Tensor) -> Tensor:
        return bits_from_logits(logit, self.min_bits, self.max_bits, self.param)

    def _widths(self, entry: QuantizedParameter) -> Tensor:
        logit = entry.logit.detach()
        return functional.widths_from_logits(logit, self.min_bits, self.max_bits, self.param, self.extra_bits)

    def bits(self) -> dict[str, Tensor]:
        """The bits of every group as training sees them: float32 ``[groups]`` by weight name, without gradient.

        Real-valued while they are learned; with ``extra_bits`` in them, and whole, once they are frozen.
        """
        return {entry.full_name: self._training_bits(entry) for entry in self._firsts}

    def _training_bits(self, entry: QuantizedParameter) -> Tensor:
        return self._widths(entry).float() if self.bits_frozen else self._get_bits(entry.logit.detach())

    def widths(self) -> dict[str, Tensor]:
        """The whole number of bits of every group as an export has it: uint8 ``[groups]`` by weight name."""
        return {entry.full_name: self._widths(entry) for entry in self._firsts}

    def bits_per_weight(self) -> dict[str, float]:
        """The mean number of bits of each weight's elements, by name, as it stands in training."""
        full = [entry for entry in self._firsts if entry.param.numel()]
        means = [self._total(self._training_bits(entry), entry) / entry.param.numel() for entry in full]
        values = torch.stack([mean.to(means[0]) for mean in means]).tolist() if means else []  # one wait for a device
        return {entry.full_name: value for entry, value in zip(full, values, strict=True)}

    def _total(self, per_group: Tensor, entry: QuantizedParameter) -> Tensor:
        """Sum over a weight's elements of a value per group."""
        count = entry.param.numel()
        size = self.group_size or count
        total = size * per_group.sum()
        missing = len(per_group) * size - count
        return total - missing * per_group[-1] if missing else total

    # -- training weights --------------------------------------------------------------------------------------------

    def _training_maker(self) -> Maker:
        if self._rounds_in_training:
            make = partial(self._by_buckets, self._rounded_weights)
        elif self.rng == "torch":
            return TorchNoise(self, self._firsts).make
        else:
            keys = {device: functional.draw_key(like) for device, like in self._devices().items()}
            make = partial(self._by_buckets, partial(self._noisy_weights, keys))
        if self._lower_precision is None or torch.compiler.is_compiling():
            return partial(make, {})
        return LoweringMaker(make, self._lower_precision.dtypes())

    def _put_made(self, forward: Forward, indices: Sequence[int]) -> None:
        super()._put_made(forward, indices)
        if isinstance(forward.make, LoweringMaker):
            for index in indices:
                entry = self._qparams[index]
                if entry in forward.make.dtypes:
                    self._shown[entry] = Lowered(forward.make, index, entry.module.__dict__[entry.name])

    def _before_reading(self, module: nn.Module) -> None:
        if self._lower_precision is not None:
            self._lower_precision.before_reading(module, self._shown)

    def _generators(self) -> Hashable:
        return tuple(generator_state(device) for device in self._devices())

    def _devices(self) -> dict[torch.device, Tensor]:
        return {entry.param.device: entry.param for entry in reversed(self._firsts)}

    def _by_buckets(self, make: BucketMaker, dtypes: Dtypes, indices: Sequence[int]) -> list[Tensor]:
        firsts = untied(self._qparams[index] for index in indices)
        made: dict[QuantizedParameter, Tensor] = {}
        for dtype, bucket in _buckets_by_dtype(firsts, dtypes):
            weights = make(bucket, dtype)
            _backward_right_behind_last_use(weights[0])
            made.update(zip(bucket, weights, strict=True))
        return [made[self._qparams[index].first] for index in indices]

    def _noisy_weights(
        self, keys: dict[torch.device, Tensor], bucket: Sequence[QuantizedParameter], dtype: torch.dtype | None
    ) -> list[Tensor]:
        streams = [self._streams[entry] for entry in bucket]
        logits, bits_options = self._noise_logits(bucket)
        return functional.add_noise(
            [entry.param for entry in bucket],
            logits,
            keys[bucket[0].param.device],
            streams=streams,
            group_size=self.group_size,
            **bits_options,
            noise=self.noise,
            range_scope=self.range_scope,
            tally=self._tally(streams, logits),
            dtype=dtype,
        ).noisy

    def _tally(self, streams: list[int], logits: Sequence[Tensor]) -> Tensor | None:
        """The leaf whose gradient counts the non-finite logit gradients of a bucket. None where there are none to
        count, or none can be made (inside a compiled graph that comes before :meth:`setup_optimizer`)."""
        if not torch.is_grad_enabled() or not any(logit.requires_grad for logit in logits):
            return None
        tally = self._tallies.get(tuple(streams))
        if torch.compiler.is_compiling() or (tally is not None and tally.device == logits[0].device):
            return tally
        self._tallies[tuple(streams)] = torch.zeros(len(streams), device=logits[0].device, requires_grad=True)
        return self._tallies[tuple(streams)]

    def _begin(self) -> None:
        """Training may start: make what a compiled forward cannot make."""
        super()._begin()
        for bucket in _buckets(self._firsts):
            self._tally([self._streams[entry] for entry in bucket], [entry.logit for entry in bucket])

    def _tell_faults(self) -> None:
        counts: dict[int, int] = {}
        for streams, tally in self._tallies.items():
            if tally.grad is not None:
                for stream, count in zip(streams, tally.grad.tolist(), strict=True):
                    counts[stream] = counts.get(stream, 0) + int(count)
                tally.grad = None
        broken = [f"{self._firsts[stream].full_name} ({count})" for stream, count in counts.items() if count]
        if broken:
            warnings.warn(
                "DiffQuantizer: non-finite gradients reached the logits of " + ", ".join(broken) + "; they were "
                "put to zero, so the bits stayed finite. Under autocast, let the GradScaler step every optimizer",
                stacklevel=4,
            )

    # -- eval weights ------------------------------------------------------------------------------------------------

    def _eval_options(self) -> Hashable:
        return (self.extra_bits, self.min_bits, self.max_bits, self.param)

    def _quantized_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        return [self._as_exported([entry], [self._widths(entry)], None)[0] for entry in entries]

    def _levels(self, entry: QuantizedParameter) -> tuple[Tensor, Tensor, Tensor]:
        """A weight's levels (int32, its shape), widths (uint8 ``[groups]``) and range (float32)."""
        weight, widths = self._storable(entry), self._widths(entry)
        found = functional.weight_range([weight], group_size=self.group_size, range_scope=self.range_scope)
        size, scope = self.group_size, self.range_scope
        levels = functional.quantize([weight], [widths], found, group_size=size, range_scope=scope)[0]
        return levels, widths, found

    # -- size --------------------------------------------------------------------------------------------------------

    def _quantized_bits(self, exact: bool) -> Tensor | float:
        """Bits that the quantised weights take: levels, ranges, width tables."""
        total: Tensor | float = 0.0
        for entry in self._firsts:
            if not entry.param.numel():
                continue
            used = self._counted_bits(entry, exact)
            ranges = len(used) if self.range_scope == "group" else 1
            table = len(used) * self._table_bits(used.detach())
            total = total + (self._total(used, entry) + (64 * ranges + 8) + table)
        return total

    def _counted_bits(self, entry: QuantizedParameter, exact: bool) -> Tensor:
        """Bits of each group as the size counts them; frozen ones are whole, with gradient zero."""
        bits = self._get_bits(entry.logit)
        if not (exact or self.bits_frozen):
            return self.extra_bits + bits
        whole = whole_bits(bits.detach(), self.extra_bits).float()
        return whole if exact else whole + 0 * bits

    def _table_bits(self, used: Tensor) -> Tensor:
        """Bits of one entry of a weight's width table."""
        lowest: float | Tensor = self.min_bits
        if self.extra_bits < 0:
            lowest = used.min().round().clamp(max=self.min_bits)
        return table_bits(lowest, used.max())

    # -- export ------------------------------------------------------------------------------------------------------

    def _exported(self, entry: QuantizedParameter, found: Tensor, aliases: list[str]) -> ExportedWeight:
        weight, widths = self._float_value(entry), self._widths(entry)
        known = found if self.range_scope == "tensor" else None
        return ExportedWeight(entry.full_name, weight, widths, self.group_size, self.range_scope, aliases, range=known)

    def _encode(self, entry: QuantizedParameter, found: Tensor, packed: bool, torch_pack: bool) -> Any:
        if self.range_scope == "group":
            raise ValueError(
                "DiffQuantizer.get_quantized_state: diffq's states have no ranges per group (range_scope='group'); "
                "save a packed file with diffq_fast.save"
            )
        if self.group_size and entry.param.numel() % self.group_size:
            raise ValueError(
                f"DiffQuantizer.get_quantized_state: {entry.full_name} has {entry.param.numel()} elements, which "
                f"groups of {self.group_size} do not divide, and diffq's states have no shorter last group; save a "
                "packed file with diffq_fast.save"
            )
        if packed and not torch_pack and entry.param.numel():
            weight, widths = self._storable(entry), self._widths(entry)
            planes = functional.quantize_planes(weight, widths, found, group_size=self.group_size)
            lo, hi = found[0].tolist()
            return legacy_entries.encode_diffq_planes(
                planes, widths, lo, hi, min_bits=self.min_bits, name=entry.full_name
            )
        levels, widths, found = self._levels(entry)
        lo, hi = found[0].tolist()
        return legacy_entries.encode_diffq_entry(
            levels, widths, lo, hi, min_bits=self.min_bits, packed=packed, torch_pack=torch_pack, name=entry.full_name
        )

    def _decode(self, entry: QuantizedParameter, stored: Any, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        param = entry.param
        min_bits = arguments.get("min_bits", self.min_bits)
        levels, widths, found = legacy_entries.decode_diffq_entry(
            stored, param.shape, group_size=self.group_size, min_bits=min_bits, name=entry.full_name
        )
        bounds = torch.tensor([found], dtype=torch.float32)
        weight = functional.dequantize([levels], [widths], bounds, group_size=self.group_size, dtype=param.dtype)[0]
        return weight, widths

    def _set_learned(self, entry: QuantizedParameter, learned: Tensor) -> None:
        """Set the logits so that the next export has the widths ``learned``."""
        margin = min(0.01, (self.max_bits - self.min_bits) / 4)
        bits = (learned.double() - self.extra_bits).clamp(self.min_bits + margin, self.max_bits - margin)
        entry.logit.copy_(logits_from_bits(bits, self.min_bits, self.max_bits, self.param))


def _check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"DiffQuantizer: {argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _buckets(entries: Sequence[QuantizedParameter]) -> Iterator[list[QuantizedParameter]]:
    """Consecutive weights of one device, about ``BUCKET_BYTES`` together."""
    bucket: list[QuantizedParameter] = []
    size = 0
    for entry in entries:
        param = entry.param
        if bucket and (size >= BUCKET_BYTES or param.device != bucket[0].param.device):
            yield bucket
            bucket, size = [], 0
        bucket.append(entry)
        size += param.numel() * param.element_size()
    if bucket:
        yield bucket


def _buckets_by_dtype(
    entries: Sequence[QuantizedParameter], dtypes: Dtypes
) -> Iterator[tuple[torch.dtype | None, list[QuantizedParameter]]]:
    """The buckets of the weights that are made in their own dtype (None), then of those in each other one."""
    for dtype in (None, *LOWER_DTYPES):
        for bucket in _buckets([entry for entry in entries if dtypes.get(entry) == dtype]):
            yield dtype, bucket


def _backward_right_behind_last_use(noisy: Tensor) -> None:
    """Autograd runs ready nodes by descending number. Made first, a bucket's node would run after the backward of the
    whole model; with the highest number it runs as soon as its last gradient is there, and DDP can overlap."""
    if not torch.compiler.is_compiling() and noisy.grad_fn is not None:
        node: Any = noisy.grad_fn
        node._set_sequence_nr(2**62)
