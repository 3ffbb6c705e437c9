"""What is asked of the agent: a message, whose it is, and how to answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig

from ..errors import InputError
from ..llm.base import GenerationConfig
from ..memory.record import Scope, clean_text

AgentInput = str | BaseMessage | Sequence[BaseMessage] | Mapping[str, Any]
"""A text; a message; messages, the last of them the user's; or a mapping with either of these
under "messages" or "input"."""

DEFAULT_SESSION = "main"

_SCOPE_OPTIONS = ("tenant", "user", "agent", "session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One message to answer.

    Args:
        history: messages the caller wants between system prompt and message; read, not stored.
        instructions: replaces the agent's system prompt for this turn.
        cancel: set it from another thread to end the reply early.
    """

    message: str
    scope: Scope
    generation: GenerationConfig
    history: tuple[BaseMessage, ...] = ()
    instructions: str | None = None
    cancel: Event | None = None

    @classmethod
    def parse(
        cls,
        input: AgentInput,
        config: RunnableConfig | None,
        options: Mapping[str, Any],
        scope: Scope,
        generation: GenerationConfig,
    ) -> Request:
        """Read langchain input, `config["configurable"]` and keyword options, which win.

        Raises:
            InputError: there is no user's message, it cannot be stored, or an option is unknown.
        """
        given = dict((config or {}).get("configurable") or {}) | dict(options)
        cancel = given.pop("cancel", None)
        generation = given.pop("generation", None) or generation
        scope = turn_scope(scope, given)
        messages = _messages(input)
        if not messages or not isinstance(messages[-1], HumanMessage):
            raise InputError("the last message must be the user's (HumanMessage); there is none")
        system = [m for m in messages[:-1] if isinstance(m, SystemMessage)]
        return cls(
            message=clean_text(_text(messages[-1])),
            scope=scope,
            generation=generation,
            history=tuple(m for m in messages[:-1] if not isinstance(m, SystemMessage)),
            instructions="\n\n".join(_text(m) for m in system) or None,
            cancel=cancel,
        )


def turn_scope(base: Scope, options: Mapping[str, Any]) -> Scope:
    """`base` with the scope options of a call; a turn always belongs to a session."""
    given = dict(options)
    scope = given.pop("scope", None) or base
    unknown = given.keys() - set(_SCOPE_OPTIONS)
    if unknown:
        raise InputError(
            f"unknown options {sorted(unknown)}; known: scope, {', '.join(_SCOPE_OPTIONS)},"
            " generation, cancel"
        )
    scope = replace(scope, **{key: value for key, value in given.items() if value is not None})
    return scope if scope.session else replace(scope, session=DEFAULT_SESSION)


def _messages(input: AgentInput) -> list[BaseMessage]:
    if isinstance(input, str):
        return [HumanMessage(input)]
    if isinstance(input, BaseMessage):
        return [input]
    if isinstance(input, Mapping):
        for key in ("messages", "input"):
            if key in input:
                return _messages(input[key])
        raise InputError(f"a mapping needs the key 'messages' or 'input', not {sorted(input)}")
    return list(input)


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    blocks = [b if isinstance(b, str) else b.get("text") for b in message.content]
    if None in blocks:
        raise InputError("a message holds something other than text; this agent reads text only")
    return "".join(block for block in blocks if block)
