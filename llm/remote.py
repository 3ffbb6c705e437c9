"""RemoteLLM: a model that someone else serves, through a langchain chat model.

Memory can reach such a model in the prompt only. Knows nothing of the server beyond what langchain
tells, and nothing of the model's template, unless it is given a tokenizer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from ..errors import CapabilityError, ConfigError, ContextOverflow, RemoteError
from .base import Capability, Finish, GenerationConfig, Token
from .detokenise import StopText
from .places import Contribution, Place, check_place
from .served import Failure, PromptCounter, harmless, secrets_of, whole_call

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessageChunk, BaseMessage
    from langchain_core.tools import BaseTool

logger = logging.getLogger(__name__)

_CUT_BY_LENGTH = frozenset({"length", "max_tokens", "MAX_TOKENS"})
_NO_KEY = "none"


class RemoteLLM:
    """A served model.

    Args:
        chat_model: any langchain chat model that streams and takes the options `max_tokens`,
            `temperature`, `top_p` and `seed`.
        name: shown to users and in traces.
        context_window: tokens, as the server runs it.
        tokenizer: folder of the model's own tokenizer (tokenizer.json, chat template), for exact
            counts; without it counts are estimates that err upwards. Never fetched.
        url: shown in errors.
        capabilities: "tools" if model and server call tools natively; without it an agent writes
            its tools into the prompt.
        finish_key: key of the response metadata under which the server says why a reply ended, or
            None if it never does. A stream that ends without saying so has been cut.
        body: options that are also sent under their own names in the request's body.
    """

    places: frozenset[Place] = frozenset({"prompt"})

    def __init__(
        self,
        chat_model: BaseChatModel,
        *,
        name: str,
        context_window: int,
        tokenizer: str | Path | None = None,
        url: str = "",
        capabilities: frozenset[Capability] = frozenset(),
        finish_key: str | None = "finish_reason",
        body: tuple[str, ...] = (),
    ) -> None:
        if context_window < 1:
            raise ConfigError(f"context_window={context_window!r} must be at least 1 token")
        if not capabilities <= {"tools"}:
            raise ConfigError(
                f"capabilities={sorted(capabilities)} of a served model can only be ['tools']"
            )
        self.name = name
        self.context_window = context_window
        self.capabilities = capabilities
        self.url = url or type(chat_model).__name__
        self._chat = chat_model
        self._counter = PromptCounter(tokenizer)
        self._secrets = secrets_of(chat_model)
        self._finish_key = finish_key
        self._body = body

    @classmethod
    def openai(
        cls,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        context_window: int = 8192,
        tokenizer: str | Path | None = None,
        tools: bool = False,
        timeout_s: float = 120.0,
        max_retries: int = 1,
    ) -> RemoteLLM:
        """A model behind an OpenAI-compatible server: vLLM, Ollama, `transformers serve`.

        Args:
            base_url: up to and including `/v1`. The usual proxy variables of the environment apply.
            model: the name under which it is served.
            api_key: by default OPENAI_API_KEY; without either, none.
            context_window: tokens, as the server runs it (vLLM's `--max-model-len`).
            tools: whether model and server call tools natively.
            timeout_s: longest silence of the server, before and between pieces of a reply.
            max_retries: tries after the first, before a reply has begun.

        Raises:
            ConfigError: a bad URL, or langchain-openai is not installed.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ConfigError(
                f"base_url={base_url.rpartition('@')[2]!r} must be http(s)://HOST[:PORT]/v1,"
                " without a user; pass credentials as api_key"
            )
        try:
            from langchain_openai import ChatOpenAI
        except ImportError as error:
            raise ConfigError(
                "a served model needs langchain-openai; run `pip install 'palimpsest[remote]'`"
            ) from error
        from pydantic import SecretStr

        chat_model = ChatOpenAI(
            base_url=base_url,
            model=model,
            api_key=SecretStr(api_key or os.environ.get("OPENAI_API_KEY") or _NO_KEY),
            timeout=timeout_s,
            max_retries=max_retries,
            stream_usage=False,
        )
        # langchain-openai sends max_completion_tokens, which Ollama among others does not read;
        # api.openai.com refuses a request that has both.
        official = parts.hostname == "api.openai.com"
        return cls(
            chat_model,
            name=model,
            context_window=context_window,
            tokenizer=tokenizer,
            url=base_url,
            capabilities=frozenset({"tools"} if tools else ()),
            body=() if official else ("max_tokens",),
        )

    def __repr__(self) -> str:
        return f"RemoteLLM({self.name!r}, url={self.url!r})"

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`: exact with a tokenizer, else an estimate that errs upwards."""
        return self._counter.text(text)

    def count_prompt_tokens(
        self, messages: Sequence[BaseMessage], tools: Sequence[BaseTool] = ()
    ) -> int:
        """Tokens of the whole prompt: exact with a tokenizer that has a chat template."""
        return self._counter.prompt(messages, tools)

    def stream(
        self,
        messages: Sequence[BaseMessage],
        contributions: Sequence[Contribution] = (),
        config: GenerationConfig = GenerationConfig(),
        *,
        tools: Sequence[BaseTool] = (),
        cancel: Event | None = None,
    ) -> Iterator[Token]:
        """Stream a reply. `top_k` and `repetition_penalty` are no part of the OpenAI interface:
        they are sent if they are set, and a server may refuse them.

        Closing the iterator, or `cancel`, closes the connection; `cancel` is looked at when a
        piece arrives. Control tokens in a text are broken up by a word joiner.

        Raises:
            PlaceError: any contribution; none can be attached to a served model.
            ContextOverflow: the prompt does not fit, by exact count or as the server says.
            RemoteError: refused, timed out, broken off; `partial` holds what had arrived.
        """
        for contribution in contributions:
            check_place(contribution.memory, contribution.place, self.name, self.places)
        if tools and "tools" not in self.capabilities:
            raise CapabilityError(
                f"model {self.name!r} was opened without native tools; pass tools=True if its"
                " server has them, or leave the tools to an Agent"
            )
        self._check_window(messages, tools)
        yield from self._reply(messages, config, tools, cancel or Event())

    def logprobs(
        self, messages: Sequence[BaseMessage], continuations: Sequence[str]
    ) -> list[float]:
        """Raises CapabilityError: a chat server scores no given texts."""
        raise CapabilityError(
            f"model {self.name!r} is served and gives no log-probabilities of given texts; open it"
            " in this process (a folder or a catalog name) to have them"
        )

    def _check_window(self, messages: Sequence[BaseMessage], tools: Sequence[BaseTool]) -> None:
        if not self._counter.exact:
            return
        used = self._counter.prompt(messages, tools)
        if used >= self.context_window:
            raise ContextOverflow(
                f"the prompt has {used} tokens and the window of {self.name!r}"
                f" {self.context_window}; shorten it"
            )

    def _reply(
        self,
        messages: Sequence[BaseMessage],
        config: GenerationConfig,
        tools: Sequence[BaseTool],
        cancel: Event,
    ) -> Iterator[Token]:
        if cancel.is_set():
            yield Token("", finish="cancelled")
            return
        shown = StopText(config.stop)
        arrived: list[str] = []
        finish: str | None = None
        calls: AIMessageChunk | None = None
        with closing(self._chunks(messages, config, tools, arrived)) as chunks:
            for chunk in chunks:
                if cancel.is_set():
                    yield Token(shown.flush(), finish="cancelled")
                    return
                if text := shown.push(str(chunk.text)):
                    yield Token(text)
                # Servers differ: some send the stop string, some leave it out.
                if shown.found:
                    yield Token("", finish="stop")
                    return
                if chunk.tool_call_chunks:
                    calls = chunk if calls is None else calls + chunk
                finish = chunk.response_metadata.get(self._finish_key or "", finish)
        if finish is None and self._finish_key is not None:
            raise self._error("the stream ended before the reply did", arrived)
        yield Token(
            shown.flush(),
            finish=_finish(finish),
            tool_calls=self._whole_calls(calls, arrived),
        )

    def _chunks(
        self,
        messages: Sequence[BaseMessage],
        config: GenerationConfig,
        tools: Sequence[BaseTool],
        arrived: list[str],
    ) -> Generator[AIMessageChunk, None, None]:
        """What the chat model streams, its texts noted in `arrived`; whatever goes wrong in the
        chat model becomes one of our errors."""
        model = self._chat.bind_tools(tools) if tools else self._chat
        prompt = [harmless(message, self._counter.control_tokens) for message in messages]
        try:
            with closing(cast(Any, model.stream(prompt, **self._options(config)))) as chunks:
                for chunk in chunks:
                    arrived.append(str(chunk.text))
                    yield chunk
        # Every provider raises exceptions of its own, and langchain gives them no common base.
        except Exception as error:
            failure = Failure.of(error, self._secrets)
            if failure.overflow:
                raise ContextOverflow(
                    f"the prompt does not fit the window of {self.name!r} at {self.url}:"
                    f" {failure.what}; shorten it, or pass the server's own context_window"
                ) from None
            # The original may quote the key, so it is not chained.
            raise self._error(failure.what, arrived, failure.remedy) from None

    def _options(self, config: GenerationConfig) -> dict[str, Any]:
        options: dict[str, Any] = {
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
        }
        if config.seed is not None:
            options["seed"] = config.seed
        if config.stop:
            options["stop"] = list(config.stop)
        usual = GenerationConfig()
        unusual = [
            name
            for name in ("top_k", "repetition_penalty")
            if getattr(config, name) != getattr(usual, name)
        ]
        if extra := {name: getattr(config, name) for name in (*self._body, *unusual)}:
            options["extra_body"] = extra
        return options

    def _whole_calls(
        self, calls: AIMessageChunk | None, arrived: list[str]
    ) -> tuple[dict[str, Any], ...]:
        try:
            return tuple(map(whole_call, calls.tool_call_chunks)) if calls is not None else ()
        except ValueError as error:
            remedy = "ask again, with more max_tokens if the call was cut"
            raise self._error(f"it {error}", arrived, remedy) from None

    def _error(self, what: str, arrived: list[str], remedy: str = "ask again") -> RemoteError:
        partial = "".join(arrived)
        kept = f" after {len(partial)} characters, which are kept" if partial else ""
        return RemoteError(
            f"model {self.name!r} at {self.url} failed{kept}: {what}; {remedy}", partial=partial
        )


def _finish(reason: str | None) -> Finish:
    if reason == "content_filter":
        logger.warning("the server's content filter ended a reply")
    return "length" if reason in _CUT_BY_LENGTH else "stop"
