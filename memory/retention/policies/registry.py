"""The policies by name. To add one: its own file, one row here, one row in the tests."""

from __future__ import annotations

from typing import Any

from ....registry import Registry
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
    policy: RetentionPolicy = POLICIES.build(spec, **options)
    return policy
