"""What every method checks of its hyper-parameters."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError

Rule = tuple[str, bool, str]
"""Name of a hyper-parameter, whether its rule holds, and the rule in words."""


def obey(method: Any, *rules: Rule) -> None:
    """That a method's hyper-parameters keep to the rules.

    Raises:
        ConfigError: one does not; it names the value and the rule.
    """
    for name, holds, rule in rules:
        if not holds:
            raise ConfigError(f"{method.name}: {name}={getattr(method, name)!r} must be {rule}")


def share(method: Any, name: str) -> Rule:
    """A share of the model's depth, or of anything else."""
    return name, 0 <= getattr(method, name) <= 1, "within [0, 1]"


def positive(method: Any, name: str) -> Rule:
    """A count of at least 1, or a size above 0."""
    value = getattr(method, name)
    return (
        (name, value >= 1, "at least 1") if isinstance(value, int) else (name, value > 0, "above 0")
    )


def least(method: Any, name: str) -> Rule:
    """A number of at least 0."""
    return name, getattr(method, name) >= 0, "at least 0"
