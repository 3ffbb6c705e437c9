"""The agent of a command: with its model, or for one that asks none and opens it only to count
tokens, if at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..agent.agent import Agent


def chosen(memories: list[str] | None, stream: str | None) -> list[str] | None:
    """What `--memory` and `--stream-memory` name together; None for the default.

    Raises:
        UnknownName: `stream` is no policy.
        ConfigError: another memory has a KV cache, too.
    """
    from ..memory.registry import DEFAULT_EDITORS, DEFAULT_MEMORIES
    from ..memory.retention.policies.registry import POLICIES
    from ..registry import parse_spec

    if stream is None:
        return memories or None
    POLICIES.load(parse_spec(stream)[0])
    if second := [each for each in memories or [] if parse_spec(each)[0] in POLICIES]:
        raise ConfigError(
            f"--memory {second[0]} and --stream-memory {stream} are two KV caches, and an agent"
            " has one; leave one of them out"
        )
    beside = [] if memories == ["none"] else memories or [*DEFAULT_MEMORIES, *DEFAULT_EDITORS]
    return [*beside, stream]


def open_agent(
    home: Path | None, model: str, memories: list[str] | None, user: str, **generation: Any
) -> Agent:
    """The agent of this command; one without memories opens its model only when asked something."""
    from ..agent.agent import Agent
    from ..llm.base import GenerationConfig
    from ..llm.open import UnopenedLLM

    return Agent.open(
        UnopenedLLM(model) if memories == [] else model,
        home=home,
        memories=[] if memories == ["none"] else memories,
        user=user,
        generation=GenerationConfig(**generation),
    )


def open_keeper(
    home: Path | None,
    model: str,
    memories: list[str] | None,
    user: str,
    *,
    read_only: bool = False,
) -> Agent:
    """The agent of this command, which works without its model too.

    Args:
        memories: as `--memory` gives them; an empty list for none.
    """
    from ..agent.agent import Agent
    from ..llm.base import Capability
    from ..llm.open import UnopenedLLM
    from ..llm.places import Place

    class Unasked(UnopenedLLM):
        """Has every place and ability, as nothing is asked of it."""

        places = frozenset[Place](get_args(Place))
        capabilities = frozenset[Capability](get_args(Capability))

    named = [] if memories == ["none"] else memories
    return Agent.open(Unasked(model), home=home, memories=named, user=user, read_only=read_only)
