"""The weights that a training forward of DiffQ sees: noisy, or, with frozen bits, rounded.

Weights are made in buckets: 300 small tensors need a few launches, and each bucket's autograd node runs right behind
the last use of its weights, so that a distributed wrapper can send gradients while others are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import functional
from ..reference.add_noise import noisy_weight
from ..reference.groups import compute_dtype
from ..reference.options import NoiseOptions
from .attachment import Draw
from .frozen import FrozenBits
from .gathering import gathered_for_forward
from .learned_ranges import LearnedRanges
from .lower_precision import LOWER_DTYPES, Dtypes, LoweringMaker, LowerPrecision
from .selection import QuantizedParameter, Selection, untied
from .shards import agreed

BUCKET_BYTES = 64 * 2**20


class Piece(NamedTuple):
    """A weight of a bucket. ``stream`` is its index among the untied weights."""

    entry: QuantizedParameter
    weight: Tensor
    logit: Tensor
    stream: int


# Makes the weights of a bucket for training, in a dtype, or each in its own (None).
BucketMaker = Callable[[Sequence[Piece], torch.dtype | None], list[Tensor]]
# The same, given a key for each device.
KeyedMaker = Callable[[dict[torch.device, Tensor], Sequence[Piece], torch.dtype | None], list[Tensor]]


class TrainingWeights:
    """Makes the weights of one training forward after the other.

    Args:
        selection: the weights.
        frozen: says whether bits are frozen, and rounds the weights then.
        lowering: which weights may be made in autocast's dtype; None: none.
        ranges: the learned ones; None: each weight's own.
    """

    def __init__(
        self,
        selection: Selection,
        frozen: FrozenBits,
        lowering: LowerPrecision | None,
        ranges: LearnedRanges | None = None,
    ) -> None:
        self.entries = selection.quantised
        self._selection, self._frozen, self._lowering, self._ranges = selection, frozen, lowering, ranges
        self._streams = {entry: index for index, entry in enumerate(selection.originals)}
        self._nonfinite: dict[tuple[int, ...], Tensor] = {}

    # -- one forward -------------------------------------------------------------------------------------------------

    def draw(self, options: NoiseOptions, rng: str) -> Draw:
        """Draw what is random in one forward: a key for each device, or, with ``rng`` "torch", the noise itself."""
        if rng == "torch" and not self._frozen.rounds_weights:
            generators = _generator_states(self._devices(self.pieces(self._selection.originals)))
            return Draw(TorchNoise(self._selection, options, self._frozen).make, generators)
        return self.draw_keys(partial(self._noisy, options))

    def draw_keys(self, noisy: KeyedMaker) -> Draw:
        """Draw a key for each device: with them ``noisy`` makes the weights of a bucket, unless frozen bits round."""
        if self._selection.mesh is not None:
            return self._draw_one_key(noisy)
        pieces = self.pieces(self._selection.originals)
        devices = self._devices(pieces)
        compiling = torch.compiler.is_compiling()
        generators = _generator_states(devices)
        make: BucketMaker = self._frozen.rounded
        if not self._frozen.rounds_weights:
            make = partial(noisy, {device: functional.draw_key(like) for device, like in devices.items()})
        weights_of_forward = ForwardWeights(self, make, None if compiling else pieces)
        if self._lowering is None or compiling:
            return Draw(weights_of_forward, generators)
        return Draw(LoweringMaker(weights_of_forward.in_dtypes, self._lowering.dtypes()), generators)

    def _draw_one_key(self, noisy: KeyedMaker) -> Draw:
        """The same where weights are sharded: the first process's key, from which each one makes the whole noise.

        The weights are found when they are made: each when its module has gathered it.
        """
        devices = {entry.param.device: entry.param for entry in reversed(self._selection.originals)}
        generators = _generator_states(devices)
        make: BucketMaker = self._frozen.rounded
        if not self._frozen.rounds_weights:
            likes = {device: torch.empty(0, dtype=torch.float32, device=device) for device in devices}
            keys = {device: functional.draw_key(like) for device, like in likes.items()}
            make = partial(noisy, {device: agreed(key, self._selection.mesh) for device, key in keys.items()})
        return Draw(ForwardWeights(self, make, None), generators)

    def _pieces_of_shards(self, entries: Sequence[QuantizedParameter]) -> list[Piece]:
        """All of the weights, and of what is learned for them."""
        pairs = zip(entries, gathered_for_forward(entries), strict=True)
        return [Piece(entry, entry.visible, logit, self._streams[entry]) for entry, logit in pairs]

    @staticmethod
    def _devices(pieces: Sequence[Piece]) -> dict[torch.device, Tensor]:
        """The devices, each with one of its weights."""
        return {piece.weight.device: piece.weight for piece in reversed(pieces)}

    def pieces(self, entries: Sequence[QuantizedParameter]) -> list[Piece]:
        """Of untied entries, as they are now. Read directly where they stand: with 300 small weights, a property for
        each would take as long as their kernels."""
        if self._selection.mesh is not None:
            return self._pieces_of_shards(entries)
        places = [(entry, entry.module._parameters, self._streams[entry]) for entry in entries]
        tensors = [(each.get(entry.name), each.get(entry.learned_name or "")) for entry, each, _ in places]
        if any(
            weight is None or logit is None for weight, logit in tensors
        ):  # detached, or gone: entries know, or say so
            tensors = [(entry.param, entry.logit) for entry in entries]
        return [
            Piece(entry, cast(nn.Parameter, weight), cast(nn.Parameter, logit), stream)
            for (entry, _, stream), (weight, logit) in zip(places, tensors, strict=True)
        ]

    def _noisy(
        self,
        options: NoiseOptions,
        keys: dict[torch.device, Tensor],
        bucket: Sequence[Piece],
        dtype: torch.dtype | None,
    ) -> list[Tensor]:
        weights = [piece.weight for piece in bucket]
        logits: list[Tensor] = [piece.logit for piece in bucket]
        streams = [piece.stream for piece in bucket]
        if self._frozen.active:
            options, logits = self._frozen.noise_of(options, bucket)
        key = keys[weights[0].device]
        if self._ranges is not None:
            return self._ranges.noisy(bucket, logits, key, options, self._counter(streams, logits), dtype)
        return functional.add_noise(
            weights,
            logits,
            key,
            options,
            streams=streams,
            nonfinite=self._counter(streams, logits),
            dtype=dtype,
        ).noisy

    # -- non-finite gradients ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the counters of all buckets: a compiled forward cannot."""
        if self._selection.mesh is not None:
            return  # which no compiled forward reads
        for bucket in _buckets(self.pieces(self._selection.originals)):
            self._counter([piece.stream for piece in bucket], [piece.logit for piece in bucket])

    def _counter(self, streams: Sequence[int], logits: Sequence[Tensor]) -> Tensor | None:
        """The leaf whose gradient counts the non-finite logit gradients of a bucket. None where there are none to
        count, or none can be made (inside a compiled graph that comes before :meth:`prepare`)."""
        if not torch.is_grad_enabled() or not any(logit.requires_grad for logit in logits):
            return None
        key, device = tuple(streams), logits[0].device
        counter = self._nonfinite.get(key)
        if torch.compiler.is_compiling() or (counter is not None and counter.device == device):
            return counter
        self._nonfinite[key] = torch.zeros(len(key), dtype=torch.float32, device=device, requires_grad=True)
        return self._nonfinite[key]

    def take_nonfinite(self) -> dict[str, int]:
        """How many logit gradients of each weight, by name, were not finite since the last call. Waits for the device
        where any backward has run."""
        counts: dict[str, int] = {}
        for streams, counter in self._nonfinite.items():
            if counter.grad is not None:
                for stream, count in zip(streams, counter.grad.tolist(), strict=True):
                    name = self._selection.originals[stream].full_name
                    counts[name] = counts.get(name, 0) + int(count)
                counter.grad = None
        return {name: count for name, count in counts.items() if count}


