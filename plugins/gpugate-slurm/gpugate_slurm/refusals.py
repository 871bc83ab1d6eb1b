"""What Slurm says when it refuses, in gpugate's errors; its commands and slurmrestd say the same words."""

from __future__ import annotations

import re

from gpugate import Ambiguous, AuthFailed, Misconfigured, NoCapacity, NotFound, ProviderError, Transient

LONGEST_WORDS = 200
UNSPECIFIED = "Unspecified error"
"""slurmrestd 22.05 says this both of a bad token and of a controller that is down."""
_PREFIX = re.compile(
    r"(?:^|\n)\s*(?:sbatch|squeue|scancel|slurm_load_jobs)(?:: )?(?:error: )?"
    r"|Batch job submission failed: "
)
_RULES: tuple[tuple[re.Pattern[str], type[ProviderError]], ...] = tuple(
    (re.compile(words, re.IGNORECASE), kind)
    for words, kind in (
        (r"MaxSubmit|GrpSubmit", NoCapacity),
        (r"partition configuration not available now|required node.* not available", NoCapacity),
        (r"Socket timed out|Zero Bytes were transmitted|Message (?:receive|send) failure", Ambiguous),
        (r"Communication connection failure|Connection reset|Broken pipe|Unexpected message", Ambiguous),
        (r"Unable to contact slurm controller|connect failure|backup controller in standby", Transient),
        (r"temporarily (?:unable|unavailable)|Resource temporarily", Transient),
        (r"invalid partition|partition name specified", Misconfigured),
        (r"Invalid account|Invalid qos|account/partition combination", Misconfigured),
        (r"Access/permission denied|Access denied|not authorized|User's group not permitted", AuthFailed),
        (
            r"authentication (?:credential|error|failure)|Protocol authentication|munge|Invalid user id",
            AuthFailed,
        ),
        (r"Invalid job id|Job/step already completing|already completed", NotFound),
    )
)


def refusal_of(
    said: str, *, submission: bool = False, default: type[ProviderError] = Transient
) -> ProviderError:
    """The error that stands for Slurm's words; only of a submission is a lost answer `Ambiguous`."""
    words = clean(said)
    kind = next((kind for pattern, kind in _RULES if pattern.search(said)), default)
    if kind is Ambiguous and not submission:
        kind = Transient
    return kind(f"Slurm: {words}" if words else "Slurm refuses and does not say why")


def clean(said: str) -> str:
    """One short line, without the command's name before it."""
    words = " ".join(_PREFIX.sub(" ", said).split())
    return words if len(words) <= LONGEST_WORDS else words[:LONGEST_WORDS] + "..."
