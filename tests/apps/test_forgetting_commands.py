"""`palimpsest forget` and `palimpsest verify`, as they are typed and read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from palimpsest import Agent, ScriptedLLM
from palimpsest.apps.cli import app
from palimpsest.memory.hashing import HashingEmbedder
from typer.testing import CliRunner, Result

SECRET = "Zoë's PIN for the vault is 99-44-17."
HERON = "The heron nests in an old willow."

Type = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with two facts and an answer that went by one of them."""
    monkeypatch.setattr(
        "palimpsest.agent.building.open_embedder", lambda *_, **__: HashingEmbedder()
    )
    folder = tmp_path / "home"
    with Agent.open(ScriptedLLM(lambda _: "It is in your notes."), home=folder) as agent:
        agent.remember(SECRET)
        agent.remember(HERON)
    return folder


@pytest.fixture
def type_(home: Path) -> Type:
    """Types a command; what is printed on a page 200 columns wide."""

    def type_one(*words: str, answer: str | None = None, columns: int = 200) -> Result:
        environment = {"PALIMPSEST_HOME": str(home), "COLUMNS": str(columns)}
        return CliRunner().invoke(app, list(words), input=answer, env=environment)

    return type_one


def shown(result: Result, code: int = 0) -> str:
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.stdout.split())


def document(result: Result, code: int = 0) -> Any:
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def texts(home: Path) -> set[str]:
    with Agent.open(ScriptedLLM(lambda _: ""), home=home) as agent:
        return {record.text for record in agent.ledger.records(agent.scope)}


def test_a_dry_run_shows_what_would_go_and_leaves_it(type_: Type, home: Path) -> None:
    page = shown(type_("forget", "vault", "--dry-run"))
    assert SECRET in page and "asked for" in page and "1 artefact" in page
    assert HERON not in page
    assert texts(home) == {SECRET, HERON}


def test_it_asks_before_it_erases_and_no_means_no(type_: Type, home: Path) -> None:
    refused = type_("forget", "vault", answer="n\n")
    assert refused.exit_code == 1
    assert "Erase 1 record for good?" in refused.output
    assert texts(home) == {SECRET, HERON}
    page = shown(type_("forget", "vault", answer="y\n"))
    assert "forgot 1 record, and no file holds anything of it" in page
    assert texts(home) == {HERON}


