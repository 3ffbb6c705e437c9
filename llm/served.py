"""What talking to a served model takes besides the talking: counting tokens without its help, texts
without control tokens, and errors that say what to do.

Knows nothing of any one server.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .loading import load_tokenizer
from .prompting import PromptEncoder, check_unicode

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.tools import BaseTool

_FRAME_TOKENS = 8
_TEMPLATE_TOKENS = 32
_WORD_JOINER = "\u2060"
_CONTROL = re.compile(
    r"<\|[^<>|\s]{1,64}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|</?tool_call>"
)


def estimate_tokens(text: str) -> int:
    """Tokens of `text` under a tokenizer that is not known, erring upwards.

    A word of ASCII letters counts one, and one for each two letters beyond three; other ASCII
    characters count one each, runs of spaces one (none before a word); the rest 0.7 for each byte.
    The figures were chosen to exceed the counts of SmolLM2's vocabulary (49k, mostly English), on
    prose in eight languages, code, numbers and Markdown; larger vocabularies need fewer.
    """
    words = re.findall(r"[A-Za-z]+", text)
    others = len(re.findall(r"[!-@\[-`{-~]|[^\S ]| +(?![A-Za-z ])", text, re.ASCII))
    rest = sum(len(char.encode("utf-8", "replace")) for char in text if not char.isascii())
    return sum(1 + max(0, len(word) - 3) // 2 for word in words) + others + math.ceil(0.7 * rest)


class PromptCounter:
    """Counts tokens: exactly with a tokenizer's folder, else by `estimate_tokens`.

    Args:
        folder: holds tokenizer.json and, for exact counts of prompts, a chat template.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder).expanduser()
        if self._folder is not None and not (self._folder / "tokenizer.json").is_file():
            raise ConfigError(
                f"tokenizer={str(folder)!r} must be a folder that holds a tokenizer.json"
            )

    @cached_property
    def _encoder(self) -> PromptEncoder | None:
        return None if self._folder is None else PromptEncoder(load_tokenizer(self._folder))

    @property
    def exact(self) -> bool:
        """Whether prompts are counted as the server will count them."""
        return self._encoder is not None and self._encoder.tokenizer.chat_template is not None

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The tokenizer's own control tokens; none are known without it."""
        return () if self._encoder is None else tuple(self._encoder.tokenizer.chat_control_tokens)

    def text(self, text: str) -> int:
        """Tokens of a text alone; control tokens in it count as plain text."""
        return estimate_tokens(text) if self._encoder is None else len(self._encoder.text(text))

    def prompt(self, messages: Sequence[BaseMessage], tools: Sequence[BaseTool]) -> int:
        """Tokens of the whole prompt, with the template's and the cue's."""
        if self._encoder is not None and self.exact:
            sent = [harmless(message, self.control_tokens) for message in messages]
            return len(self._encoder.prompt(sent, tools))
        from langchain_core.utils.function_calling import convert_to_openai_tool

        said = sum(self.text(str(message.text)) + _FRAME_TOKENS for message in messages)
        schemas = [json.dumps(convert_to_openai_tool(tool)) for tool in tools]
        return said + _TEMPLATE_TOKENS + sum(map(self.text, schemas))


def harmless(message: BaseMessage, control_tokens: Iterable[str] = ()) -> BaseMessage:
    """The message with every control token in its texts broken up by a word joiner (U+2060).

    A server renders the template to one text before it tokenizes, so that `<|im_end|>` in what a
    user says would end the user's turn. Known are the usual forms, and `control_tokens`.

    Raises:
        InputError: a text that is no Unicode (a lone surrogate).
    """
    own = "|".join(re.escape(token) for token in control_tokens if len(token) > 1)
    pattern = re.compile(f"{_CONTROL.pattern}|{own}") if own else _CONTROL

    def broken(text: str) -> str:
        check_unicode(text)
        return pattern.sub(lambda match: match[0][0] + _WORD_JOINER + match[0][1:], text)

    if isinstance(message.content, str):
        return message.model_copy(update={"content": broken(message.content)})
    blocks = [
        broken(block)
        if isinstance(block, str)
        else {**block, "text": broken(block["text"])}
        if isinstance(block.get("text"), str)
        else block
        for block in message.content
    ]
    return message.model_copy(update={"content": blocks})


def whole_call(chunk: Mapping[str, Any]) -> dict[str, Any]:
    """A streamed tool call, all of it, as a langchain tool call.

    langchain repairs arguments that were cut off; a call must not run with half of what was meant.

    Raises:
        ValueError: the arguments are no JSON object.
    """
    try:
        args = json.loads(chunk["args"] or "{}")
    except json.JSONDecodeError:
        args = None
    if not isinstance(args, dict):
        raise ValueError(f"called {chunk['name']!r} with arguments that are no JSON object")
    return {"name": chunk["name"], "args": args, "id": chunk["id"], "type": "tool_call"}


def secrets_of(chat_model: BaseChatModel) -> tuple[str, ...]:
    """The chat model's keys, so that they can be kept out of messages."""
    from pydantic import SecretStr

    values = (getattr(chat_model, field, None) for field in type(chat_model).model_fields)
    keys = (value.get_secret_value() for value in values if isinstance(value, SecretStr))
    return tuple(key for key in keys if len(key) > 4)


_REMEDIES = {
    400: "see what it says of the request; options it does not know can be left at their defaults",
    401: "check the API key",
    403: "check what the API key may do",
    404: "check the model's name, and that the URL ends as the server's does, often in /v1",
    413: "send less",
    422: "see what it says of the request; options it does not know can be left at their defaults",
    429: "wait, or ask less often",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong at a server, and what to do; free of secrets.

    Args:
        overflow: the prompt was too long for the model's window.
    """

    what: str
    remedy: str
    overflow: bool = False

    @classmethod
    def of(cls, error: Exception, secrets: Sequence[str] = ()) -> Failure:
        """Read an exception of any provider by its status, or by the names of its causes."""
        body = getattr(error, "body", None)
        # Servers built on FastAPI explain themselves where OpenAI's client does not look.
        detail = f": {body['detail']}" if isinstance(body, Mapping) and "detail" in body else ""
        said = _without(secrets, " ".join(f"{error}{detail}".split()))[:500]
        status = getattr(error, "status_code", None)
        if isinstance(status, int):
            rule = r"context.?(?:length|window|size)|prompt is too long"
            overflow = 400 <= status < 500 and bool(re.search(rule, said, re.IGNORECASE))
            remedy = _REMEDIES.get(status, "see the server's log, then ask again")
            return cls(f"it answered {status} ({said})", remedy, overflow)
        names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
        if any("Timeout" in name for name in names):
            return cls(
                "it was silent for longer than the timeout",
                "see whether the server is overloaded, or pass a larger timeout_s",
            )
        if names & {"ConnectError", "ConnectionRefusedError", "gaierror"}:
            return cls("it cannot be reached", "start the server, or check the URL")
        if any("Connection" in name or "Protocol" in name for name in names):
            *_, root = _causes(error)
            return cls(
                f"the connection broke ({_without(secrets, str(root))})",
                "see the server's log, then ask again",
            )
        return cls(f"{type(error).__name__}: {said}", "see the server's log, then ask again")


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
