"""The names that a provider plugin needs.

Each is brought when it is asked for: the command line must hear signals before anything heavy is imported.
"""

TYPE_CHECKING = False  # as `typing` has it, which need not be imported for this

if TYPE_CHECKING:
    from gpugate.errors import (
        Ambiguous,
        AuthFailed,
        Blocked,
        Conflict,
        Misconfigured,
        NoCapacity,
        NoFunds,
        NotFound,
        ProviderError,
        RateLimited,
        Transient,
    )
    from gpugate.provider_api import (
        ActiveRole,
        Capabilities,
        Charge,
        Duration,
        Endpoint,
        Phase,
        PodChoice,
        PodReport,
        Price,
        Provider,
        Size,
    )

__all__ = [
    "ActiveRole",
    "Ambiguous",
    "AuthFailed",
    "Blocked",
    "Capabilities",
    "Charge",
    "Conflict",
    "Duration",
    "Endpoint",
    "Misconfigured",
    "NoCapacity",
    "NoFunds",
    "NotFound",
    "Phase",
    "PodChoice",
    "PodReport",
    "Price",
    "Provider",
    "ProviderError",
    "RateLimited",
    "Size",
    "Transient",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gpugate import errors, provider_api

        return getattr(errors if hasattr(errors, name) else provider_api, name)
