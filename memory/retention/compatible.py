"""Which policy goes with which format, and which may go on from where another was."""

from __future__ import annotations

from ...errors import ConfigError, InputError
from .base import RetentionPolicy
from .storage import StorageFormat


def check_together(policy: RetentionPolicy, form: StorageFormat) -> None:
    """Raise ConfigError if a policy needs what a format does not keep."""
    if policy.reach is not None and form.stride is not None:
        raise ConfigError(
            f"form={form.name!r} packs keys, and policy {policy.name!r} hands them on; use it with"
            " a policy that reads all it keeps"
        )


def check_heir(
    policy: RetentionPolicy, before: RetentionPolicy, seen: int, *, evicted: bool
) -> None:
    """Raise InputError unless `policy`, read from the start, would have come to the same cache.

    Args:
        before: the policy by which `seen` tokens were read.
        evicted: whether some of them were evicted.
    """
    where = f"policy={policy.name!r} cannot go on from {before.name!r}:"
    if policy.reach is not None or before.reach is not None:
        raise InputError(f"{where} one of them has a reach; read the text anew")
    if policy.scores not in (None, before.scores):
        raise InputError(
            f"{where} it ranks by {policy.scores!r}, which was not noted; read the text anew"
        )
    if evicted or (policy.budget is not None and seen > policy.budget):
        raise InputError(
            f"{where} {seen} tokens were read, and its budget={policy.budget}; fork before either"
            " of them evicts"
        )
