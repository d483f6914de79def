"""DiffQ: pseudo quantisation noise with learned numbers of bits (Défossez, Adi, Synnaeve, TMLR 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import functional
from .._checks import check_choice, check_group_size
from ..legacy import entries as legacy_entries
from ..legacy.state import readable_diffq_arguments
from ..reference.bits import bits_from_logits, initial_logit, logits_from_bits, whole_bits
from ..reference.logit_rule import LogitRule
from ..reference.options import NOISE_KINDS, PARAMS, NoiseOptions
from ..reference.sizes import group_count
from .arguments import check_number, remembers_arguments
from .attachment import Draw
from .base import BITS_PER_MB, BaseQuantizer
from .clipping import least_error_ranges
from .compiled import forget_graphs
from .export import ExportedWeight
from .frozen import FrozenBits
from .gathering import gathered, whole_together
from .learned_parameters import LearnedParameters
from .learned_ranges import SUFFIX, LearnedRanges, RangeRule
from .lower_precision import NOT_OF_SHARDS, LowerPrecision
from .noise import TrainingWeights
from .registry import Levels, Scheme, register
from .selection import QuantizedParameter
from .shards import whole
from .sizes import BitBudget, SizeRule

RNGS = ("philox", "torch")
WHOLE_RANGES = "learn_range=True is for whole models; leave it out"


class DiffQuantizer(BaseQuantizer):
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
        learn_range: learn the ends of the ranges too, parameters ``<name><suffix>_range``; they start as the smallest
            and the largest element, or as :meth:`fit_ranges` sets them. What lies outside becomes the nearest end.
        short_ranges: keep the ranges of groups in 16 bits each, in files, in eval, in training, and in every size. With
            ``learn_range`` and ``range_scope="group"``.
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
        learn_range: bool = False,
        short_ranges: bool = False,
    ) -> None:
        check_choice("DiffQuantizer", "param", param, PARAMS)
        check_choice("DiffQuantizer", "noise", noise, NOISE_KINDS)
        check_choice("DiffQuantizer", "rng", rng, RNGS)
        check_choice("DiffQuantizer", "range_scope", range_scope, ("tensor", "group"))
        for name, value in (("min_bits", min_bits), ("max_bits", max_bits), ("init_bits", init_bits)):
            check_number("DiffQuantizer", name, value)
        check_number("DiffQuantizer", "extra_bits", extra_bits)
        if not 0 < min_bits < init_bits < max_bits <= 15:
            raise ValueError(
                "DiffQuantizer: expected 0 < min_bits < init_bits < max_bits <= 15, got "
                f"min_bits={min_bits}, init_bits={init_bits}, max_bits={max_bits}"
            )
        if noisy_dtype not in (None, "auto"):
            raise ValueError(f"DiffQuantizer: noisy_dtype must be None or 'auto', got {noisy_dtype!r}")
        if noisy_dtype is not None and rng != "philox":
            raise ValueError(f"DiffQuantizer: noisy_dtype={noisy_dtype!r} needs rng='philox', got rng={rng!r}")
        check_group_size("DiffQuantizer", group_size)
        _check_ranges(learn_range, short_ranges, range_scope, rng)
        for ending in (suffix, suffix + SUFFIX) if learn_range else (suffix,):
            LearnedParameters.refuse_second(type(self).__name__, model, ending)
        super().__init__(model, min_size, float16, exclude, detect_bound)
        self.group_size = group_size
        self.min_bits, self.max_bits, self.param = min_bits, max_bits, param
        self.noise, self.init_bits, self.extra_bits = noise, init_bits, extra_bits
        self.rng, self.range_scope = rng, range_scope
        self.noisy_dtype, self.learn_range, self.short_ranges = noisy_dtype, learn_range, short_ranges
        start = float(initial_logit(init_bits, min_bits, max_bits, param))
        self.learn(suffix, partial(self._initial_logits, start))
        lowering = LowerPrecision(model, self.selection.quantised) if noisy_dtype == "auto" else None
        self._frozen = FrozenBits(self.selection.originals, self._widths, self._as_exported)
        self._ranges = self._learned_ranges() if learn_range else None
        self._training = TrainingWeights(self.selection, self._frozen, lowering, self._ranges)
        self.attach(lowering)

    def _initial_logits(self, start: float, entry: QuantizedParameter) -> Tensor:
        groups = group_count(entry.param.numel(), self.group_size)
        return torch.full((groups,), start, dtype=torch.float32, device=entry.param.device)

    def _learned_ranges(self) -> LearnedRanges:
        """Give every weight its learned ends."""
        if self.selection.mesh is not None:
            raise RuntimeError(f"DiffQuantizer: the model is sharded, and {WHOLE_RANGES} (docs/distributed.md)")
        made = LearnedRanges(self.group_size, self.range_scope, self.short_ranges)
        self.range_rule = RangeRule(self.suffix + SUFFIX)
        cast(LearnedParameters, self._learned).add_ends(SUFFIX, lambda entry: made.extremes(entry.param))
        self._frozen.ranges = made
        return made

    def setup_optimizer(
        self, optimizer: torch.optim.Optimizer, lr: float = 1e-3, *, range_lr: float | None = None, **kwargs: Any
    ) -> None:
        """Add the logits to ``optimizer``, as one group with ``weight_decay`` 0; learned ranges as a second one.

        Args:
            optimizer: made before this quantizer, so that it does not hold the logits yet.
            lr: learning rate of the logits.
            range_lr: of learned ranges, whose ends are in the unit of the weights; None: the optimizer's own.
            kwargs: other options of the groups.

        Raises:
            RuntimeError: the optimizer holds the logits already, another one was set up, or a learning rate
                scheduler was made before that cannot go on with one group more: make it afterwards.
        """
        options = {"weight_decay": 0, **kwargs}
        if self.learn_range:
            options["of_ends"] = {**options, **({} if range_lr is None else {"lr": range_lr})}
        super().setup_optimizer(optimizer, **{"lr": lr, **options})

    # -- bits --------------------------------------------------------------------------------------------------------

    def _get_bits(self, logit: Tensor) -> Tensor:
        return bits_from_logits(logit, self.min_bits, self.max_bits, self.param)

    def widths_of(self, entry: QuantizedParameter) -> Tensor:
        logit = entry.logit.detach() if self.selection.mesh is None else whole(entry.logit)
        return functional.widths_from_logits(logit, self.min_bits, self.max_bits, self.param, self.extra_bits)

    def _widths(self, logit: Tensor) -> Tensor:
        return functional.widths_from_logits(logit, self.min_bits, self.max_bits, self.param, self.extra_bits)

    def bits(self) -> dict[str, Tensor]:
        """The bits of every group as training sees them: float32 ``[groups]`` by weight name, without gradient.

        Real-valued while they are learned; with ``extra_bits`` in them, and whole, once they are frozen.
        """
        originals = self.selection.originals
        pairs = zip(originals, self._training_bits(originals), strict=True)
        return {entry.full_name: bits for entry, bits in pairs}

    def _training_bits(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        logits = whole_together([entry.logit for entry in entries])
        return [self._widths(logit).float() if self._frozen.active else self._get_bits(logit) for logit in logits]

    def widths(self) -> dict[str, Tensor]:
        """The whole number of bits of every group as an export has it: uint8 ``[groups]`` by weight name."""
        return {entry.full_name: self.widths_of(entry) for entry in self.selection.originals}

    def bits_per_weight(self) -> dict[str, float]:
        """The mean number of bits of each weight's elements, by name, as it stands in training."""
        full, rule = self._full(), self.size_rule()
        counts = [entry.param.numel() for entry in full]
        pairs = zip(self._training_bits(full), counts, strict=True)
        means = [rule.total(bits, count) / count for bits, count in pairs]
        values = torch.stack([mean.to(means[0]) for mean in means]).tolist() if means else []  # one wait for a device
        return {entry.full_name: value for entry, value in zip(full, values, strict=True)}

    def _full(self) -> list[QuantizedParameter]:
        """The untied weights that have elements."""
        return [entry for entry in self.selection.originals if entry.param.numel()]

    # -- freezing ----------------------------------------------------------------------------------------------------

    @property
    def bits_frozen(self) -> bool:
        """Whether :meth:`freeze_bits` is in force."""
        return self._frozen.active

    def freeze_bits(self, mb: float | None = None, *, straight_through: bool = False) -> None:
        """Round the bits for good: from now on training sees the widths of the export, and they stay.

        No optimizer of torch moves the logits any more, and ``true_model_size()`` does not change. Training goes on
        with the noise of whole bits, or, with ``straight_through``, with the very weights of the export. Call it
        between two training steps. The logits are set to values that give these widths: a state dict, a packed file
        and a stored state carry them, but not that they are frozen. After loading one into a new quantizer, call
        ``freeze_bits()`` again; it finds the same widths.

        Args:
            mb: choose the rounding so that ``true_model_size()`` is at most this and as near to it as whole bits
                allow (see ``docs/size_target.md``); None: the nearest whole bits, as an export has them.
            straight_through: no more noise: each training forward sees the weights rounded as they stand, and their
                gradients are passed on to the float weights unchanged, as with ``UniformQuantizer(qat=True)``. For
                the end of a training: the weights settle around the rounding that will be used.

        Raises:
            ValueError: no whole bits between min_bits and max_bits are as small as ``mb``; or a logit is NaN.
            TypeError: ``mb`` is no number.
        """
        self._frozen.freeze(self.rule(), self._widths_to_freeze(mb), rounds_weights=straight_through)
        forget_graphs(self.model)

    def unfreeze_bits(self) -> None:
        """Let the bits be learned again, from the whole numbers at which :meth:`freeze_bits` left them."""
        self._frozen.unfreeze()
        forget_graphs(self.model)

    def _widths_to_freeze(self, mb: float | None) -> list[Tensor]:
        originals = self.selection.originals
        self._refuse_nan_logits(originals)
        if mb is None:
            return [self.widths_of(entry) for entry in originals]
        mb = check_number("DiffQuantizer.freeze_bits", "mb", mb)
        budget = self.bit_budget()
        smallest = budget.uniform_size(budget.widths[0])
        if mb * BITS_PER_MB < smallest:
            raise ValueError(
                f"DiffQuantizer.freeze_bits: mb must be at least {smallest / BITS_PER_MB:.6g}, the size with "
                f"{budget.widths[0]} bits everywhere, got {mb:g}; lower min_bits, or keep the rest in half "
                "precision (float16=True)"
            )
        full = self._full()
        logits = whole_together([entry.logit for entry in full])
        bits = budget.row([self.extra_bits + self._get_bits(logit) for logit in logits])
        fitting = dict(zip(full, budget.split(budget.fit(bits, mb * BITS_PER_MB)), strict=True))
        return [fitting.get(entry, whole(entry.logit)) for entry in originals]

    # -- ranges ------------------------------------------------------------------------------------------------------

    def ranges(self) -> dict[str, Tensor]:
        """The ranges of an export: float32 rows (lo, hi), ``[1, 2]`` or ``[groups, 2]``, by weight name."""
        with torch.no_grad():
            entries = self.selection.originals
            return {entry.full_name: self._ranges_of([entry], [self.storable(entry)]) for entry in entries}

    def fit_ranges(self, clip: bool = True, bits: int | None = None) -> None:
        """Set the learned ranges anew, from the weights as they stand; call it between two training steps.

        Args:
            clip: those of least squared error after rounding, among some that lie inside the weights; False: the
                smallest and the largest element.
            bits: round to so many bits for it, 1 … 15, everywhere: what is hoped for at the start of a training. None:
                to the present widths, for the end of one, or for an export of a network that is not trained further.

        Raises:
            RuntimeError: ranges are not learned. ValueError: ``bits`` is no such number.
        """
        if self._ranges is None:
            raise RuntimeError("DiffQuantizer.fit_ranges: ranges are not learned; give learn_range=True")
        if bits is not None and bits not in range(1, 16):
            raise ValueError(f"DiffQuantizer.fit_ranges: bits must be a whole number from 1 to 15, got {bits}")
        self.check_model()
        with torch.no_grad():
            for entry in self.selection.originals:
                weight, widths = self.storable(entry), self.widths_of(entry)
                found = self._ranges.extremes(weight)
                if clip and weight.numel():
                    widths = widths if bits is None else torch.full_like(widths, bits)
                    found = least_error_ranges(weight, widths, found, (self.group_size, self.range_scope))
                entry.ends.copy_(found)

    def _ranges_of(self, entries: Sequence[QuantizedParameter], weights: Sequence[Tensor]) -> Tensor:
        """Those of weights of one device, one below the other. ``weights``: as an export quantises them."""
        if self._ranges is not None:
            return torch.cat([self._ranges.kept(entry.ends) for entry in entries])
        groups: dict[str, Any] = {"group_size": self.group_size, "range_scope": self.range_scope}
        return functional.weight_range(weights, **groups)

    # -- weights -----------------------------------------------------------------------------------------------------

    def training_draw(self) -> Draw:
        rule = self.min_bits, self.max_bits, self.param
        return self._training.draw(NoiseOptions(self.group_size, *rule, self.noise, self.range_scope), self.rng)

    def unsharded_only(self) -> str | None:
        if self.rng == "torch":
            return "rng='torch' draws the noise of whole weights in their order; use rng='philox'"
        if self.noisy_dtype is not None:
            return NOT_OF_SHARDS
        if self.learn_range:
            return WHOLE_RANGES
        return super().unsharded_only()

    def training_may_begin(self) -> None:
        self._training.prepare()

    def eval_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        logits = whole_together([entry.logit for entry in entries])
        if not torch.compiler.is_compiling():  # a graph cannot look at values, and other devices would be waited for
            named = zip(entries, logits, strict=True)
            _refuse_nan({entry.full_name: logit for entry, logit in named if logit.device.type == "cpu"})
        triples = zip(entries, self.storable_together(entries), map(self._widths, logits), strict=True)
        return [self._rounded([entry], [weight], [widths], None)[0] for entry, weight, widths in triples]

    def _refuse_nan_logits(self, entries: Sequence[QuantizedParameter]) -> None:
        """ValueError where logits are NaN, which give no bits. Waits for the weights' devices, once each."""
        logits = whole_together([entry.logit for entry in entries])
        _refuse_nan({entry.full_name: logit for entry, logit in zip(entries, logits, strict=True)})

    def check_exportable(self) -> None:
        super().check_exportable()
        self._refuse_nan_logits(self.selection.originals)

    def eval_options(self) -> Hashable:
        return (self.extra_bits, self.min_bits, self.max_bits, self.param)

    def _as_exported(
        self, entries: Sequence[QuantizedParameter], widths: Sequence[Tensor], dtype: torch.dtype | None
    ) -> list[Tensor]:
        """Weights of one device, rounded to these widths, in ``dtype`` (None: each in its own)."""
        return self._rounded(entries, self.storable_together(entries), widths, dtype)

    def _rounded(
        self,
        entries: Sequence[QuantizedParameter],
        weights: Sequence[Tensor],
        widths: Sequence[Tensor],
        dtype: torch.dtype | None,
    ) -> list[Tensor]:
        groups: dict[str, Any] = {"group_size": self.group_size, "range_scope": self.range_scope}
        ranges = self._ranges_of(entries, weights)
        rounded = functional.fake_quantize(weights, widths, ranges, **groups, dtype=dtype)
        return [each.to(dtype or entry.param.dtype) for each, entry in zip(rounded, entries, strict=True)]

    def levels(self, entry: QuantizedParameter) -> Levels:
        """A weight as an export has it, before packing."""
        weight, widths = self.storable(entry), self.widths_of(entry)
        groups: dict[str, Any] = {"group_size": self.group_size, "range_scope": self.range_scope}
        ranges = self._ranges_of([entry], [weight])
        levels = functional.quantize([weight], [widths], ranges, **groups)[0]
        return Levels(levels, widths, ranges, self.group_size, self.range_scope)

    def tell_faults(self) -> None:
        nonfinite = self._training.take_nonfinite()
        if nonfinite:
            named = ", ".join(f"{name} ({count})" for name, count in nonfinite.items())
            warnings.warn(
                f"DiffQuantizer: non-finite gradients reached the logits of {named}; they were "
                "put to zero, so the bits stayed finite. Under autocast, let the GradScaler step every optimizer",
                stacklevel=4,
            )

    # -- size --------------------------------------------------------------------------------------------------------

    def true_model_size(self) -> float:
        self._refuse_nan_logits(self.selection.originals)
        return super().true_model_size()

    def size_rule(self) -> SizeRule:
        """What decides the size of the quantised weights."""
        limits = self.min_bits, self.max_bits, self.extra_bits
        return SizeRule(self.group_size, *limits, self.range_scope, self.short_ranges)

    def quantised_bits(self, exact: bool) -> Tensor | float:
        """Bits that the quantised weights take: levels, ranges, tables of widths."""
        rule, full = self.size_rule(), self._full()
        logits = gathered([entry.logit for entry in full], averaged=False)
        if not (exact or self._frozen.active):
            return self._learned_bits(rule, full, logits)
        if exact and self.selection.mesh is None and not torch.compiler.is_compiling():
            self._refuse_nan_logits([entry for entry in full if entry.logit.device.type == "cpu"])
        total: Tensor | float = 0.0
        for entry, logit in zip(full, logits, strict=True):
            total = total + rule.weight_bits(self._whole_bits(logit, exact), entry.param.numel())
        return total

    def _learned_bits(
        self, rule: SizeRule, entries: Sequence[QuantizedParameter], logits: Sequence[Tensor]
    ) -> Tensor | float:
        """The same while bits are learned, in one pass over the logits of each device."""
        by_device: dict[torch.device, tuple[list[Tensor], list[int]]] = {}
        for entry, logit in zip(entries, logits, strict=True):
            of_device, counts = by_device.setdefault(logit.device, ([], []))
            of_device.append(logit)
            counts.append(entry.param.numel())
        options = NoiseOptions(self.group_size, self.min_bits, self.max_bits, self.param)
        total: Tensor | float = 0.0
        for of_device, counts in by_device.values():
            sizes = functional.weight_sizes(of_device, counts, options, extra_bits=self.extra_bits)
            ours = sizes.sum() + sum(map(rule.range_bits, counts))
            total = total + (ours.to(total) if isinstance(total, Tensor) else ours)
        return total

    def _whole_bits(self, logit: Tensor, exact: bool) -> Tensor:
        """Bits of each group in an export; with gradient zero, unless the size is to be ``exact``."""
        bits = self._get_bits(logit)
        whole = whole_bits(bits.detach(), self.extra_bits).float()
        return whole if exact else whole + 0 * bits

    def bit_budget(self) -> BitBudget:
        """What any choice of whole bits for the groups costs."""
        counts = [entry.param.numel() for entry in self._full()]
        device = self._full()[0].param.device if counts else torch.device("cpu")
        plain = sum(slot.param.numel() for slot in self.selection.rest), self.plain_bits()
        return BitBudget(self.size_rule(), counts, plain, device)

    # -- files -------------------------------------------------------------------------------------------------------

    def rule(self) -> LogitRule:
        limits = float(self.min_bits), float(self.max_bits), float(self.extra_bits)
        return LogitRule(*limits, self.param, self.suffix)

    def misfit(self, packed: Any) -> tuple[str | None, str] | None:
        if packed.range_scope not in ("tensor", "group") or packed.level_count:
            return None, "has a range and whole bits for each group"
        if packed.range_scope != self.range_scope:
            return f"range_scope={packed.range_scope!r}", f"has range_scope={self.range_scope!r}"
        if len(packed.widths) > 1 and packed.group_size != self.group_size:
            return f"group_size={packed.group_size}", f"has group_size={self.group_size}"
        if self._ranges is not None and not self._ranges.holds(packed.ranges):
            return "ranges that are not of 16 bits, or in other units", "has short_ranges=True"
        return None

    def exported(self, entry: QuantizedParameter, value: Tensor, ranges: Tensor) -> ExportedWeight:
        widths, known = self.widths_of(entry), ranges if self.range_scope == "tensor" else None
        if not bool(widths.all()):
            self._refuse_nan_logits([entry])  # which have 0 bits
        exported = ExportedWeight(entry.full_name, value, widths, self.group_size, self.range_scope, ranges=known)
        if self._ranges is None:
            return exported
        self._refuse_unsound_ranges(entry)
        return exported._replace(ranges=self._ranges.kept(entry.ends), short=self._ranges.codes(entry.ends))

    def _refuse_unsound_ranges(self, entry: QuantizedParameter) -> None:
        if not bool(entry.ends.isfinite().all()):
            raise ValueError(
                f"DiffQuantizer: the learned ranges of {entry.full_name} have NaN or infinite ends; call fit_ranges(), "
                "or load a state from before"
            )

    def stored_entry(self, entry: QuantizedParameter, ranges: Tensor, packed: bool, torch_pack: bool) -> Any:
        self._refuse_stored(entry)
        self._refuse_nan_logits([entry])
        if self._ranges is not None:
            self._refuse_unsound_ranges(entry)
            ranges = self._ranges.kept(entry.ends)
        stored = tuple(ranges[0].tolist())
        names: dict[str, Any] = {"min_bits": self.min_bits, "name": entry.full_name}
        if packed and not torch_pack and entry.param.numel():
            weight, widths = self.storable(entry), self.widths_of(entry)
            planes = functional.quantize_planes(weight, widths, ranges, group_size=self.group_size)
            return legacy_entries.encode_diffq_planes(planes, widths, stored, **names)
        made = self.levels(entry)
        options: dict[str, Any] = {"packed": packed, "torch_pack": torch_pack}
        return legacy_entries.encode_diffq_entry(made.levels, made.widths, stored, **names, **options)

    def _refuse_stored(self, entry: QuantizedParameter) -> None:
        """ValueError for what diffq's states cannot hold."""
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

    def stored_arguments(self, packed: bool) -> dict[str, Any]:
        arguments = super().stored_arguments(packed)
        return readable_diffq_arguments(arguments) if packed else arguments

    def decoding_arguments(self, stated: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"group_size": self.group_size, "min_bits": stated.get("min_bits", self.min_bits)}

    def set_learned(self, entry: QuantizedParameter, levels: Levels) -> None:
        """Set the logits so that the next export has these widths."""
        margin = min(0.01, (self.max_bits - self.min_bits) / 4)
        bits = (levels.widths.double() - self.extra_bits).clamp(self.min_bits + margin, self.max_bits - margin)
        entry.logit.copy_(logits_from_bits(bits, self.min_bits, self.max_bits, self.param))
        if self._ranges is not None:
            entry.ends.copy_(levels.ranges)


