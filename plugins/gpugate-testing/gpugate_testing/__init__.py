"""Test equipment for provider plugins; `ProviderContract` is imported on first use.

It needs pytest, which the simulators and `gpugate provider-check` do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpugate_testing.contract import PaidContract, ProviderContract, ReadOnlyContract

__all__ = ["PaidContract", "ProviderContract", "ReadOnlyContract"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gpugate_testing import contract

    return getattr(contract, name)
