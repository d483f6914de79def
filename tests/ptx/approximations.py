"""Instructions whose results the PTX manual only bounds: ex2, lg2, rcp, sqrt, rsqrt, sin, cos and div.full."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arithmetic import canonical, f32, f64, flush, u32

MODES = ("exact", "random", "sign", "low", "high")

# Largest errors that the manual documents: relative, absolute.
BOUNDS = {
    "ex2": (2.0**-22, 0.0),
    "rcp": (2.0**-23, 0.0),
    "sqrt": (2.0**-23, 0.0),
    "rsqrt": (2.0**-22.9, 0.0),
    "sin": (0.0, 2.0**-20.5),
    "cos": (0.0, 2.0**-20.5),
    "lg2": (2.0**-22, 0.0),  # between 1/2 and 2: the same as an absolute error
}
_EXACT = {
    "ex2": np.exp2,
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "lg2": np.log2,
}


@dataclass(frozen=True)
class Approximations:
    """``mode``: "exact" rounds once; "random" is off by up to the bound, "sign", "low" and "high" by all of it."""

    mode: str = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"approximations: expected one of {', '.join(MODES)}, got {self.mode!r}")

    def __call__(self, name, x, ftz):
        x = flush(np.asarray(x)) if ftz else np.asarray(x)
        wide = x.astype(f64)
        result = _EXACT[name](wide)
        if self.mode != "exact":
            result = self._off(name, wide, result, self._share(x))
        result = result.astype(f32)
        return canonical(flush(result) if ftz else result)

    def full_quotient(self, a, b):
        """div.full: within 2 ulp, and 0 where the divisor is between 2**126 and 2**128."""
        result = np.asarray(a).astype(f64) / np.asarray(b).astype(f64)
        if self.mode != "exact":
            result = result * (1 + self._share(np.asarray(a)) * 2.0**-22)
        huge = (np.abs(b) > 2.0**126) & np.isfinite(b) & np.isfinite(a)
        return canonical(np.where(huge, f32(0), result.astype(f32)))

    def _off(self, name, x, exact, share):
        relative, absolute = BOUNDS[name]
        if name == "lg2":
            near_one = (x > 0.5) & (x < 2)
            return exact + share * relative * np.where(near_one, 1.0, np.abs(np.where(np.isfinite(exact), exact, 0)))
        return exact * (1 + share * relative) + share * absolute

    def _share(self, x):
        """The error as a share of the bound, -1 to 1: a function of the argument, as the machine's is."""
        if self.mode in ("low", "high"):
            return -1.0 if self.mode == "low" else 1.0
        mixed = (x.view(u32) ^ u32(self.seed)) * u32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> u32(15))) * u32(0x85EBCA77)
        mixed = mixed ^ (mixed >> u32(13))
        if self.mode == "sign":
            return np.where(mixed & u32(0x10000), 1.0, -1.0)
        return mixed / 2.0**31 - 1
