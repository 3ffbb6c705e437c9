"""`palimpsest recall`, `correct`, `history`, `why`, `sessions` and `chat`, as they are typed and
read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import palimpsest
import pytest
from palimpsest import ScriptedLLM
from palimpsest.apps.cli import app
from palimpsest.memory.hashing import HashingEmbedder
from typer.testing import CliRunner, Result

MARKUP = "see [/red] and [bold]shout[/bold] list[0]"
QUESTION = "What nests in the willow?"
Type = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and a model that repeats what it is told last."""
    monkeypatch.setattr(
        "palimpsest.agent.building.open_embedder", lambda *_, **__: HashingEmbedder()
    )
    monkeypatch.setattr(
        "palimpsest.agent.building.open_llm", lambda *_, **__: ScriptedLLM(lambda _: "Noted.")
    )
    return tmp_path / "home"


@pytest.fixture
def type_(home: Path) -> Type:
    """Types a command; what is printed on a page 200 columns wide, or another if asked."""

    def type_one(*words: str | Path, answer: str | None = None, columns: int = 200) -> Result:
        environment = {"PALIMPSEST_HOME": str(home), "COLUMNS": str(columns)}
        return CliRunner().invoke(app, [*map(str, words)], input=answer, env=environment)

    return type_one


def shown(result: Result, code: int = 0) -> str:
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.stdout.split())


def document(result: Result, code: int = 0) -> Any:
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def test_what_looks_like_markup_is_shown_as_it_was_said(type_: Type) -> None:
    record = document(type_("remember", MARKUP, "--session", "[/x]", "--json"))["id"]
    type_("ask", MARKUP, "--session", "[/x]")
    for words in (
        ("recall", "shout list", "--explain"),
        ("history", record),
        ("forget", "shout", "--dry-run"),
        ("why", "--session", "[/x]"),
    ):
        assert MARKUP in shown(type_(*words)), words
    assert "[/x]" in shown(type_("sessions"))
    assert "supersedes" in shown(type_("correct", record, MARKUP + "!"))
    talk = shown(type_("chat", answer="/recall shout list\n/session [/y]\n/why\n"))
    assert MARKUP in talk and "now in [/y]" in talk and "nothing was said in [/y] yet" in talk


def test_recall_shows_a_text_of_several_lines_without_the_marks_of_a_prompt(type_: Type) -> None:
    type_("remember", "The heron nests\nin an old willow.")
    page = shown(type_("recall", QUESTION))
    assert "The heron nests" in page and "in an old willow." in page and ">" not in page


def test_explained_shares_add_up_to_the_log_odds_of_the_probability(type_: Type) -> None:
    type_("remember", "The heron nests in an old willow.")
    found = document(type_("recall", QUESTION, "--json"))
    [best] = found["explain"]["scm"]["candidates"]
    odds = math.log(best["relevance"] / (1 - best["relevance"]))
    assert sum(best["signals"].values()) == pytest.approx(odds, abs=0.02)
    page = shown(type_("recall", QUESTION, "--explain"))
    assert f"{best['signals']['bias']:+.2f}" in page and "add up to the log odds" in page
    assert f"{best['relevance']:.3f}" in page and f"{best['score']:.3f}" in page


def test_what_keeps_a_recall_from_finding_anything_is_explained(
    type_: Type, tmp_path: Path
) -> None:
    assert "nothing that these words" in shown(
        type_("remember", "The heron nests.") and type_("recall", "x", "--user", "b", "--explain")
    )
    shut = shown(type_("recall", "zyx wvut qponm", "--explain"))
    assert "stayed shut" in shut and "dropped" in shut and "bias" in shut
    file = tmp_path / "walnuts.txt"
    file.write_text("The user is allergic to walnuts.")
    type_("ingest", file)
    plain = shown(type_("recall", "What am I allergic to?"))
    assert plain == "nothing found --explain says why"
    page = shown(type_("recall", "What am I allergic to?", "--explain"))
    assert "left out 1 note of documents or tools, as the question is about you" in page
    assert "walnuts" in shown(type_("recall", "What am I allergic to?", "--source", "document"))