class ForwardWeights:
    """The ``Maker`` of one forward.

    Args:
        weights: finds the weights of given entries as they are.
        make: makes those of a bucket.
        fresh: the pieces of the whole model, if they are known: used once, then read anew, so that forwards that are
            remembered keep no old weights alive.
    """

    def __init__(self, weights: TrainingWeights, make: BucketMaker, fresh: list[Piece] | None) -> None:
        self._weights, self._make, self._fresh = weights, make, fresh

    def __call__(self, indices: Sequence[int]) -> list[Tensor]:
        return self.in_dtypes({}, indices)

    def in_dtypes(self, dtypes: Dtypes, indices: Sequence[int]) -> list[Tensor]:
        """The weights of these indices, those of ``dtypes`` in these dtypes."""
        entries = [self._weights.entries[index] for index in indices]
        pieces, self._fresh = self._fresh, None
        if pieces is None or len(entries) != len(self._weights.entries):
            pieces = self._weights.pieces(untied(entries))
        made: dict[QuantizedParameter, Tensor] = {}
        buckets = list(_buckets_by_dtype(pieces, dtypes))
        owners = [[piece.entry for piece in bucket] for _, bucket in buckets]
        wanted = [entry.tied_to or entry for entry in entries]
        for (dtype, bucket), owner in zip(buckets, owners, strict=True):
            weights = self._make(bucket, dtype)
            # Autograd runs ready nodes by descending number. Made first, a bucket's node would run after the backward
            # of the whole model; with the highest number it runs as soon as its last gradient is there.
            node: Any = None if torch.compiler.is_compiling() else weights[0].grad_fn
            if node is not None:
                node._set_sequence_nr(2**62)
            made.update(zip(owner, weights, strict=True))
        return list(map(made.__getitem__, wanted))


