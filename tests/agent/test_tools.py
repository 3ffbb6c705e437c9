"""Tools: called by the model, run by the loop, seen by nobody but the trace."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from langchain_core.messages import BaseMessage
from palimpsest import Agent, ScriptedLLM
from palimpsest.errors import ConfigError
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Scope


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def broken() -> str:
    """Always fails."""
    raise RuntimeError("no such luck")


CALL = '<tool_call>{"name": "%s", "arguments": %s}</tool_call>'


class Scripted(ScriptedLLM):
    """Says its lines one after the other."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)
        super().__init__(lambda _: next(self._lines))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def open_agent(home: Path, llm: ScriptedLLM, *tools: object) -> Agent:
    return Agent.open(
        llm,
        home=home,
        memories=["scm:gate=always"],
        embedder=HashingEmbedder(),
        tools=tools,  # type: ignore[arg-type]
    )


def prompt_text(prompt: Sequence[BaseMessage]) -> str:
    return "\n".join(str(message.content) for message in prompt)


def test_a_call_is_run_and_its_result_is_read_before_the_answer(home: Path) -> None:
    llm = Scripted(CALL % ("add", '{"a": 2, "b": 3}'), "The sum is 5.")
    with open_agent(home, llm, add) as agent:
        reply = agent.ask("What is 2 + 3?")
        assert reply.text == "The sum is 5."
        assert reply.why.tools == ["add"]
        assert "Add two numbers" in prompt_text(llm.prompts[0])
        assert "add returned: 5" in prompt_text(llm.prompts[1])
        (kept,) = [r for r in agent.ledger.records(Scope()) if r.role == "tool"]
        assert (kept.text, kept.source, kept.parents) == ("5", "tool", (reply.why.message,))


def test_what_the_user_sees_never_contains_a_call(home: Path) -> None:
    llm = Scripted("Let me see. " + CALL % ("add", '{"a": 1, "b": 1}'), "Two.")
    with open_agent(home, llm, add) as agent:
        assert "tool_call" not in "".join(map(str, agent.stream("1 + 1?")))


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("nothing", "{}", "no tool 'nothing'"),
        ("broken", "{}", "RuntimeError: no such luck"),
        ("add", '{"a": "x"}', "validation error"),
    ],
)
def test_a_call_that_fails_is_told_to_the_model(
    home: Path, name: str, arguments: str, told: str
) -> None:
    llm = Scripted(CALL % (name, arguments), "I could not.")
    with open_agent(home, llm, add, broken) as agent:
        assert agent.ask("Try it").text == "I could not."
        assert told in prompt_text(llm.prompts[1])


def test_a_model_that_never_stops_calling_must_answer_in_the_end(home: Path) -> None:
    llm = ScriptedLLM(
        lambda prompt: (
            CALL % ("add", '{"a": 1, "b": 1}')
            if "You can use these tools" in prompt_text(prompt)
            else "Enough."
        )
    )
    with open_agent(home, llm, add) as agent:
        reply = agent.ask("Go")
        assert reply.text == "Enough."
        assert len(reply.why.tools) == 8


@pytest.mark.parametrize(
    "text", ["{not json at all", '{"name": 3}', "a < b and <tool", "<tool_call> x"]
)
def test_text_that_only_looks_like_a_call_reaches_the_user(home: Path, text: str) -> None:
    with open_agent(home, Scripted(text), add) as agent:
        assert agent.ask("Say it").text == text


def test_remember_and_recall_are_tools_within_the_turns_own_scope(home: Path) -> None:
    llm = Scripted(
        CALL % ("remember", '{"text": "Maria climbs on Mondays."}'),
        "Noted.",
        CALL % ("recall", '{"query": "When does Maria climb?"}'),
        "On Mondays.",
    )
    with open_agent(home, llm, "remember", "recall") as agent:
        agent.ask("Note that Maria climbs on Mondays", user="maria")
        agent.ask("When?", user="maria", session="later")
        assert "Maria climbs on Mondays." in prompt_text(llm.prompts[-1])
        assert not agent.recall("Maria climbs", user="joao").notes
        (fact,) = agent.ledger.records(Scope(user="maria"), kinds={"fact"})
        assert fact.source == "assistant", (
            "what a model noted is trusted less than what a user said"
        )


def test_unknown_and_twice_named_tools_are_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="forget_all"):
        open_agent(home, Scripted(), "forget_all")
    with pytest.raises(ConfigError, match="share a name"):
        open_agent(home, Scripted(), add, add)
