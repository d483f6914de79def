"""Rate: learned steps under the price of coded levels, what an entropy coder makes of them.

Uniform noise of one step stands for rounding in training, as in learned image compression (Ballé, Laparra, Simoncelli,
"End-to-end Optimized Image Compression", ICLR 2017; for weights Oktay et al., "Scalable Model Compression by Entropy
Penalized Reparameterization", ICLR 2020). ``docs/rate.md`` tells what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import functional
from .._checks import check_group_size
from ..reference.classes import choose_classes
from ..reference.log_steps import (
    HIGHEST_STEP_CODE,
    LOWEST_STEP_CODE,
    STEPS_PER_OCTAVE,
    codes_from_steps,
    steps_from_codes,
)
from ..reference.sizes import group_count
from ..reference.steps import levels_of_steps, round_to_steps
from .arguments import check_number, remembers_arguments
from .attachment import Draw
from .base import BITS_PER_MB, BaseQuantizer
from .coded_sizes import LEAST_STREAM_BITS, Coded, least_steps, level_bits, sampled_size, step_code_bits
from .compiled import forget_graphs
from .export import ExportedWeight
from .frozen import FrozenBits
from .gathering import buckets, gathered, whole_together
from .learned_parameters import LearnedParameters
from .lower_precision import NOT_OF_SHARDS, LowerPrecision
from .noise import Piece, TrainingWeights
from .rate_budget import RateBudget, fitting_codes
from .registry import Scheme, register
from .selection import QuantizedParameter, small_families
from .shards import whole

LEAST_STEP = 2.0**-60  # at the start, of a group of zeros


class RateQuantizer(BaseQuantizer):
    """Trains a model whose weights are whole multiples of learned steps, under the price of their entropy code.

    Three lines in a training loop::

        quantizer = RateQuantizer(model)                    # after the optimizer is made
        quantizer.setup_optimizer(optimizer)
        loss = task_loss + penalty * quantizer.model_size()

    In train mode every forward of ``model`` sees its weights with uniform noise of one step; in eval mode it sees them
    rounded to multiples of the stored steps. The stored parameters never change. What is learned are the natural
    logarithms of the steps, one for each group, parameters ``<name><suffix>`` of the owning modules. A step may grow
    until its whole group is zero, which costs next to nothing.

    Args:
        model: any module; it is not replaced.
        min_size: parameters of up to this many MB (as float32) are not quantised.
        float16: keep the parameters that are not quantised in half precision, in eval and export.
        group_size: consecutive elements that share a step; 0: one step for the whole weight; None: one for each row
            (index of the first dimension), and for an embedding's table one, so that rows that no batch touches do not
            die.
        init_step: step at the start, in deviations of its group.
        suffix: of the log-steps' names.
        exclude: fnmatch patterns of parameters to leave alone, against ``name`` and ``"<module name>.<name>"``.
        detect_bound: a tensor used at several places has one step, one noise and is stored once.
        sample_share: the share of each weight's elements (4,096 at least) from which ``model_size()`` is estimated.
        rate_to_weights: ``model_size()`` is differentiable in the weights too, which draws them to zero.
        noisy_dtype: as :class:`DiffQuantizer` has it.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: a parameter's name already ends in ``suffix``.
    """

    # What SizeTarget asks of learned bits: here they may be any from 0 on.
    min_bits, max_bits, extra_bits, range_scope = 0.0, 16.0, 0.0, "steps"

    @remembers_arguments
    def __init__(
        self,
        model: nn.Module,
        min_size: float = 0.01,
        float16: bool = False,
        group_size: int | None = None,
        init_step: float = 0.5,
        suffix: str = "_log_step",
        exclude: Sequence[str] = [],
        detect_bound: bool = True,
        *,
        sample_share: float = 1 / 64,
        rate_to_weights: bool = False,
        noisy_dtype: str | None = None,
    ) -> None:
        if group_size is not None:
            check_group_size("RateQuantizer", group_size, also="None or ")
        if not check_number("RateQuantizer", "init_step", init_step) > 0 or not math.isfinite(init_step):
            raise ValueError(f"RateQuantizer: init_step must be positive, got {init_step}")
        if not 0 < check_number("RateQuantizer", "sample_share", sample_share) <= 1:
            raise ValueError(f"RateQuantizer: sample_share must be above 0 and at most 1, got {sample_share}")
        if noisy_dtype not in (None, "auto"):
            raise ValueError(f"RateQuantizer: noisy_dtype must be None or 'auto', got {noisy_dtype!r}")
        LearnedParameters.refuse_second(type(self).__name__, model, suffix)
        super().__init__(model, min_size, float16, exclude, detect_bound)
        self.group_size, self.init_step = group_size, init_step
        self.sample_share, self.rate_to_weights, self.noisy_dtype = sample_share, rate_to_weights, noisy_dtype
        self.learn(suffix, self._initial_log_steps().__getitem__)
        lowering = LowerPrecision(model, self.selection.quantised) if noisy_dtype == "auto" else None
        self._frozen = FrozenBits(self.selection.originals, _nearest_codes, self._rounded)
        self._training = TrainingWeights(self.selection, self._frozen, lowering)
        self.attach(lowering)

    def _initial_log_steps(self) -> dict[QuantizedParameter, Tensor]:
        """Of each weight, small ones of one size together: a thousand of them take as long as a few."""
        found: dict[QuantizedParameter, Tensor] = {}
        for members in small_families(self.selection.originals, self.elements_per_group):
            weights = whole_together([entry.param for entry in members])
            flat = torch.stack([weight.float().reshape(-1) for weight in weights])
            found.update(zip(members, self._start(flat, self.elements_per_group(members[0])), strict=True))
        return found

    def _start(self, flat: Tensor, size: int) -> list[Tensor]:
        """Those of ``init_step`` deviations of each group, of the whole weight where a group has none: float32
        ``[groups]`` of each row of ``flat``, whose groups have ``size`` elements (0: one group)."""
        number, count = flat.shape
        groups = group_count(count, size)
        if not count:
            return [flat.new_zeros(groups) for _ in range(number)]
        size = size or count
        rows = nn.functional.pad(flat, (0, groups * size - count), value=math.nan).view(-1, size)
        squares = (rows - rows.nanmean(1, keepdim=True)).square().nanmean(1).view(number, groups)
        deviations = torch.where(squares > 0, squares.sqrt(), flat.std(1, correction=0, keepdim=True))
        steps = (self.init_step * deviations).clamp(min=LEAST_STEP).nan_to_num(1.0)
        least = least_steps(rows.reshape(-1), size).view(number, groups)
        return [each.clone() for each in steps.maximum(2 * least).log()]  # a constant group has no deviation

    def elements_per_group(self, entry: QuantizedParameter) -> int:
        """Of one weight; 0: one group."""
        if self.group_size is not None:
            return self.group_size
        if entry.param.dim() < 2 or not entry.param.numel() or isinstance(entry.module, nn.Embedding | nn.EmbeddingBag):
            return 0
        return entry.param.shape[1:].numel()

    def setup_optimizer(self, optimizer: torch.optim.Optimizer, lr: float = 0.02, **kwargs: Any) -> None:
        """Add the log-steps to ``optimizer``, as one group with ``weight_decay`` 0.

        Args:
            optimizer: made before this quantizer, so that it does not hold the log-steps yet.
            lr: learning rate of the log-steps.
            kwargs: other options of the group.

        Raises:
            RuntimeError: the optimizer holds the log-steps already, or another one was set up.
        """
        super().setup_optimizer(optimizer, **{"lr": lr, "weight_decay": 0, **kwargs})

    # -- steps -------------------------------------------------------------------------------------------------------

    def _codes_of(self, entry: QuantizedParameter) -> Tensor:
        """int16 ``[groups]``: the steps as a file has them."""
        return _nearest_codes(whole(entry.logit))

    def _sound_codes(self, entry: QuantizedParameter) -> Tensor:
        """The same. Waits for the device: ValueError where a step is NaN or infinite."""
        return _sound_codes(entry.full_name, whole(entry.logit))

    def stored_steps(self, entry: QuantizedParameter) -> Tensor:
        """float32 ``[groups]``: the nearest steps that a file can hold."""
        return _nearest_steps(whole(entry.logit))

    def steps(self) -> dict[str, Tensor]:
        """The step of every group as an export has it: float32 ``[groups]`` by weight name."""
        self.check_model()
        return {entry.full_name: self.stored_steps(entry) for entry in self.selection.originals}

    def bits_per_weight(self) -> dict[str, float]:
        """The bits of each weight's coded levels over its elements, by name, every element counted."""
        self.check_model()
        entries = self._full()
        with torch.no_grad():
            bits = self._level_bits(entries, whole_together([entry.logit for entry in entries]))
        return {entry.full_name: float(each) / entry.param.numel() for entry, each in zip(entries, bits, strict=True)}

    def _full(self) -> list[QuantizedParameter]:
        """The untied weights that have elements."""
        return [entry for entry in self.selection.originals if entry.param.numel()]

    # -- freezing ----------------------------------------------------------------------------------------------------

    @property
    def bits_frozen(self) -> bool:
        """Whether :meth:`freeze_bits` is in force."""
        return self._frozen.active

    def freeze_bits(self, mb: float | None = None, *, straight_through: bool = False) -> None:
        """Round the steps for good: from now on training sees those of the export, and they stay.

        No optimizer of torch moves them any more. Training goes on with their noise, or, with ``straight_through``,
        with the very weights of the export: the gradients of the rounded weights are passed on to the float weights
        unchanged. A state dict and a packed file carry the steps, but not that they are frozen. The weights still
        move, and the size of their code with them.

        Args:
            mb: multiply all steps by one factor, so that ``true_model_size()`` is at most this and as near to it as
                stored steps allow; None: the nearest stored steps.
            straight_through: see above.

        Raises:
            ValueError: even with all weights zero the file is larger than ``mb``, or a step is NaN or infinite.
            TypeError: ``mb`` is no number.
            RuntimeError: the model has changed since the quantizer was attached.
        """
        self.check_model()
        originals = self.selection.originals
        logits = whole_together([entry.logit for entry in originals])
        codes = [_sound_codes(entry.full_name, logit) for entry, logit in zip(originals, logits, strict=True)]
        if mb is not None:
            codes = self._fitting_codes(mb)
        same = self._frozen.active and self._frozen.rounds_weights == straight_through
        self._frozen.freeze(self.rule(), codes, rounds_weights=straight_through)
        if not same:
            forget_graphs(self.model)

    def unfreeze_bits(self) -> None:
        """Let the steps be learned again, from where :meth:`freeze_bits` left them."""
        self._frozen.unfreeze()
        forget_graphs(self.model)

    def _fitting_codes(self, mb: float) -> list[Tensor]:
        mb = check_number("RateQuantizer.freeze_bits", "mb", mb)
        smallest = self.bit_budget().uniform_size(0) / BITS_PER_MB
        if mb < smallest:
            raise ValueError(
                f"RateQuantizer.freeze_bits: mb must be at least {smallest:.6g}, the size with all weights zero, got "
                f"{mb:g}; quantise more (exclude, min_size), or keep the rest in half precision (float16=True)"
            )
        wanted = mb * BITS_PER_MB - self.plain_bits()
        entries = self._full()
        with torch.no_grad():
            coded = self._coded(entries, gathered([entry.logit for entry in entries], averaged=False))
            moved = dict(zip(entries, fitting_codes(coded, wanted), strict=True))
        return [moved.get(entry, self._codes_of(entry)) for entry in self.selection.originals]

    # -- weights -----------------------------------------------------------------------------------------------------

    def training_draw(self) -> Draw:
        return self._training.draw_keys(self._noisy)

    def _noisy(
        self, keys: dict[torch.device, Tensor], bucket: Sequence[Piece], dtype: torch.dtype | None
    ) -> list[Tensor]:
        weights, log_steps = [piece.weight for piece in bucket], [piece.logit.float() for piece in bucket]
        if self._frozen.active:
            stored = [self._frozen.once(piece, _nearest_steps) for piece in bucket]
            steps = list(torch._foreach_add(stored, log_steps, alpha=0))
        else:
            steps = list(torch._foreach_exp(log_steps))
        return functional.add_uniform_noise(
            weights,
            steps,
            keys[weights[0].device],
            group_sizes=[self.elements_per_group(piece.entry) for piece in bucket],
            streams=[piece.stream for piece in bucket],
            dtype=dtype,
        )

    def unsharded_only(self) -> str | None:
        if self.noisy_dtype is not None:
            return NOT_OF_SHARDS
        return super().unsharded_only()

    def eval_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        def codes_of(entry: QuantizedParameter, log_steps: Tensor) -> Tensor:
            would_wait = torch.compiler.is_compiling() or log_steps.device.type != "cpu"
            return _nearest_codes(log_steps) if would_wait else _sound_codes(entry.full_name, log_steps)

        logits = whole_together([entry.logit for entry in entries])
        return self._rounded(entries, list(map(codes_of, entries, logits)), None)

    def eval_options(self) -> Hashable:
        return self._frozen.active

    def _rounded(
        self, entries: Sequence[QuantizedParameter], codes: Sequence[Tensor], dtype: torch.dtype | None
    ) -> list[Tensor]:
        weights = self.storable_together(entries)
        return [
            round_to_steps(weight, steps_from_codes(code), self.elements_per_group(entry), dtype or entry.param.dtype)
            for entry, weight, code in zip(entries, weights, codes, strict=True)
        ]

    # -- size --------------------------------------------------------------------------------------------------------

    def quantised_bits(self, exact: bool) -> Tensor | float:
        """Bits of the streams of levels and step codes; ``exact``: of the stored steps, every element counted."""
        entries = self._full()
        if not entries:
            return 0.0
        logits = gathered([entry.logit for entry in entries], averaged=False)
        if exact:
            return self._exact_bits(entries, logits)
        coded = self._coded(entries, logits)
        with torch.no_grad():
            codes = step_code_bits(coded)
        levels = sampled_size(coded, self.sample_share, self.rate_to_weights)
        return levels + codes.to(levels)

    @torch.no_grad()
    def _exact_bits(self, entries: Sequence[QuantizedParameter], logits: Sequence[Tensor]) -> Tensor:
        codes = step_code_bits(
            [
                Coded(entry.param, logit, self.elements_per_group(entry))
                for entry, logit in zip(entries, logits, strict=True)
            ]
        )
        sizes = [each.to(codes.device) for each in self._level_bits(entries, logits, LEAST_STREAM_BITS)]
        return (codes + torch.stack(sizes).sum()).float()

    def _coded(self, entries: Sequence[QuantizedParameter], log_steps: Sequence[Tensor]) -> list[Coded]:
        """Frozen steps have no slope, but stay in the graph: a distributed wrapper waits for their gradient."""
        if self._frozen.active:
            log_steps = [each.detach() + 0 * each for each in log_steps]
        params = [entry.param for entry in entries]
        weights = gathered(params, averaged=False) if self.rate_to_weights else whole_together(params)
        sizes = map(self.elements_per_group, entries)
        return list(map(Coded, weights, log_steps, sizes))

    def _level_bits(
        self, entries: Sequence[QuantizedParameter], log_steps: Sequence[Tensor], beside: int = 0
    ) -> list[Tensor]:
        """Of each weight, see :func:`.coded_sizes.level_bits`. Waits for the device."""
        bits = []
        for bucket in buckets([entry.param for entry in entries]):
            weights = self.storable_together([entries[index] for index in bucket])
            for index, weight in zip(bucket, weights, strict=True):
                entry, log_step = entries[index], log_steps[index]
                steps = steps_from_codes(_sound_codes(entry.full_name, log_step))
                bits.append(level_bits(Coded(weight, log_step, self.elements_per_group(entry)), steps, beside))
        return bits

    def bit_budget(self) -> RateBudget:
        """What a size target asks: the least size, and of what it is made."""
        entries = self._full()
        device = entries[0].param.device if entries else torch.device("cpu")
        plain = sum(slot.param.numel() for slot in self.selection.rest), self.plain_bits()
        groups = [len(entry.logit) for entry in entries]
        return RateBudget([entry.param.numel() for entry in entries], groups, plain, device)

    # -- files -------------------------------------------------------------------------------------------------------

    def rule(self) -> StepRule:
        return StepRule(self.suffix)

    def misfit(self, packed: Any) -> tuple[str | None, str] | None:
        if packed.range_scope != "steps":
            return None, "has coded multiples of steps"
        return None

    def exported(self, entry: QuantizedParameter, value: Tensor, ranges: Tensor) -> ExportedWeight:
        group_size, codes = self.elements_per_group(entry), self._sound_codes(entry)
        levels = levels_of_steps(value.float(), steps_from_codes(codes), group_size).to(torch.int32)
        classes = choose_classes(levels.reshape(-1), group_size)
        return ExportedWeight(entry.full_name, value, classes, group_size, "steps", levels=levels, ranges=codes)

    def check_exportable(self) -> None:
        super().check_exportable()
        for entry in self.selection.originals:
            self._sound_codes(entry)


