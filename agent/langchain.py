"""The two halves of an agent for any langchain application: its memory, and its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from ..llm.base import LLM, GenerationConfig
from .agent import Agent


class PalimpsestRetriever(BaseRetriever):
    """What an agent's memories hold on a query, as documents, best first.

    `metadata` has the record ids, the score, and who said it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    agent: Agent
    options: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        found = self.agent.recall(query, **self.options)
        return [
            Document(
                page_content=note.text,
                id=note.records[0],
                metadata={
                    "records": list(note.records),
                    "score": note.score,
                    "source": note.source,
                    "when": note.when.isoformat() if note.when else None,
                },
            )
            for note in found.notes
        ]


class PalimpsestChatModel(BaseChatModel):
    """Any of our models as a langchain chat model, without memory."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    llm: Any
    generation: GenerationConfig = GenerationConfig()

    @property
    def _llm_type(self) -> str:
        return "palimpsest"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.llm.name}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        chunks = list(self._stream(messages, stop, run_manager, **options))
        text = "".join(str(chunk.message.content) for chunk in chunks)
        message = AIMessage(text, response_metadata=chunks[-1].message.response_metadata)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> Iterator[ChatGenerationChunk]:
        llm: LLM = self.llm
        stops: Sequence[str] = (*self.generation.stop, *(stop or ()))
        config = replace(self.generation, stop=tuple(stops), **options)
        for token in llm.stream(messages, (), config):
            metadata = {"finish_reason": token.finish} if token.finish else {}
            message = AIMessageChunk(content=token.text, response_metadata=metadata)
            chunk = ChatGenerationChunk(message=message)
            if run_manager:
                run_manager.on_llm_new_token(token.text, chunk=chunk)
            yield chunk
