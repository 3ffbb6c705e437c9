"""The policies by name. To add one: its own file, one row here, one row in the tests."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ....errors import ConfigError
from ....registry import Registry, parse_spec
from ..base import RetentionPolicy

POLICIES = Registry(
    "retention policy",
    {
        "full": ".memory.retention.policies.window:Full",
        "window": ".memory.retention.policies.window:Window",
        "sinks": ".memory.retention.policies.window:SinkWindow",
        "random": ".memory.retention.policies.window:Random",
        "sirllm": ".memory.retention.policies.sirllm:SirLLM",
        "h2o": ".memory.retention.policies.h2o:H2O",
        "lm_infinite": ".memory.retention.policies.lm_infinite:LMInfinite",
        "infllm": ".memory.retention.policies.infllm:InfLLM",
        "retrieval": ".memory.retention.policies.retrieval:Retrieval",
    },
    group="palimpsest.retention",
)


def open_policy(spec: str, **options: Any) -> RetentionPolicy:
    """The policy of a spec such as `"sirllm"` or `"sirllm:budget=512,decay=0.9"`.

    Raises:
        UnknownName: no such policy.
        ConfigError: it has no such option, or an option breaks a rule.
    """
    name, given = parse_spec(spec)
    target = POLICIES.load(name)
    known = [field.name for field in fields(target)]
    for option in {**given, **options}:
        if option not in known:
            raise ConfigError(f"policy {name!r} has no option {option!r}; it has {known}")
    policy: RetentionPolicy = target(**{**given, **options})
    return policy
