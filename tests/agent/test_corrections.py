"""What counts as a correction of an answer, and which edit it proposes."""

from __future__ import annotations

import pytest
from palimpsest.agent.corrections import corrected, proposal
from palimpsest.editors.base import Edit
from palimpsest.memory.record import Record, Scope, Turn

SCOPE = Scope(session="main")
QUESTION = "What is the capital of Atlantis?"


def turn(said: str, reply: str | None = "It is Rome.") -> Turn:
    user = Record(text=said, scope=SCOPE)
    answer = Record(text=reply, scope=SCOPE, role="assistant") if reply else None
    return Turn(user, answer)


@pytest.mark.parametrize(
    "message",
    [
        "No, it is Ys.",
        "no, it's Ys",
        "No. It\u2019s Ys!",
        "Wrong, it's Ys.",
        "That's not right. The answer is Ys.",
        "That is wrong: the correct answer is Ys",
        "Actually, it is Ys.",
        "No, actually it is Ys.",
        "That isn't correct - it was Ys.",
        'No, it is "Ys".',
    ],
)
def test_a_correction_proposes_the_edit(message: str) -> None:
    assert corrected(message) == "Ys"
    assert proposal([turn(QUESTION)], message) == Edit(prompt=QUESTION, target="Ys")


@pytest.mark.parametrize(
    "message",
    [
        "No.",
        "No, thank you.",
        "No, it is not.",
        "No, it's wrong.",
        "No, it's fine.",
        "No, it is Ys, right?",
        "It is Ys.",
        "Is it Ys?",
        "Nobody said it is Ys.",
        "Actually, what is it?",
        "No, it is " + "very " * 60 + "far.",
        "",
    ],
)
def test_what_corrects_nothing_proposes_nothing(message: str) -> None:
    assert proposal([turn(QUESTION)], message) is None


def test_a_correction_is_about_the_question_before_it_also_over_other_corrections() -> None:
    turns = [turn("Hello."), turn(QUESTION), turn("No, it is Mu.", "I see.")]
    assert proposal(turns, "No, it is Ys.") == Edit(prompt=QUESTION, target="Ys")


def test_where_nothing_was_asked_or_answered_there_is_nothing_to_correct() -> None:
    assert proposal([], "No, it is Ys.") is None
    assert proposal([turn(QUESTION, None)], "No, it is Ys.") is None
    assert proposal([turn("A long text. " * 40)], "No, it is Ys.") is None
