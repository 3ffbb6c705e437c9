"""What an agent needs of a model. The model knows nothing of memories, scopes or the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ..errors import ConfigError
from .places import Cache, Contribution, Place

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.tools import BaseTool

Finish = Literal["stop", "length", "cancelled"]
"""Why a reply ended: the model or a stop string ended it, `max_tokens` did, or the caller did."""

Capability = Literal["logprobs", "hidden_states", "tools"]


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How to sample a reply.

    Args:
        max_tokens: most tokens to generate, >= 1.
        temperature: 0 is greedy.
        top_p, top_k: nucleus and top-k truncation; 1.0 and 0 switch them off.
        repetition_penalty: > 1 makes tokens already seen less likely; 1.0 is off.
        seed: makes sampling repeatable; None draws a fresh seed.
        stop: texts that end the reply; they are not part of it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rules = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "within (0, 1]"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0; 1.0 is off"),
            ("stop", all(self.stop), "free of empty strings"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be {rule}")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a reply as it is generated.

    Args:
        text: what to print; may be empty (half a character) or several tokens of a served model.
        id: vocabulary id, or None for a served model.
        logprob: ln P(token | text so far), in nats, before sampling options; None if not known.
        finish: set on the last token only.
        tool_calls: set on the last token of a served model that calls tools natively.
    """

    text: str
    id: int | None = None
    logprob: float | None = None
    finish: Finish | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


@runtime_checkable
class LLM(Protocol):
    """A chat model, in this process or served.

    `stream` may be called from several threads; a model in this process takes them one at a time.
    """

    @property
    def name(self) -> str: ...

    @property
    def places(self) -> frozenset[Place]:
        """Where memory may enter. Every model accepts "prompt"."""

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    @property
    def context_window(self) -> int:
        """Most tokens that prompt and reply may have together."""

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` alone, without template or special tokens; control-token text in it
        counts as plain text."""

    def count_prompt_tokens(
        self, messages: Sequence[BaseMessage], tools: Sequence[BaseTool] = ()
    ) -> int:
        """Tokens of the whole prompt as the model will see it, template and cue included."""

    def stream(
        self,
        messages: Sequence[BaseMessage],
        contributions: Sequence[Contribution] = (),
        config: GenerationConfig = GenerationConfig(),
        *,
        tools: Sequence[BaseTool] = (),
        cancel: Event | None = None,
    ) -> Iterator[Token]:
        """Generate a reply. Contributions are attached for its duration and undone afterwards,
        also when the caller closes the iterator or an error is raised.

        Args:
            messages: langchain messages; a text in them can never become a control token.
            contributions: what to attach, none of them prompts (the agent has placed those).
            tools: only with the "tools" capability.
            cancel: when set, the reply ends before its next token with finish "cancelled".

        Raises:
            ContextOverflow, ConflictError, PlaceError, OutOfMemory, RemoteError.
        """

    def logprobs(
        self, messages: Sequence[BaseMessage], continuations: Sequence[str]
    ) -> list[float]:
        """ln P(continuation | prompt) in nats, summed over its tokens, for each continuation.

        Raises:
            CapabilityError: without the "logprobs" capability.
        """


@runtime_checkable
class SupportsReading(Protocol):
    """A model that can read without answering."""

    def read(
        self,
        messages: Sequence[BaseMessage],
        into: Cache,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancel: Event | None = None,
    ) -> int:
        """Read messages into the cache of a contribution, in chunks; returns how many tokens.

        Args:
            progress: called as (tokens read, tokens to read).
            cancel: when set, it ends before the next chunk; what is left is handed back as unread.
        """


@runtime_checkable
class SupportsEntropy(Protocol):
    """A model that can tell how uncertain it is of what comes next."""

    def entropy(self, messages: Sequence[BaseMessage], prefix: str = "") -> float:
        """Entropy in nats of the reply's first token, or of the one after `prefix`."""


def generate(
    llm: LLM,
    messages: Sequence[BaseMessage],
    config: GenerationConfig = GenerationConfig(),
    *,
    cancel: Event | None = None,
) -> str:
    """The whole reply as one text, with nothing attached."""
    return "".join(token.text for token in llm.stream(messages, (), config, cancel=cancel))