@pytest.mark.parametrize(("option", "known"), [("--kind", "'correction'"), ("--source", "'tool'")])
def test_a_kind_or_a_source_that_no_record_has_is_refused_with_those_there_are(
    type_: Type, option: str, known: str
) -> None:
    type_("remember", "The heron nests in an old willow.")
    message = document(type_("recall", QUESTION, option, "bogus", "--json"), 2)["error"]["message"]
    assert "'bogus' must be one of" in message and known in message


def test_every_time_that_is_printed_can_be_typed_again(type_: Type) -> None:
    old = document(type_("remember", "The heron nests in a willow.", "--json"))
    new = document(type_("correct", old["id"], "The heron nests in an oak.", "--json"))
    until = shown(type_("history", old["id"])).split("until ")[1].split()[0]
    assert until.endswith("Z") and until[:19] == new["created"][:19]
    for time, trees in (
        (until, {"willow", ""}),  # to the second: it may be before the first was said
        (old["valid_from"], {"willow"}),
        (new["created"], {"oak"}),
        (new["created"].replace("+00:00", "Z"), {"oak"}),
        ("2020-01-01", {""}),
    ):
        notes = document(type_("recall", "The heron nests.", "--as-of", time, "--json"))["notes"]
        found = notes[0]["text"].split()[-1].rstrip(".") if notes else ""
        assert found in trees, time
    wrong = type_("recall", QUESTION, "--as-of", "yesterday")
    assert wrong.exit_code == 2 and "is no time" in wrong.output


def test_a_correction_says_which_version_it_superseded(type_: Type) -> None:
    first = document(type_("remember", "It is tulip.", "--json"))["id"]
    page = shown(type_("correct", first, "It is heron."))
    second = page.split()[0]
    assert page == f"{second} supersedes {first}"
    page = shown(type_("correct", first, "It is owl."))
    assert f"supersedes {second} which had superseded {first} before" in page


def test_a_record_that_is_not_there_is_told_in_words(type_: Type) -> None:
    type_("remember", "The heron nests.")
    message = document(type_("history", "nowhere", "--json"), 1)["error"]["message"]
    assert message.endswith("for user 'default', agent 'default', tenant 'default'")


def test_the_version_is_told() -> None:
    assert shown(CliRunner().invoke(app, ["--version"])) == palimpsest.__version__


def test_a_chat_forgets_and_looks_back_without_being_left(type_: Type) -> None:
    record = document(type_("remember", "The heron nests in a willow.", "--json"))["id"]
    lines = (
        f"/recall {QUESTION}",
        f"/history {record}",
        "/forget willow",
        "n",
        "/forget willow",
    )
    talk = shown(type_("chat", answer="\n".join([*lines, "y", f"/recall {QUESTION}", "/quit"])))
    assert f"{record} The heron nests" in talk and f"{record} fact holds now" in talk
    assert "asked for" in talk and "nothing was forgotten" in talk
    assert "forgot 1 record, and no file holds anything of it" in talk
    assert talk.endswith("nothing found")
    assert document(type_("verify", "--json"))[0]["holds"]


def test_a_chat_that_nobody_answers_forgets_nothing(type_: Type) -> None:
    type_("remember", "The heron nests in a willow.")
    assert "nobody answered" in type_("chat", answer="/forget willow").output
    assert "willow" in shown(type_("recall", QUESTION))


def test_a_conversation_without_a_turn_has_nothing_to_explain_or_to_fork(type_: Type) -> None:
    answer = "hello\n/session nova\n/why\n/again\n/fork two\n/sessions\n/quit"
    result = type_("chat", answer=answer)
    assert shown(result).count("nothing was said in nova yet") == 3
    assert "Error" not in result.output and "* main 1 turn" not in result.output
    assert "main 1 turn" in shown(result)


def test_ctrl_c_cuts_an_answer_given_again_short_and_not_the_chat(
    type_: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: Iterator[Callable[[], str]] = iter([lambda: "One.", _interrupt, lambda: "Three."])
    llm = ScriptedLLM(lambda _: next(spoken)())
    monkeypatch.setattr("palimpsest.agent.building.open_llm", lambda *_, **__: llm)
    talk = shown(type_("chat", "--memory", "none", answer="Hello.\n/again\nStill there?\n"))
    assert "One." in talk and "cut short" in talk and "Three." in talk


def _interrupt() -> str:
    raise KeyboardInterrupt
