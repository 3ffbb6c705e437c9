"""From langchain messages to the ids a model reads, by its own chat template.

Knows nothing of the model's weights. Text that spells a control token stays text: the template
alone writes control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import CapabilityError, InputError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.tools import BaseTool
    from transformers import PreTrainedTokenizerBase

_SAID = "sentinel"
_EXCHANGE = [{"role": "user", "content": _SAID}, {"role": "assistant", "content": _SAID}]
"""Stands for the conversation that was before."""

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


class PromptEncoder:
    """A tokenizer and its chat template.

    Safe to use from several threads: a tokenizer keeps its options as state, so calls take turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # All added tokens, also those not flagged special, such as <tool_call>; runs of blanks,
        # which some vocabularies add, are ordinary text.
        tokenizer.chat_control_tokens = [
            token for token in tokenizer.get_added_vocab() if not token.isspace()
        ]
        self._turn = Lock()

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the chat template has a place for tools."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            return "tool_use" in template or "tools" in template.get("default", "")
        return template is not None and re.search(r"\btools\b", template) is not None

    @cached_property
    def end_of_turn(self) -> frozenset[int]:
        """Ids after which a reply is over: end of text, and what the template puts behind one."""
        ids = {self.tokenizer.eos_token_id} - {None}
        if self.tokenizer.chat_template is not None:
            ids.update(id for id in self.closing[:1] if id in self.tokenizer.added_tokens_decoder)
        return frozenset(ids)

    @cached_property
    def closing(self) -> list[int]:
        """What the template puts behind a reply, before the next message."""
        text = self._apply(_EXCHANGE, None, tokenize=False, add_generation_prompt=False)
        return self._encode(text[text.rindex(_SAID) + len(_SAID) :], as_text=False)

    @cached_property
    def _exchange(self) -> list[int]:
        ids: list[int] = self._apply(
            _EXCHANGE, None, sanitize_control_tokens=True, add_generation_prompt=False
        )
        return ids

    def continuation(self, messages: Sequence[BaseMessage], *, cue: bool = True) -> list[int]:
        """Ids of messages that follow a conversation whose last message is closed.

        Raises:
            InputError: as for `prompt`.
            CapabilityError: the template writes earlier messages anew when others follow them.
        """
        chat = [*_EXCHANGE, *(_as_dict(message) for message in messages)]
        ids: list[int] = self._apply(
            chat, None, sanitize_control_tokens=True, add_generation_prompt=cue
        )
        before = self._exchange
        if ids[: len(before)] != before:
            raise CapabilityError(
                "this model's chat template writes earlier messages differently once others follow"
                " them, so a conversation cannot go on in its cache; use a memory that enters at"
                " the prompt"
            )
        return ids[len(before) :]

    def prompt(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[BaseTool] = (),
        *,
        cue: bool = True,
    ) -> list[int]:
        """Ids of the whole prompt, with the cue for the reply unless that is not wanted.

        Raises:
            InputError: no messages, a message that has no text form, text that is no Unicode, or
                an order of roles that the template refuses.
            CapabilityError: the model has no chat template, or `tools` are given and the template
                has no place for them.
        """
        if not messages:
            raise InputError("messages is empty; a prompt needs at least one")
        if tools and not self.takes_tools:
            raise CapabilityError(
                f"tools={[tool.name for tool in tools]} were given, and this model's chat template"
                " has no place for tools; describe them in the system message instead"
            )
        from langchain_core.utils.function_calling import convert_to_openai_tool

        chat = [_as_dict(message) for message in messages]
        schemas = [convert_to_openai_tool(tool) for tool in tools] or None
        ids: list[int] = self._apply(
            chat, schemas, sanitize_control_tokens=True, add_generation_prompt=cue
        )
        return ids

    def text(self, text: str) -> list[int]:
        """Ids of `text` alone, without special tokens.

        Raises:
            InputError: it is no Unicode text (a lone surrogate).
        """
        check_unicode(text)
        return self._encode(text, as_text=True)

    def _encode(self, text: str, *, as_text: bool) -> list[int]:
        with self._turn:
            return list(
                self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=as_text)
            )

    def _apply(self, chat: list[dict[str, Any]], tools: Any, **options: Any) -> Any:
        import jinja2

        if self.tokenizer.chat_template is None:
            raise CapabilityError(
                "the model has no chat template, so it cannot be chatted with; put one into"
                " chat_template.jinja in its folder, or use an instruction-tuned model"
            )
        try:
            with self._turn:
                return self.tokenizer.apply_chat_template(
                    chat, tools=tools, return_dict=False, **options
                )
        except jinja2.TemplateError as error:
            roles = [message["role"] for message in chat]
            raise InputError(
                f"the model's chat template refuses messages with roles {roles}: {error}"
            ) from error


def check_unicode(text: str) -> None:
    """Raise InputError for a text that cannot be encoded, as one with a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text has a lone surrogate U+{ord(text[error.start]):04X} at character"
            f" {error.start} and is no Unicode; decode it with errors='replace'"
        ) from error


def _as_dict(message: BaseMessage) -> dict[str, Any]:
    """A message as chat templates read it."""
    from langchain_core.messages import AIMessage, ToolMessage

    role = getattr(message, "role", None) or _ROLES.get(message.type)
    if role is None:
        raise InputError(f"messages of type {message.type!r} have no role; known: {sorted(_ROLES)}")
    turn: dict[str, Any] = {"role": role, "content": _text_of(message)}
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": call["id"],
                "function": {"name": call["name"], "arguments": call["args"]},
            }
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
        turn["name"] = message.name
    return turn


def _text_of(message: BaseMessage) -> str:
    blocks = message.content if isinstance(message.content, list) else [message.content]
    texts = []
    for block in blocks:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(block["text"])
        # A call stands both here and in `tool_calls`, which is where templates look for it.
        elif block.get("type") not in ("tool_use", "tool_call"):
            raise InputError(
                f"a {message.type} message holds a block of type {block.get('type')!r}, and this"
                " model reads text only; describe it in words"
            )
    text = "".join(texts)
    check_unicode(text)
    return text