def _sound_codes(name: str, log_steps: Tensor) -> Tensor:
    """The stored codes of a weight's whole log-steps; ValueError where one is NaN or infinite."""
    if not log_steps.is_meta and not bool(log_steps.isfinite().all()):
        raise ValueError(f"RateQuantizer: a step of {name} is NaN or infinite")
    return _nearest_codes(log_steps)


def _nearest_codes(log_steps: Tensor) -> Tensor:
    return codes_from_steps(log_steps.float().exp())


def _nearest_steps(log_steps: Tensor) -> Tensor:
    return steps_from_codes(_nearest_codes(log_steps))


@dataclass(frozen=True)
class StepRule:
    """How learned log-steps and a packed weight belong together, see :class:`.registry.Rule`."""

    suffix: str = "_log_step"
    noun: ClassVar[str] = "log-steps"
    reach: ClassVar[str] = (
        f"steps from 2**{LOWEST_STEP_CODE // STEPS_PER_OCTAVE} to 2**{HIGHEST_STEP_CODE / STEPS_PER_OCTAVE:g}"
    )

    def logits(self, codes: Tensor) -> Tensor:
        """The log-steps, float32, of step codes."""
        return codes.to(torch.float64).mul(math.log(2) / STEPS_PER_OCTAVE).to(torch.float32)

    def problem(self) -> str | None:
        """What is impossible about the rule, or None: its suffix may come from a file."""
        usable = isinstance(self.suffix, str) and self.suffix
        return None if usable else f"suffix must be a text, got {self.suffix!r:.40}"

    def misfit(self, packed: Any, shape: list[int]) -> str:
        """Why a parameter of another shape holds no log-steps of the weight."""
        return f"expected {self.shape(packed)[0]} log-steps, the model has {shape}"

    def belongs_to(self, packed: Any) -> bool:
        """Log-steps belong to the weights that have steps."""
        return packed.range_scope == "steps"

    def shape(self, packed: Any) -> tuple[int, ...]:
        """One for each group."""
        return (len(packed.widths),)

    def learned(self, packed: Any) -> Tensor:
        """The logarithms of the stored steps."""
        return self.logits(packed.step_codes())

    def changed(self, packed: Any, learned: Tensor) -> int:
        """Log-steps give any stored step again."""
        return 0

    def differing(self, stated: Any) -> dict[str, Any]:
        """Log-steps mean the same to every RateQuantizer."""
        return {}


register(Scheme(RateQuantizer, rule=lambda arguments: StepRule(arguments.get("suffix", "_log_step"))))
