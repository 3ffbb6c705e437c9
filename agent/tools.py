"""Tools: the loop that lets a model call them, and those that are the memory's own.

Models whose template has tools are given them natively; the others get a plain text protocol. Both
ways a call comes back as JSON in the reply, so one reader serves both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool

from ..errors import ConfigError
from ..llm.base import LLM, Token
from ..llm.places import Contribution
from ..memory.record import Scope, new_id
from .request import Request

if TYPE_CHECKING:
    from .agent import Agent

MAX_CALLS = 8

_MARK = "<tool_call>"
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)
_PROTOCOL = """You can use these tools:
{tools}
To use one, reply with only this line, then wait for its result:
<tool_call>{{"name": "TOOL", "arguments": {{...}}}}</tool_call>"""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool said; `error` if it failed or does not exist."""

    name: str
    text: str
    error: bool


class ToolLoop:
    """Generates a reply, running the tools that the model calls on the way."""

    def __init__(self, llm: LLM, tools: Sequence[BaseTool] = ()) -> None:
        self._llm = llm
        self._tools = {each.name: each for each in tools}
        if len(self._tools) < len(tools):
            raise ConfigError(f"two tools share a name among {[t.name for t in tools]}; rename one")
        self._native = "tools" in llm.capabilities

    def run(
        self, messages: Sequence[BaseMessage], attached: Sequence[Contribution], request: Request
    ) -> Iterator[Token | ToolResult]:
        """Visible tokens and the results of tools, as they come. After MAX_CALLS rounds the model
        must answer without tools."""
        talk = list(messages)
        for _ in range(MAX_CALLS if self._tools else 0):
            reader = _CallReader()
            yield from reader.read(self._stream(talk, attached, request, offer=True))
            if not reader.calls:
                return
            results = [self._call(call, request.scope) for call in reader.calls]
            yield from results
            talk += self._answer(reader.calls, results)
        yield from self._stream(talk, attached, request, offer=False)

    def _stream(
        self,
        talk: Sequence[BaseMessage],
        attached: Sequence[Contribution],
        request: Request,
        *,
        offer: bool,
    ) -> Iterator[Token]:
        tools = tuple(self._tools.values()) if offer and self._native else ()
        if offer and not self._native:
            talk = _with_protocol(talk, self._tools.values())
        return self._llm.stream(
            talk, attached, request.generation, tools=tools, cancel=request.cancel
        )

    def _call(self, call: ToolCall, scope: Scope) -> ToolResult:
        name = call["name"]
        if name not in self._tools:
            return ToolResult(name, f"no tool {name!r}; there are {sorted(self._tools)}", True)
        config: RunnableConfig = {"configurable": {"scope": scope}}
        try:
            answer = self._tools[name].invoke(call, config=config)
        except Exception as error:
            # The model asked for it and is told; the trace and the record say it failed.
            return ToolResult(name, f"{type(error).__name__}: {error}", True)
        return ToolResult(name, str(answer.content), answer.status == "error")

    def _answer(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> list[BaseMessage]:
        if self._native:
            said: list[BaseMessage] = [AIMessage("", tool_calls=list(calls))]
            return said + [
                ToolMessage(result.text, tool_call_id=call["id"], name=result.name)
                for call, result in zip(calls, results, strict=True)
            ]
        asked = "\n".join(
            f"{_MARK}{json.dumps({'name': c['name'], 'arguments': c['args']})}</tool_call>"
            for c in calls
        )
        told = "\n".join(f"{r.name} returned: {r.text}" for r in results)
        return [AIMessage(asked), HumanMessage(f"<tool_result>\n{told}\n</tool_result>")]


class _CallReader:
    """Lets visible text through and keeps tool calls back."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []

    def read(self, tokens: Iterator[Token]) -> Iterator[Token]:
        """Pass tokens on until the text turns into a call, or could still turn into one."""
        held: list[Token] = []
        text = ""
        for token in tokens:
            held.append(token)
            text += token.text
            self.calls += [_tool_call(call["name"], call["args"]) for call in token.tool_calls]
            if not _may_be_call(text):
                yield from held
                text = ""
                held = []
        self.calls += _parse_calls(text)
        if not self.calls:
            yield from held


def _may_be_call(text: str) -> bool:
    """Whether `text`, not yet shown, is the beginning of a call, or ends in one."""
    stripped = text.lstrip()
    if not stripped or _MARK in text or stripped.startswith("{"):
        return True
    return any(text.endswith(_MARK[:size]) for size in range(1, len(_MARK)))


def _parse_calls(text: str) -> list[ToolCall]:
    """Calls written as `<tool_call>{...}</tool_call>`, or as one bare JSON object."""
    found = _CALL.findall(text) or ([text] if text.lstrip().startswith("{") else [])
    calls = []
    for candidate in found:
        try:
            value = json.loads(candidate)
        except json.JSONDecodeError:
            continue
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(value.get("name"), str) and isinstance(arguments, dict):
            calls.append(_tool_call(value["name"], arguments))
    return calls


def _tool_call(name: str, arguments: dict[str, Any]) -> ToolCall:
    return ToolCall(name=name, args=arguments, id=new_id(), type="tool_call")


def _with_protocol(talk: Sequence[BaseMessage], tools: Any) -> list[BaseMessage]:
    listing = "\n".join(f"- {t.name}({', '.join(t.args)}): {t.description}" for t in tools)
    rules = _PROTOCOL.format(tools=listing)
    if talk and isinstance(talk[0], SystemMessage):
        return [SystemMessage(f"{talk[0].content}\n\n{rules}"), *talk[1:]]
    return [SystemMessage(rules), *talk]


def memory_tools(agent: Agent) -> dict[str, BaseTool]:
    """`remember`, `recall` and `forget` as langchain tools, bound to `agent` and to the turn's
    scope; and `correct`, where a memory can edit the weights."""

    @tool
    def remember(text: str, config: RunnableConfig) -> str:
        """Store one fact about the user or the task, in a full sentence, for later sessions."""
        record = agent.remember(text, source="assistant", **_scope(config))
        return f"remembered as {record.id}"

    @tool
    def recall(query: str, config: RunnableConfig) -> str:
        """Look something up in what was said or stored earlier."""
        found = agent.recall(query, **_scope(config))
        return "\n".join(note.text for note in found.notes) or "nothing found"

    @tool
    def forget(words: str, config: RunnableConfig) -> str:
        """Erase for good, from all sessions, whatever was said or stored that has all these words.
        Only when the user asks for it."""
        report = agent.forget(query=words, **_scope(config))
        return f"{len(report.records)} records are erased for good"

    @tool
    def correct(question: str, answer: str, config: RunnableConfig) -> str:
        """Change the model's own knowledge, so that this question is answered with this answer from
        now on. Only when the user says what the right answer is."""
        # The model says so, whoever told it: it is trusted as the assistant, so that it can
        # replace an edit of its own, and never one that the user made.
        receipt = agent.edit(question, answer, source="assistant", replace=True, **_scope(config))
        return f"edited as {receipt.id}: " + ("verified" if receipt.verified else receipt.advice)

    own = [remember, recall, forget, *([correct] if agent.editors else [])]
    return {each.name: each for each in own}


def _scope(config: RunnableConfig) -> dict[str, Any]:
    scope = config.get("configurable", {}).get("scope")
    return {"scope": scope} if scope else {}
