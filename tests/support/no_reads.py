"""A stand-in for a device that nobody may wait for: reading a value on the host is refused."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

# A number, a bool, or a result whose size depends on values.
READS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "bincount"}


class NoReads(TorchDispatchMode):
    """Refuses the operators that would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in READS, f"{name} reads values on the host"
        return func(*args, **kwargs or {})
