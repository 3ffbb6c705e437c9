"""What a bench is given: seeds, folders, and the models, each loaded once and when first asked for.

Also a model that notes what it was asked, so that prompts can be measured as they were sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from threading import Event
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...llm.base import LLM, Capability, GenerationConfig, Token
from ...llm.places import Contribution, Place

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.tools import BaseTool

    from ...agent.agent import Agent
    from ...memory.vectors import Embedder, Vectors

EMBEDDER = "minilm"

Encode = Callable[[Sequence[str]], "Vectors"]


@dataclass(frozen=True)
class Setting:
    """One run of a bench.

    Args:
        scratch: a folder for whatever the bench writes; removed after the run.
        out: where results go; a long bench keeps there at once what it has, and goes on from it.
        resources: what to close at the end of the run.
    """

    seed: int
    full: bool
    data: Path | None
    scratch: Path
    model: str = "smollm2"
    out: Path | None = None
    resources: ExitStack = field(default_factory=ExitStack)

    def rng(self, name: str) -> Random:
        """A generator for one purpose, whatever else was drawn before."""
        return Random(f"{self.seed}:{name}")

    def folder(self, name: str) -> Path:
        """A new folder under `scratch`."""
        path = self.scratch / f"{len(list(self.scratch.iterdir())):04}-{name}"
        path.mkdir()
        return path

    def dataset(self) -> Path:
        """The data folder.

        Raises:
            InputError: none was given.
        """
        if self.data is None:
            raise InputError("this needs data sets; name their folder with --data")
        return self.data

    @cached_property
    def llm(self) -> LLM:
        """The model under test."""
        from ...llm.open import open_llm

        return open_llm(self.model)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder that our stores use."""
        from ...memory.vectors import open_embedder

        return open_embedder(EMBEDDER)

    @cached_property
    def encode(self) -> Encode:
        """The same encoder, called directly as its library is: [N] texts -> [N, D], rows unit."""
        from sentence_transformers import SentenceTransformer

        from ...llm.catalog import resolve

        model = SentenceTransformer(str(resolve(EMBEDDER, kind="embedder")), device="cpu")
        return lambda texts: model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False
        )

    def agent(
        self,
        *memories: str,
        home: Path | None = None,
        window: int | None = None,
        max_tokens: int = 20,
        stop: tuple[str, ...] = ("\n",),
    ) -> Agent:
        """An agent on a folder of its own, whose model (a `Meter`) has a smaller window if asked
        for. Greedy, so that a run can be repeated."""
        from ...agent.agent import Agent

        return Agent.open(
            Meter(self.llm, window=window),
            home=home or self.folder("home"),
            memories=memories,
            embedder=self.embedder,
            generation=GenerationConfig(max_tokens=max_tokens, stop=stop),
        )

    def resolved(self) -> dict[str, Any]:
        """Everything that was set, for the report; folders by their names only."""
        return {
            "seed": self.seed,
            "full": self.full,
            "data": self.data.name if self.data else None,
            "model": self.model,
            "embedder": EMBEDDER,
        }

    def close(self) -> None:
        """Close what was kept open, and let go of the models."""
        self.resources.close()
        for loaded in ("llm", "embedder", "encode"):
            self.__dict__.pop(loaded, None)


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt as a model got it, its tokens, and milliseconds to the first piece of reply."""

    messages: tuple[BaseMessage, ...]
    tokens: int
    first_token_ms: float


class Meter:
    """A model that notes what it was asked, and may be given a smaller window."""

    def __init__(self, llm: LLM, *, window: int | None = None) -> None:
        self._llm = llm
        self.asked: list[Asked] = []
        self.context_window = min(window or llm.context_window, llm.context_window)

    @property
    def name(self) -> str:
        """As the model's own."""
        return self._llm.name

    @property
    def places(self) -> frozenset[Place]:
        """As the model's own."""
        return self._llm.places

    @property
    def capabilities(self) -> frozenset[Capability]:
        """As the model's own."""
        return self._llm.capabilities

    def count_tokens(self, text: str) -> int:
        """As the model's own."""
        return self._llm.count_tokens(text)

    def count_prompt_tokens(
        self, messages: Sequence[BaseMessage], tools: Sequence[BaseTool] = ()
    ) -> int:
        """As the model's own."""
        return self._llm.count_prompt_tokens(messages, tools)

    def stream(
        self,
        messages: Sequence[BaseMessage],
        contributions: Sequence[Contribution] = (),
        config: GenerationConfig = GenerationConfig(),  # noqa: B008
        *,
        tools: Sequence[BaseTool] = (),
        cancel: Event | None = None,
    ) -> Iterator[Token]:
        """The model's own stream. What was asked is noted when it ends, so as to delay nothing."""
        started = time.perf_counter()
        reply = self._llm.stream(messages, contributions, config, tools=tools, cancel=cancel)
        first = next(reply)
        ms = (time.perf_counter() - started) * 1000
        try:
            yield first
            yield from reply
        finally:
            tokens = self._llm.count_prompt_tokens(messages, tools)
            self.asked.append(Asked(tuple(messages), tokens, ms))

    def logprobs(
        self, messages: Sequence[BaseMessage], continuations: Sequence[str]
    ) -> list[float]:
        """The model's own."""
        return self._llm.logprobs(messages, continuations)