def test_the_report_that_was_written_can_be_verified_until_it_is_tampered_with(
    type_: Type, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    page = shown(type_("forget", "vault", "--yes", "--report", str(file)))
    assert f"written to {file}" in page and "not checked" in page
    for asked in ((str(file),), (), (json.loads(file.read_text())["report"]["id"],)):
        page = shown(type_("verify", *asked))
        assert page.count("holds ") >= 5 and page.endswith("the report holds")
    written = json.loads(file.read_text())
    written["report"]["search"]["residue"] = 0
    written["report"]["traces"] += 1
    file.write_text(json.dumps(written))
    page = shown(type_("verify", str(file)), 1)
    assert "fails the report is as it was signed" in page and page.endswith("it does not hold")


def test_json_is_one_document_of_each(type_: Type, tmp_path: Path) -> None:
    plan = document(type_("forget", "vault", "--dry-run", "--json"))
    assert [each["why"] for each in plan["report"]["records"]] == ["asked for"]
    assert plan["signature"] is None
    done = document(type_("forget", "vault", "--yes", "--json"))
    assert done["report"]["search"]["residue"] == 0 and done["signature"]["value"]
    [verdict] = document(type_("verify", "--json"))
    assert verdict["holds"] and len(verdict["checks"]) == 5


def test_elsewhere_only_the_signature_is_checked(type_: Type, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    type_("forget", "vault", "--yes", "--report", str(file))
    page = shown(type_("verify", str(file), "--elsewhere"))
    assert page.count("not checked") == 3
    assert page.endswith("the signature holds; the rest could not be checked")


def test_what_is_left_makes_the_command_fail(type_: Type, home: Path) -> None:
    (home / "note.txt").write_text(SECRET, encoding="utf-8")
    page = shown(type_("forget", "vault", "--yes"), 1)
    assert "note.txt" in page and "files still hold something of it, in" in page
    assert "fails no file held any of it" in shown(type_("verify"), 1)


def test_ids_words_and_everything_can_be_named(type_: Type, home: Path) -> None:
    with Agent.open(ScriptedLLM(lambda _: ""), home=home) as agent:
        ids = [record.id for record in agent.ledger.records(agent.scope)]
    assert len(document(type_("forget", *ids, "--dry-run", "--json"))["report"]["records"]) == 2
    assert "2 asked for" in shown(type_("forget", "--everything", "--yes"))
    assert texts(home) == set()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("forget",), 2, "say what to forget"),
        (("forget", "pelican", "--yes"), 1, "no record with all these words for user 'default'"),
        (("forget", "vault", "--user", "bob", "--yes"), 1, "user 'bob'"),
        (("forget", "a", "--query", "b"), 2, "query"),
        (("forget", "--since", "2026-05-01", "--yes"), 2, "name the source, too"),
        (("forget", "vault", "--yes", "--report", "/nowhere/r.json"), 2, "nothing was forgotten"),
        (("verify", "nowhere.json"), 2, "cannot read"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    type_: Type, home: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    result = type_(*words)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.split())
    assert texts(home) == {SECRET, HERON}


def test_a_folder_that_forgot_nothing_yet_says_so(type_: Type) -> None:
    assert shown(type_("verify")) == "nothing was forgotten yet"
    assert document(type_("verify", "--json")) == []


def test_a_long_text_is_cut_and_leaves_room_for_why_and_which(type_: Type, home: Path) -> None:
    with Agent.open(ScriptedLLM(lambda _: ""), home=home) as agent:
        record = agent.remember("A vault of words. " * 50)
    page = shown(type_("forget", "vault", "--dry-run", columns=80))
    assert "asked for" in page and record.id in page and "2 A vault of words" in page
    assert "…" in page and page.count("A vault of words.") == 2


def test_where_nobody_can_answer_the_question_is_an_error_that_names_yes(
    type_: Type, home: Path
) -> None:
    message = document(type_("forget", "vault", "--json"), 2)["error"]["message"]
    assert "nobody answered" in message and "--yes" in message
    assert texts(home) == {SECRET, HERON}


def test_a_text_too_short_to_be_searched_for_is_not_called_gone_from_every_file(
    type_: Type, home: Path
) -> None:
    with Agent.open(ScriptedLLM(lambda _: ""), home=home) as agent:
        agent.remember("PIN 7")
    page = shown(type_("forget", "PIN 7", "--yes"))
    assert "it was too short or too plain to be searched for" in page


def test_a_report_is_not_checked_by_a_folder_that_has_no_ledger(
    type_: Type, tmp_path: Path
) -> None:
    file, wrong = tmp_path / "report.json", tmp_path / "typo"
    type_("forget", "vault", "--yes", "--report", str(file))
    done = type_("verify", str(file), "--home", str(wrong), "--json")
    assert "keeps no ledger to check a report by" in document(done, 2)["error"]["message"]
    assert not wrong.exists()
    assert "the signature holds" in shown(type_("verify", str(file), "--elsewhere"))


def test_a_report_that_cannot_be_written_any_more_is_still_named(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.json"
    monkeypatch.setattr("palimpsest.apps.forgetting._try_to_write", lambda _: file.mkdir())
    result = type_("forget", "vault", "--yes", "--report", str(file))
    [verdict] = document(type_("verify", "--json"))
    assert result.exit_code == 2 and f"`palimpsest verify {verdict['report']}`" in " ".join(
        result.output.split()
    )


def test_a_hint_names_the_folder_that_was_typed_and_no_other(type_: Type, home: Path) -> None:
    page = shown(type_("forget", "heron", "--yes"))
    assert "`palimpsest verify 01" in page and "--home" not in page
    page = shown(type_("forget", "vault", "--yes", "--home", str(home)))
    assert f" --home {home}`" in page
