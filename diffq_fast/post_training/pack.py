"""Pack a float checkpoint to a size or a quality: what the other files of this folder do, in order."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..files.atomic_file import check_output
from ..files.safetensors_reader import Progress, printable
from ..packed.checkpoint import MEGABYTE
from ..packed.coding import CodedTensor, code_levels
from ..packed.contents import PackedContents, packed_bytes, write_packed
from .allocation import (
    HIGHEST_EXPONENT,
    LOWEST_EXPONENT,
    Estimate,
    Sample,
    decibels,
    estimate,
    in_one_unit,
    sample_of,
    scale_for,
)
from .calibration import Calibration, CalibrationFile
from .plan import DEFAULT_BITS, Selection, Target
from .sources import Source, open_source
from .steps import Moments, Sensitivity, as_matrix, moments_in_rows, quantise, sensitivity_of

ROUNDS = 4  # of quantising everything, where one of them fits
MOST_ROUNDS = 12  # where none does yet
SLACK = 0.99  # of the bytes asked for: a file that takes more of them than that is near enough
AIM = 0.996  # of the bytes asked for: feedback makes levels a bit larger than the samples foretell
QUALITY_SLACK = 0.05  # decibels
HEADER_BYTES = 600  # of a file, before its tensors are named
KEPT_BYTES = 1 << 30  # of factors of second moments, which every round needs: those beyond are made anew


@dataclass(frozen=True)
class PackingResult:
    """What a packing came to.

    file_bytes: of the file. bits_per_weight: of the packed weights over their elements, without the rest of the file.
    quality: decibels. weights: name -> bits per element of each packed weight. double: float64 tensors, kept as they
    are.
    """

    file_bytes: int
    bits_per_weight: float
    quality: float
    weights: dict[str, float]
    double: list[str] = field(default_factory=list)


def pack_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    bits_per_weight: float | None = None,
    target_mb: float | None = None,
    quality: float | None = None,
    keep: Mapping[str, float | None] | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    min_size: float = 0.01,
    float16: bool = True,
    progress: Progress | None = None,
) -> PackingResult:
    """Pack a float checkpoint into a file of coded levels, without training.

    The steps follow from one number, found by bisection, see ``post_training/steps.py``; tensors are read one by one,
    so that only the packed file and the largest weight need fit in memory.

    Args:
        source: a safetensors file, a ``*.index.json`` of shards, a folder with one of these, or what ``torch.save``
            wrote.
        output: the packed file, replaced atomically.
        bits_per_weight: bits of the packed weights (levels, steps, tables) over their elements; what ``keep`` names is
            not counted. 4 by default.
        target_mb: size of the whole file in MB (2^20 bytes), in its place. The file is at most that, and 2 % below it
            at most unless it would be as good as the original.
        quality: in their place, decibels of signal to noise: 10 · log10 of the weighted squares of all packed weights
            over those of their errors. The weights are, without calibration, 1 over each row's mean square (less in
            long embeddings), so that 20 is an error of a tenth; with it those of :func:`diffq_fast.calibrate`. About 6
            decibels are one bit.
        keep: fnmatch pattern of names -> bits per weight for these, or None to keep them as they are.
        calibration: what :func:`diffq_fast.calibrate` gives, or a safetensors file of it.
        min_size: MB of float32; smaller tensors, and those of one dimension, are kept.
        float16: store kept float32 tensors in half precision where that loses no more than 0.1 % of any element.
        progress: called as progress(tensor name, bytes done, bytes in all).

    Raises:
        ValueError: a size that cannot be reached, NaN or infinity in a weight, a calibration that does not fit, a
            damaged file; named. OSError: a file cannot be read or written.
    """
    target = Target(bits_per_weight, target_mb, quality)
    selection = Selection(min_size, keep or {})
    with ExitStack() as stack:
        opened = stack.enter_context(open_source(source))
        check_output("pack", output, *opened.paths)
        packing = Packing(opened, selection, CalibrationFile(calibration, stack), progress)
        packed, reached = packing.reach(target, float16)
        write_packed(output, packing.contents(packed, float16))
        bits = {name: 8 * each.nbytes / each.count for name, each in packed.items()}
        total = 8 * sum(each.nbytes for each in packed.values()) / max(sum(each.count for each in packed.values()), 1)
        return PackingResult(os.path.getsize(output), total, reached, bits, packing.double)


class Packing:
    """One checkpoint, with samples of its weights: sizes at any scale, and the weights at the one that is chosen."""

    def __init__(
        self, source: Source, selection: Selection, calibration: CalibrationFile, progress: Progress | None = None
    ) -> None:
        selection.check_patterns(source)
        self._source, self._selection, self._calibration, self._progress = source, selection, calibration, progress
        entries = source.entries
        self.names = [name for name, entry in entries.items() if selection.packs(name, entry)]
        self.double = [name for name, entry in entries.items() if entry.dtype == torch.float64 and len(entry.shape) > 1]
        self._bytes = {name: entries[name].count * entries[name].dtype.itemsize for name in self.names}
        self._done, self._total = 0, 2 * sum(self._bytes.values())
        self._factors_kept: dict[str, Sensitivity] = {}
        self._factor_bytes = 0
        samples = [self._sample(name) for name in self.names]
        self._factors = in_one_unit(samples)
        scaled = {each.name: each.scaled(self._factors[each.name]) for each in samples}
        self._fixed = {name: self._fixed_scale(each) for name, each in scaled.items() if self._asked_bits(name)}
        self.samples = {name: each for name, each in scaled.items() if name not in self._fixed}
        self._kept_estimate = sum(
            (estimate(scaled[name], scale) for name, scale in self._fixed.items()), Estimate(0.0, 0.0, 0.0)
        )

    def estimate(self, scale: float) -> Estimate:
        """Size and error of all packed weights, from the samples."""
        return sum((estimate(each, scale) for each in self.samples.values()), self._kept_estimate)

    def other_bytes(self, float16: bool) -> float:
        """Bytes of the file beside the packed weights: other tensors and the header, about."""
        names = set(self.names)
        total = float(HEADER_BYTES)
        for name, entry in self._source.entries.items():
            if name in names:
                total += 340 + 3 * len(name)
                continue
            half = float16 and entry.dtype == torch.float32
            total += entry.count * (2 if half else entry.dtype.itemsize) + 110 + len(name) * (2 if half else 1)
        return total

    def reach(self, target: Target, float16: bool) -> tuple[dict[str, CodedTensor], float]:
        """The packed weights for what is asked for, and their quality in decibels."""
        if not self.names:
            return {}, float("inf")
        if target.quality is not None:
            return self._reach_quality(target.quality)
        if target.target_mb is not None:
            return self._reach_bytes(target.target_mb * MEGABYTE, self.other_bytes(float16), float16)
        bits = DEFAULT_BITS if target.bits_per_weight is None else target.bits_per_weight
        return self._reach_bytes(self.bits_for(bits) / 8, 0.0)

    def bits_for(self, bits_per_weight: float) -> float:
        """Bits of all packed weights, at so many for each element of those whose size is not fixed beforehand."""
        return bits_per_weight * self.elements + self._kept_estimate.bits

    @property
    def elements(self) -> int:
        """Of the weights whose size is not fixed beforehand."""
        return sum(each.count for each in self.samples.values())

    def _reach_bytes(
        self, asked: float, other: float, float16: bool | None = None
    ) -> tuple[dict[str, CodedTensor], float]:
        """At most ``asked`` bytes, about ``other`` of them not the weights'; of the whole file if float16 is given."""
        least = other + self.estimate(2.0**HIGHEST_EXPONENT).bits / 8
        if asked < least:
            problem = f"{asked:,.0f} bytes are asked for, about {least:,.0f} are the least"
            raise ValueError(f"pack: {self._source.path}: {problem}; ask for more, or keep less")
        scale = scale_for(lambda scale: other + self.estimate(scale).bits / 8 <= AIM * asked, rising=False)
        best: tuple[dict[str, CodedTensor], float] | None = None
        tried: list[tuple[float, float]] = []  # exponents of the scale, and their sizes
        largest = 0.0  # that fits
        for number in range(MOST_ROUNDS):
            packed, quality = self.pack(scale)
            size = sum(each.nbytes for each in packed.values())
            if float16 is not None:
                size = packed_bytes(self.contents(packed, float16))
            if largest < size <= asked:
                best, largest = (packed, quality), size
            enough = largest >= SLACK * asked or scale <= 2.0**LOWEST_EXPONENT or number + 1 >= ROUNDS
            if best is not None and enough:
                return best
            tried.append((math.log2(scale), size))
            scale = 2.0 ** self._next_exponent(tried, AIM * asked)
        raise ValueError(f"pack: {self._source.path}: no steps were found for {asked:,.0f} bytes; ask for more")

    def _next_exponent(self, tried: list[tuple[float, float]], wanted: float) -> float:
        """Where the line through the last two sizes has the one that is wanted; at first, and where they say nothing,
        half a bit of each element for each octave of the scale."""
        slope = -max(self.elements, 1) / 16
        exponent, size = tried[-1]
        if len(tried) > 1 and exponent != tried[-2][0]:
            measured = (size - tried[-2][1]) / (exponent - tried[-2][0])
            slope = measured if 2 * slope < measured < slope / 16 else slope
        return min(exponent + (wanted - size) / slope, HIGHEST_EXPONENT)

    def _reach_quality(self, asked: float) -> tuple[dict[str, CodedTensor], float]:
        scale = scale_for(lambda scale: self.estimate(scale).quality >= asked, rising=True)
        for _ in range(ROUNDS):
            packed, quality = self.pack(scale)
            if asked <= quality <= asked + 4 * QUALITY_SLACK:
                break
            scale *= 10 ** ((quality - asked - QUALITY_SLACK) / 10)
        return packed, quality

    def pack(self, scale: float) -> tuple[dict[str, CodedTensor], float]:
        """All weights at this scale, and the quality that was measured on them."""
        packed, noise, signal = {}, 0.0, 0.0
        for name in self.names:
            weight = self._source.tensor(name)
            matrix = as_matrix(weight)
            moments = moments_in_rows(self._calibration.moments(name), weight, matrix, name)
            found = self._sensitivity(name, matrix, moments)
            levels, codes = quantise(matrix, found, self._fixed.get(name, scale))
            columns = matrix.shape[1]
            packed[name] = code_levels(
                levels.reshape(weight.shape), codes, group_size=columns, dtype=weight.dtype, name=name
            )
            errors = matrix - levels * found.step_values(codes)[:, None]
            noise += _cost(errors, found, moments)
            signal += _cost(matrix, found, moments)
            self._tell(name)
        return packed, decibels(signal, noise)

    def contents(self, packed: Mapping[str, CodedTensor], float16: bool) -> PackedContents:
        """What the file is to hold: the packed weights, and everything else."""
        plain = {name: self._source.tensor(name) for name in self._source.entries if name not in packed}
        half = {name: each.dtype for name, each in plain.items() if float16 and fits_half(each)}
        info = {"class": "none", "arguments": {}}
        return PackedContents(dict(packed), plain, ties=self._source.ties, half=half, quantizer=info)

    def _sample(self, name: str) -> Sample:
        weight = self._source.tensor(name)
        matrix = as_matrix(weight)
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"pack: {printable(name)}: expected finite elements, found NaN or infinity; repair them")
        moments = moments_in_rows(self._calibration.moments(name), weight, matrix, name)
        found = self._unscaled(name, matrix, moments)
        self._tell(name)
        return sample_of(name, matrix, found, moments is None or moments.rows is None or moments.columns is None)

    def _sensitivity(self, name: str, matrix: Tensor, moments: Moments | None) -> Sensitivity:
        return self._unscaled(name, matrix, moments).scaled(self._factors[name])

    def _unscaled(self, name: str, matrix: Tensor, moments: Moments | None) -> Sensitivity:
        if name in self._factors_kept:
            return self._factors_kept[name]
        found = sensitivity_of(matrix, moments, name)
        if self._factor_bytes + found.nbytes <= KEPT_BYTES:
            self._factors_kept[name] = found
            self._factor_bytes += found.nbytes
        return found

    def _asked_bits(self, name: str) -> float | None:
        return self._selection.override(name)[1]

    def _fixed_scale(self, sample: Sample) -> float:
        bits = self._asked_bits(sample.name) or 0.0
        least = estimate(sample, 2.0**HIGHEST_EXPONENT).bits / sample.count
        if bits < least:
            asked = f"{bits:g} bits per weight are asked for"
            raise ValueError(f"pack: keep: {printable(sample.name)}: {asked}, about {least:.3g} are the least")
        return scale_for(lambda scale: estimate(sample, scale).bits <= bits * sample.count, rising=False)

    def _tell(self, name: str) -> None:
        self._done = min(self._done + self._bytes[name], self._total)
        if self._progress is not None:
            self._progress(name, self._done, self._total)


def fits_half(tensor: Tensor) -> bool:
    """Whether float16 holds each element of a float32 tensor to 0.1 %, or 0.01 % of the mean of those near zero."""
    if tensor.dtype != torch.float32 or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
        return False
    lost = (tensor.to(torch.float16).to(torch.float32) - tensor).abs()
    return bool((lost <= 1e-3 * tensor.abs().clamp(min=0.1 * float(tensor.abs().mean()))).all())


def _cost(errors: Tensor, sensitivity: Sensitivity, moments: Moments | None) -> float:
    """The sum over the rows of importance · e M eᵀ, or over the columns."""
    if sensitivity.across is not None and moments is not None and moments.rows is not None:
        turned = errors.view(len(moments.rows), -1)
        each = ((moments.rows.to(torch.float32) @ turned) * turned).sum(0)
        return float(sensitivity.across.columns @ each) * sensitivity.unit
    columns = None if moments is None else moments.columns
    if columns is None:
        each = errors.square().sum(1)
    elif columns.ndim == 1:
        each = errors.square() @ columns.to(torch.float32)
    else:
        each = ((errors @ columns.to(torch.float32)) * errors).sum(1)
    return float(sensitivity.importance @ each)
