"""What every quantizer is: a scheme for single weights, and the machinery that a model needs for it.

A subclass gives the scheme. The machinery is composed of parts that know no scheme: the attachment switches weights in
forwards, the eval weights keep what eval sees, the exporter reads the model for files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..legacy.pickler import pickled_size
from ..legacy.state import build_meta, build_state
from .admission import look_at_shards, refuse_foreign, refuse_sparse
from .arguments import check_number, described, with_defaults, without_keyword_only
from .attachment import Attachment, Draw
from .eval_weights import EvalWeights
from .export import ExportedModel, ExportedWeight, Exporter, warn_of_unstorable
from .input_quantizer import without_logits
from .learned_parameters import LearnedParameters
from .lower_precision import LowerPrecision
from .presence import Presence
from .registry import Levels, Rule, scheme_of
from .replay import Maker
from .selection import QuantizedParameter, Slot, select
from .stored_state import StoredWeight, compressed_bytes, match_rest, parse_for
from .weights import Weight

BITS_PER_MB = 8 * 2**20


class BaseQuantizer:
    """A quantizer on a model. Not used by itself.

    A subclass calls ``__init__``, then :meth:`learn` if it learns something, then :meth:`attach`; it gives
    :meth:`training_draw`, :meth:`eval_weights`, :meth:`quantised_bits`, :meth:`exported` and, where diffq's states hold
    it, :meth:`stored_entry`; it registers itself with :mod:`.registry`. ``docs/architecture.md`` shows a whole one.

    Attributes:
        arguments: those that the caller gave, by name, without the model.
    """

    arguments: dict[str, Any]
    range_rule: Rule | None = None  # how learned ranges and packed weights belong together; None: none are learned

    def __init__(
        self, model: nn.Module, min_size: float, float16: bool, exclude: Sequence[str], detect_bound: bool
    ) -> None:
        check_number(type(self).__name__, "min_size", min_size)
        self.model = model
        self.min_size, self.float16 = min_size, float16
        self.exclude, self.detect_bound = exclude, detect_bound
        self.selection = select(model, min_size, exclude, detect_bound, type(self).__name__)
        refuse_foreign(type(self).__name__, model, [*self.selection.quantised, *self.selection.rest])
        refuse_sparse(type(self).__name__, self.selection.quantised)
        look_at_shards(type(self).__name__, self.selection)
        self._qparams = self.selection.quantised  # under diffq's name, which its users' scripts read
        self._learned: LearnedParameters | None = None
        self._eval = EvalWeights(self, model, self.selection, float16)
        self._exporter = Exporter(type(self).__name__, model, self.selection, float16, self._eval.whole_values)
        warn_of_unstorable(type(self).__name__, model, self.selection)

    # -- the scheme: what a subclass gives ---------------------------------------------------------------------------

    def training_draw(self) -> Draw | None:
        """Draw what is random in one training forward. None: a training forward sees the weights as they are."""
        raise TypeError(f"{type(self).__name__} gives no training_draw(); see docs/architecture.md")

    def eval_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        """The weights as they come back from an export, in the parameters' dtypes."""
        raise TypeError(f"{type(self).__name__} gives no eval_weights(); see docs/architecture.md")

    def quantised_bits(self, exact: bool) -> Tensor | float:
        """Bits that the quantised weights take; ``exact``: in an export."""
        raise TypeError(f"{type(self).__name__} gives no quantised_bits(); see docs/architecture.md")

    def exported(self, entry: QuantizedParameter, value: Tensor, ranges: Tensor) -> ExportedWeight:
        """One weight of a packed file: its training value is ``value``, the range of all its elements ``ranges``,
        float32 ``[1, 2]``."""
        raise TypeError(f"{type(self).__name__} gives no exported(); see docs/architecture.md")

    def stored_entry(self, entry: QuantizedParameter, ranges: Tensor, packed: bool, torch_pack: bool) -> Any:
        """One entry of a stored state of diffq; ``ranges`` as in :meth:`exported`."""
        raise ValueError(f"{type(self).__name__}: diffq's states do not hold it; save a packed file")

    def set_learned(self, entry: QuantizedParameter, levels: Levels) -> None:
        """Take over what a stored state tells of what was learned."""

    def rule(self) -> Rule | None:
        """How what is learned for a weight and its packed form belong together. None: nothing is learned."""
        return None

    def misfit(self, packed: Any) -> tuple[str | None, str] | None:
        """Why a packed weight is not one that this quantizer makes: what it has (None: let it be described), and what
        the quantizer has. None: it fits."""
        return None

    def widths_of(self, entry: QuantizedParameter) -> Tensor | None:
        """uint8 ``[groups]``: the whole bits of each group in an export. None: bits are not learned."""
        return None

    def eval_options(self) -> Hashable:
        """Attributes that decide what eval sees."""
        return None

    def unsharded_only(self) -> str | None:
        """What of the quantizer's arguments a sharded model cannot be trained with, and what to do. None: nothing."""
        if self.float16:
            return "float16=True would have to round parameters that are gathered elsewhere; leave it out"
        if self.selection.aliases:
            name = self.selection.aliases[0][0].full_name
            return f"{name} is excluded while it is quantised at another place; quantise or exclude both places"
        return None

    def tell_faults(self) -> None:
        """Warn of what was counted on the device since the last time."""

    def stored_arguments(self, packed: bool) -> dict[str, Any]:
        """The caller's arguments as a stored state has them: without those that diffq does not know, the keyword-only
        ones."""
        return without_keyword_only(type(self), self.arguments)

    def decoding_arguments(self, stated: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments that decide how a stored entry is decoded; ``stated``: those that the state tells, if any."""
        return stated

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def learn(self, suffix: str, initial: Callable[[QuantizedParameter], Tensor]) -> None:
        """Give every untied weight a learned parameter ``<name><suffix>``, of the values ``initial(entry)``.

        Call it when :meth:`rule` can answer. Raises TypeError where that gives None: a file could not be read again.
        """
        self.suffix = suffix
        if self.rule() is None:
            raise TypeError(f"{type(self).__name__}: learn() was called but rule() gives None; files need the rule")
        self._learned = LearnedParameters(type(self).__name__, suffix, self.selection.originals, initial)

    def attach(self, lowering: LowerPrecision | None = None) -> None:
        """Register the hooks; the last step of a constructor."""
        self._attachment = Attachment(self, self.model, self.selection, lowering)
        self._attachment.attach()
        self._presence: Presence | None = Presence(type(self).__name__, self.model, self.selection)

    def check_model(self) -> None:
        """RuntimeError where the model is no longer the one that this was attached to. After :meth:`detach` nobody
        asks."""
        if self._presence is not None and not torch.compiler.is_compiling():
            self._presence.check()

    def float_value(self, entry: QuantizedParameter) -> Tensor:
        """A weight's training value, all of it, whether or not :meth:`quantize` is in force."""
        return self._eval.whole_values([entry])[0]

    def storable(self, entry: QuantizedParameter) -> Tensor:
        """A weight as an export quantises it."""
        return self.storable_together([entry])[0]

    def storable_together(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        """The same of several weights, those in shards gathered together."""
        values = self._eval.whole_values(entries)
        return [value.float() if value.dtype == torch.float64 else value for value in values]

    # -- what is learned ---------------------------------------------------------------------------------------------

    @property
    def weights(self) -> list[Weight]:
        """Every place of a quantised weight, in selection order: name, parameter, learned values, widths, ties."""
        return [Weight(entry, self.widths_of) for entry in self._qparams]

    def learned_parameters(self) -> list[nn.Parameter]:
        """What is learned, one parameter for each untied weight, in selection order."""
        return [] if self._learned is None else self._learned.parameters()

    def setup_optimizer(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        """Add what is learned to ``optimizer`` as one group with these options.

        Raises:
            RuntimeError: the optimizer holds it already, another one was set up, or a learning rate scheduler of the
                optimizer counts its groups.
        """
        if self._learned is not None:
            self._learned.add_to(optimizer, **options)
            self.training_may_begin()

    def no_optimizer(self) -> None:
        """Say that no optimizer will train what is learned, or one set up by hand: training forwards may begin."""
        if self._learned is not None:
            self._learned.may_train = True
            self.training_may_begin()

    def parameter_groups(
        self,
        model: nn.Module | None = None,
        *,
        lr: float | None = None,
        bits_lr: float | None = None,
        matrices: bool = False,
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer that other code makes: the parameters of ``model``, then what is learned.

        ``torch.optim.AdamW(quantizer.parameter_groups(lr=1e-4, bits_lr=0.02))`` stands for making the optimizer and
        :meth:`setup_optimizer`; schedulers made of it know all groups. What is learned gets ``weight_decay`` 0.

        Args:
            model: the quantizer's, or a module around it, such as one with a head or a loss; None: the quantizer's.
            lr: learning rate of the model's own parameters; None: the optimizer's.
            bits_lr: of what is learned (bits, or steps); None: the optimizer's.
            matrices: give three groups, the first one with the parameters of two dimensions alone, for optimizers
                that take no others (``torch.optim.Muon``); the other two are for a second optimizer.

        Raises:
            RuntimeError: an optimizer was set up already. ValueError: ``model`` lacks what is learned.
        """
        weights: dict[str, Any] = {} if lr is None else {"lr": lr}
        learned = {"weight_decay": 0.0} if bits_lr is None else {"weight_decay": 0.0, "lr": bits_lr}
        model = self.model if model is None else model
        if self._learned is None:
            groups = [{"params": without_logits(model), **weights}]
        else:
            groups = self._learned.groups(model, weights, learned)
            self.training_may_begin()
        if matrices:
            first, rest = groups[0], groups[1:]
            split: list[list[nn.Parameter]] = [[], []]
            for param in first["params"]:
                split[param.dim() != 2].append(param)
            groups = [{**first, "params": params} for params in split] + rest
        return groups

    def training_may_begin(self) -> None:
        """Make what a compiled forward cannot make."""

    def clear_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove what is learned, and what the optimizer remembers of it, from all groups of ``optimizer``."""
        if self._learned is not None:
            self._learned.remove_from(optimizer)

    def check_unused(self) -> None:
        """Zero the learned gradient of weights that took no part in the loss (their own is None or all zero)."""
        if self._learned is not None:
            self._learned.zero_unused()

    # -- forwards ----------------------------------------------------------------------------------------------------

    def begin_training(self) -> Draw | None:
        """A training forward begins: what it sees. Called by the attachment."""
        self.check_model()
        if self._learned is not None and not self._learned.may_train:
            raise self._learned.refuse_training()
        if self.selection.mesh is not None:
            self._begin_sharded()
        if self._eval.kept or self._eval.in_place:
            self._eval.leave()
        return self.training_draw()

    def _begin_sharded(self) -> None:
        if self._learned is not None:
            self._learned.refuse_replaced()
        problem = self.unsharded_only()
        if problem is not None:
            raise RuntimeError(f"{type(self).__name__}: the model is sharded, and {problem} (docs/distributed.md)")

    def traced_training(self) -> Maker | None:
        """The same inside a compiled graph, where nothing is remembered."""
        if self._learned is not None and not self._learned.may_train:
            raise self._learned.refuse_training()
        self._refuse_sharded("compiled", "leave torch.compile out")
        draw = self.training_draw()
        return None if draw is None else draw.maker

    def begin_eval(self) -> Draw:
        """An eval forward begins: what it sees. Called by the attachment."""
        self.check_model()
        if self.selection.mesh is not None:
            self._begin_sharded()
        return Draw(self._eval.make, rest=self._eval.rest())

    def traced_eval(self) -> list[tuple[Slot, Tensor]]:
        """The same inside a compiled graph."""
        self._refuse_sharded("compiled", "leave torch.compile out")
        return self._eval.made_anew()

    def quantize(self) -> bool:
        """Replace the weights by their quantised values, in place.

        It holds until :meth:`unquantize` or the next training forward.

        Returns:
            True, or False when they are replaced already.
        """
        self.check_model()
        self._refuse_sharded("quantised in place", "diffq_fast.save gathers it into a file; eval forwards work")
        return self._eval.put_in_place()

    def _refuse_sharded(self, treated: str, instead: str) -> None:
        if self.selection.mesh is not None:
            who = type(self).__name__
            raise RuntimeError(f"{who}: a sharded model cannot be {treated}; {instead} (docs/distributed.md)")

    def unquantize(self) -> None:
        """Put the float weights back after :meth:`quantize`; harmless when there is nothing to put back.

        A weight that was written in the meantime, by ``load_state_dict`` for one, keeps what was written.
        """
        self._eval.put_back()

    @contextmanager
    def enter_quantize(self) -> Iterator[None]:
        """Context in which the model holds its quantised weights; the float weights are back afterwards."""
        was_in_place = self._eval.in_place
        try:
            self.quantize()
            yield
        finally:
            if not was_in_place:
                self.unquantize()

    def bake(self) -> None:
        """Make the quantised weights permanent and detach: what is left is a plain model."""
        self.quantize()
        self._eval.keep_in_place()
        self.detach()

    def detach(self) -> None:
        """Remove the hooks and the learned parameters from the model; the weights stay as they are.

        Sizes and exports still work afterwards, from what was learned.
        """
        self._presence = None
        self._attachment.detach()
        if self._learned is not None:
            self._learned.detach()

    # -- size --------------------------------------------------------------------------------------------------------

    def model_size(self, exact: bool = False) -> Tensor:
        """Size of the compressed model in MB (2**20 bytes), as a 0-dim tensor on the weights' device.

        Differentiable in the logits, so it can be a penalty; asks the device for nothing. Unquantised parameters count
        16 bits per element with ``float16``, else 32; tied weights count once.

        Args:
            exact: with the whole numbers of bits that an export uses.
        """
        self.check_model()
        if not torch.compiler.is_compiling() and self._is_on_cpu():
            self.tell_faults()
        total = self.quantised_bits(exact) + self.plain_bits()
        if not isinstance(total, Tensor):
            slots = [*self._qparams, *self.selection.rest]
            device = slots[0].param.device if slots else torch.device("cpu")
            return torch.tensor(total / BITS_PER_MB, dtype=torch.float32, device=device)
        return total / BITS_PER_MB

    def _is_on_cpu(self) -> bool:
        """Whether reading a value of the weights costs no wait for a device."""
        return all(slot.param.device.type == "cpu" for slot in self._qparams)

    def plain_bits(self) -> int:
        """Bits that the parameters take that are not quantised."""
        return sum(slot.param.numel() for slot in self.selection.rest) * (16 if self.float16 else 32)

    def true_model_size(self) -> float:
        """``model_size(exact=True)`` as a float, in MB."""
        self.check_model()
        with torch.no_grad():
            self.tell_faults()
            size = self.model_size(exact=True)
            if size.is_meta:
                raise self._without_values()
            return float(size)

    def _without_values(self) -> ValueError:
        name = next(slot.full_name for slot in [*self._qparams, *self.selection.rest] if slot.param.is_meta)
        return ValueError(f"{type(self).__name__}: {name} must hold values for its size, got a meta tensor")

    def packed_model_size(self) -> float:
        """MB of the pickled packed state."""
        return pickled_size(self.get_quantized_state(packed=True), scheme_of(type(self)).stored_name) / 2**20

    def compressed_model_size(self, compress_level: int = -1, num_workers: int = 8) -> float:
        """MB of the unpacked state, saved by torch and compressed by zlib in chunks of 1 MB.

        Args:
            compress_level: zlib's, -1 … 9.
            num_workers: threads that compress.
        """
        return compressed_bytes(self.get_quantized_state(packed=False), compress_level, num_workers) / 2**20

    # -- diffq's stored states ---------------------------------------------------------------------------------------

    def get_quantized_state(self, packed: bool = True, torch_pack: bool = False) -> dict[str, Any]:
        """The quantised model as diffq stores it: ``quantized``, ``float16``, ``others``, ``meta``.

        Args:
            packed: pack the levels into bit planes.
            torch_pack: in the layout of ``diffq_fast.torch_pack`` instead of ``diffq_fast.bitpack``.

        Raises:
            ValueError: a weight has NaN or infinite elements, or a shape that this form cannot hold (a ragged last
                group, ranges per group); the packed file of :func:`diffq_fast.save` holds those.
        """
        self.check_model()
        self.tell_faults()
        with torch.no_grad():
            sound = list(self._exporter.sound_ranges())
            entries = [self.stored_entry(entry, ranges, packed, torch_pack) for entry, _, ranges in sound]
            rest = self._eval.whole_values(self.selection.rest)
        meta = build_meta(self.stored_arguments(packed), type(self), packed=packed, torch_pack=torch_pack)
        half, full = (rest, []) if self.float16 else ([], rest)
        return build_state(entries, float16=half, others=full, meta=meta)

    def restore_quantized_state(self, state: Any, quantized: Any = None) -> None:
        """Read a stored state into the model: weights, and what was learned for them.

        Args:
            state: from :meth:`get_quantized_state` or from diffq; or the model, see ``quantized``.
            quantized: demucs calls ``restore_quantized_state(model, state["quantized"])``: the bare list.

        Raises:
            ValueError: the state does not fit the model; nothing is changed then.
        """
        self._refuse_sharded("filled from a stored state", "convert it with diffq-fast convert and use diffq_fast.load")
        parsed = parse_for(type(self), state if quantized is None else quantized)
        rest = match_rest(self.selection, parsed, self.float16, bare=quantized is not None)
        scheme = scheme_of(type(self))
        with torch.no_grad():
            stated = with_defaults(type(self), parsed.init_kwargs) if parsed.meta else {}
            arguments = self.decoding_arguments(stated)
            pairs = zip(self.selection.originals, parsed.quantized, strict=True)
            decoded = [StoredWeight(scheme, entry, stored, arguments) for entry, stored in pairs]
            self.unquantize()
            for weight in decoded:
                weight.put(self.set_learned)
            for slot, value in rest:
                slot.param.copy_(value)

    # -- the packed file ---------------------------------------------------------------------------------------------

    def export_model(self, learned: bool = False) -> ExportedModel:
        """The whole model as a packed file holds it, for :func:`diffq_fast.save`.

        Args:
            learned: with what was learned too, so that training can go on from a file.

        Raises:
            ValueError: a weight has NaN or infinite elements.
        """
        self.check_model()
        self.tell_faults()
        with torch.no_grad():
            suffix = None if self._learned is None else self._learned.suffix
            return self._exporter.model(self.exported, self.arguments, suffix, learned)

    def export_weights(self) -> list[ExportedWeight]:
        """The weights, how they are quantised, and their other names.

        Raises:
            ValueError: a weight has NaN or infinite elements.
        """
        self.check_model()
        self.tell_faults()
        with torch.no_grad():
            return list(self._exporter.weights(self.exported))

    def check_exportable(self) -> None:
        """ValueError where a weight has NaN or infinite elements, or half precision cannot hold a parameter."""
        with torch.no_grad():
            for _ in self._exporter.sound_ranges():
                pass

    def state_dict_names(self) -> dict[int, list[str]]:
        """All names of each parameter in the model's ``state_dict``, by the parameter's id."""
        return {id(place.param): place.names for place in self._exporter.places()}

    # -- others ------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return described(self)
