"""Noise from torch's own generator, in the order in which diffq 0.2.4 draws it: the mode in which parity is tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reference import operators as reference
from .selection import QuantizedParameter

if TYPE_CHECKING:
    from .diffq import DiffQuantizer


class TorchNoise:
    """The draws of one training forward. Keeps the generators' states, not the noise, to draw again in a checkpoint."""

    def __init__(self, quantizer: DiffQuantizer, firsts: Sequence[QuantizedParameter]) -> None:
        self._quantizer = quantizer
        self._firsts = firsts
        self._cuda_devices = sorted({entry.param.device.index for entry in firsts if entry.param.device.type == "cuda"})
        self._states = self._generator_states()
        self._drawn = False

    def make(self, indices: Sequence[int]) -> list[Tensor]:
        """The noisy weights of the quantised parameters ``indices``."""
        wanted = [self._quantizer._qparams[index].first for index in indices]
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
        quantizer = self._quantizer
        logits, options = quantizer._noise_logits(self._firsts)
        for entry, logit in zip(self._firsts, logits, strict=True):
            like = entry.param.detach().to(reference.compute_dtype(entry.param)).reshape(-1)
            noise = torch.rand_like(like) - 0.5 if quantizer.noise == "uniform" else torch.randn_like(like) / 2
            if entry in wanted:
                made[entry] = reference.noisy_weight(
                    entry.param,
                    logit,
                    noise,
                    quantizer.group_size,
                    per_group=quantizer.range_scope == "group",
                    **options,
                )
        return made

    def _generator_states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in self._cuda_devices)]

    def _restore_generators(self) -> None:
        torch.set_rng_state(self._states[0])
        for index, state in zip(self._cuda_devices, self._states[1:], strict=True):
            torch.cuda.set_rng_state(state, index)