class TorchNoise:
    """Noise from torch's own generator, in the order in which diffq 0.2.4 draws it: the mode in which parity is tested.

    Keeps the generators' states of one forward, not the noise, to draw again in a checkpoint.
    """

    def __init__(self, selection: Selection, options: NoiseOptions, frozen: FrozenBits) -> None:
        self._selection, self._options, self._frozen = selection, options, frozen
        devices = [entry.param.device for entry in selection.originals]
        self._cuda_devices = sorted({device.index for device in devices if device.type == "cuda"})
        self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in self._cuda_devices)]
        self._drawn = False

    def make(self, indices: Sequence[int]) -> list[Tensor]:
        """The noisy weights of the quantised parameters ``indices``."""
        wanted = [self._selection.quantised[index].original for index in indices]
        if not self._drawn:
            self._drawn = True
            made = self._draw(set(wanted))
        else:
            with torch.random.fork_rng(self._cuda_devices):
                self._restore_generators()
                made = self._draw(set(wanted))
        return [made[entry] for entry in wanted]

    def _draw(self, wanted: set[QuantizedParameter]) -> dict[QuantizedParameter, Tensor]:
        made = {}
        originals = self._selection.originals
        pieces = [Piece(entry, entry.param, entry.logit, 0) for entry in originals]
        options = self._options
        logits: list[Tensor] = [piece.logit for piece in pieces]
        if self._frozen.active:
            options, logits = self._frozen.noise_of(options, pieces)
        for piece, logit in zip(pieces, logits, strict=True):
            like = piece.weight.detach().to(compute_dtype(piece.weight)).reshape(-1)
            noise = torch.rand_like(like) - 0.5 if options.noise_kind == "uniform" else torch.randn_like(like) / 2
            if piece.entry in wanted:
                made[piece.entry] = noisy_weight(piece.weight, logit, noise, options)
        return made

    def _restore_generators(self) -> None:
        torch.set_rng_state(self._states[0])
        for index, state in zip(self._cuda_devices, self._states[1:], strict=True):
            torch.cuda.set_rng_state(state, index)


def _buckets(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Consecutive weights of one device, about ``BUCKET_BYTES`` together."""
    bucket: list[Piece] = []
    size = 0
    for piece in pieces:
        weight = piece.weight
        if bucket and (size >= BUCKET_BYTES or weight.device != bucket[0].weight.device):
            yield bucket
            bucket, size = [], 0
        bucket.append(piece)
        size += weight.numel() * weight.element_size()
    if bucket:
        yield bucket


def _buckets_by_dtype(pieces: Sequence[Piece], dtypes: Dtypes) -> Iterator[tuple[torch.dtype | None, list[Piece]]]:
    """The buckets of the weights that are made in their own dtype (None), then of those in each other one."""
    for dtype in (None, *LOWER_DTYPES) if dtypes else (None,):
        for bucket in _buckets(piece for piece in pieces if dtypes.get(piece.entry) == dtype):
            yield dtype, bucket


def _generator_states(devices: Iterable[torch.device]) -> Hashable:
    """Where torch's generators stand; None inside a compiled graph, where nothing is remembered."""
    return None if torch.compiler.is_compiling() else tuple([generator_state(device) for device in devices])


def generator_state(device: torch.device) -> Hashable:
    """A value that tells whether torch's generator of ``device`` stands where it stood before."""
    if device.type == "meta":
        return None
    if device.type == "cuda":  # without waiting for the device
        generator = torch.cuda.default_generators[device.index]
        return (device, generator.initial_seed(), generator.get_offset())
    module = torch if device.type == "cpu" else torch.get_device_module(device)
    return (device, hash(module.get_rng_state().numpy().tobytes()))