def _refuse_nan(logits: dict[str, Tensor]) -> None:
    """ValueError where logits, by the names of their weights, are NaN. Waits for their devices, once each."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, logit in logits.items():
        if not logit.is_meta:
            flags = by_device.setdefault(logit.device, {})
            flags[name] = logit.amin().isnan()  # a tenth of the time of isnan().any()
    for flags in by_device.values():
        wrong = [name for name, flag in zip(flags, torch.stack([*flags.values()]).tolist(), strict=True) if flag]
        if wrong:
            raise ValueError(
                f"DiffQuantizer: the logits of {', '.join(wrong)} have NaN elements, which give no bits; load a "
                "state from before, or fill them anew"
            )


def _check_ranges(learn_range: bool, short_ranges: bool, range_scope: str, rng: str) -> None:
    if learn_range and rng != "philox":
        raise ValueError(f"DiffQuantizer: learn_range=True needs rng='philox', got rng={rng!r}")
    if short_ranges and not learn_range:
        raise ValueError(
            "DiffQuantizer: short_ranges=True needs learn_range=True: ranges that are taken from the weights are not "
            "found again in those of a file, which need not reach the ends of short ones"
        )
    if short_ranges and range_scope != "group":
        raise ValueError(f"DiffQuantizer: short_ranges=True needs range_scope='group', got {range_scope!r}")


def _decode(stored: Any, shape: Sequence[int], arguments: Mapping[str, Any], name: str) -> Levels:
    group_size, min_bits = arguments.get("group_size", 1), arguments.get("min_bits", 2)
    levels, widths, (lo, hi) = legacy_entries.decode_diffq_entry(
        stored, shape, group_size=group_size, min_bits=min_bits, name=name
    )
    ranges = torch.tensor([[lo, hi]], dtype=torch.float32, device="cpu")
    return Levels(levels, widths, ranges, group_size)


def _inferred(entries: Sequence[Any]) -> dict[str, Any]:
    """The group size, from unpacked levels ``[groups, g]``."""
    levels = entries[0][0] if entries else None
    return {"group_size": levels.shape[1]} if isinstance(levels, Tensor) and levels.dim() == 2 else {}


register(
    Scheme(
        DiffQuantizer,
        diffq_name="diffq.diffq.DiffQuantizer",
        rule=LogitRule.from_arguments,
        decode=_decode,
        recognises=lambda entry: len(entry) == 3,
        inferred=_inferred,
    )
)
