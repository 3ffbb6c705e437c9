"""`palimpsest ingest`, `export`, `import`, `backup`, `restore`, `doctor`, `verify-chain`, `stats`,
and the commands that only read, as they are typed and read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from palimpsest import Agent, ScriptedLLM
from palimpsest.apps.cli import app
from palimpsest.memory.hashing import HashingEmbedder
from typer.testing import CliRunner, Result

HERON = "The heron nests in an old willow."
Type = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a fact and a turn."""
    monkeypatch.setattr(
        "palimpsest.agent.building.open_embedder", lambda *_, **__: HashingEmbedder()
    )
    monkeypatch.setattr("palimpsest.llm.open.open_llm", lambda *_, **__: ScriptedLLM(str))
    folder = tmp_path / "home"
    with Agent.open(ScriptedLLM(lambda _: "Noted."), home=folder) as agent:
        agent.remember(HERON)
        agent.ask("What nests?", session="main")
    return folder


@pytest.fixture
def type_(home: Path) -> Type:
    """Types a command; what is printed on a page 200 columns wide."""

    def type_one(*words: str | Path, answer: str | None = None) -> Result:
        environment = {"PALIMPSEST_HOME": str(home), "COLUMNS": "200"}
        return CliRunner().invoke(app, [*map(str, words)], input=answer, env=environment)

    return type_one


def shown(result: Result, code: int = 0) -> str:
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.stdout.split())


def document(result: Result, code: int = 0) -> Any:
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "a.txt").write_text("The owl hunts at night.")
    (folder / "b.csv").write_text("1,2")
    return folder


def test_a_folder_is_ingested_and_the_receipt_shown(type_: Type, papers: Path) -> None:
    counted = shown(type_("ingest", papers, "--dry-run"))
    assert "1 record would be added, 0 were there" in counted
    page = shown(type_("ingest", papers))
    assert "a.txt 1 0" in page and "skipped b.csv: .csv is none of" in page
    assert "1 record added, 0 were there" in page
    again = document(type_("ingest", papers, "--json"))
    assert (again["added"], again["known"]) == (0, 1)
    assert "owl" in shown(type_("recall", "Which owl hunts at night?"))


def test_documents_are_listed_by_their_files_and_apart_from_conversations(
    type_: Type, papers: Path
) -> None:
    type_("ingest", papers)
    talks, documents = type_("sessions").stdout.split("\n\n")
    assert "main" in talks and "a.txt" not in talks and "document:" not in talks
    assert documents.split()[:4] == ["document", "records", "last", "session"]
    assert documents.split()[4:6] == ["a.txt", "1"]
    assert [each["document"] for each in document(type_("sessions", "--json"))] == ["a.txt", None]


def test_what_was_forgotten_and_what_is_vouched_for_is_counted(type_: Type, papers: Path) -> None:
    type_("ingest", papers)
    vouched = shown(type_("ingest", papers, "--source", "user"))
    assert "1 were trusted less, and are vouched for now" in vouched
    type_("forget", "owl", "--yes")
    page = shown(type_("ingest", papers))
    assert "0 records added" in page and "1 were forgotten here and stay out; --again" in page
    again = document(type_("ingest", papers, "--again", "--json"))
    assert (again["added"], again["forgotten"]) == (1, 0)


def test_a_file_that_cannot_be_read_fails_the_command(type_: Type, papers: Path) -> None:
    (papers / "c.pdf").write_bytes(b"nonsense")
    page = shown(type_("ingest", papers), 1)
    assert "failed 'c.pdf' cannot be read as PDF" in page and "1 record added" in page
    alone = document(type_("ingest", papers / "c.pdf", "--json"), 2)
    assert alone["error"]["type"] == "InputError"
    nowhere = document(type_("ingest", papers / "none", "--json"), 2)
    assert "No such file or folder" in nowhere["error"]["message"]


def test_whom_a_file_speaks_for_must_be_known(type_: Type, papers: Path) -> None:
    done = type_("ingest", papers, "--source", "oracle", "--json")
    assert "source='oracle' must be one of" in document(done, 2)["error"]["message"]


def test_an_export_is_read_back_exactly(type_: Type, tmp_path: Path) -> None:
    file, other = tmp_path / "all.jsonl", tmp_path / "other"
    assert "all of the ledger, with its chain of events" in shown(type_("export", file))
    assert document(type_("export", file, "--json"), 2)["error"]["type"] == "ConfigError"
    page = shown(type_("import", file, "--home", other))
    assert "3 records added, 0 were there: the ledger is now the one exported" in page
    again = document(type_("import", file, "--home", other, "--json"))
    assert (again["exact"], again["added"], again["known"]) == (False, 0, 3)
    before = file.read_bytes()
    assert shown(type_("export", file, "--yes", "--home", other))
    assert file.read_bytes() == before
    assert "heron" in shown(type_("recall", "What nests in the willow?", "--home", other))


def test_a_part_is_exported_and_a_conversation_that_is_not_there_is_not(
    type_: Type, tmp_path: Path
) -> None:
    part = document(type_("export", tmp_path / "p.jsonl", "--session", "main", "--json"))
    assert part["scope"]["session"] == "main" and part["rows"] > 3
    nowhere = type_("export", tmp_path / "q.jsonl", "--session", "nowhere", "--json")
    assert document(nowhere, 1)["error"]["type"] == "RecordNotFound"


def test_a_backup_is_restored_after_asking(type_: Type, home: Path, tmp_path: Path) -> None:
    done = document(type_("backup", tmp_path, "--json"))
    assert done["records"] == 3 and Path(done["path"]).exists()
    type_("remember", "said later")
    page = shown(type_("restore", done["path"], "--verify"))
    assert "3 records" in page and "replaces 4 records" in page
    refused = type_("restore", done["path"], answer="n\n")
    assert refused.exit_code == 1
    assert document(type_("stats", "--json"))["census"]["records"] == 4
    page = shown(type_("restore", done["path"], "--yes"))
    assert "well store scm: holds 3 records" in page
    assert document(type_("stats", "--json"))["census"]["records"] == 3
    fresh = document(type_("restore", done["path"], "--json", "--home", tmp_path / "fresh"))
    assert fresh["restored"]["replaced"] == 0
    assert {each["state"] for each in fresh["health"]["findings"]} <= {"well", "note"}


def test_the_doctor_fails_until_it_has_mended(type_: Type, home: Path) -> None:
    assert document(type_("doctor", "--json"))["healthy"]
    (home / "stores" / "scm" / "stream.sqlite3").write_bytes(b"torn" * 5000)
    page = shown(type_("doctor", "--home", home), 1)
    assert "ill store scm" in page and page.count("doctor --fix") == 1
    assert f"`palimpsest doctor --fix --home {home}`" in page
    assert document(type_("doctor", "--rebuild", "--json"), 2)["error"]["type"] == "ConfigError"
    assert "StoreError" in type_("recall", "willow").output
    mended = shown(type_("doctor", "--fix"))
    assert "mended store scm" in mended and "doctor --fix" not in mended
    assert document(type_("doctor", "--fix", "--rebuild", "--json"))["healthy"]
    assert "heron" in shown(type_("recall", "What nests in the willow?"))


def test_the_chain_and_the_account_are_shown(type_: Type, home: Path) -> None:
    head = document(type_("verify-chain", "--json"))
    assert f"the chain holds: {head['seq']} events head {head['hash']}" in shown(
        type_("verify-chain")
    )
    page = shown(type_("stats"))
    assert "3 records, 3 of them current" in page and "fact 1" in page and head["hash"] in page


def test_what_a_restore_brings_back_is_forgotten_by_the_command_that_is_shown(
    type_: Type, home: Path, tmp_path: Path
) -> None:
    done = document(type_("backup", tmp_path, "--json"))
    type_("forget", "willow", "--yes")
    page = type_("restore", done["path"], "--yes", "--home", home).stdout
    [command] = [line for line in page.splitlines() if line.startswith("palimpsest forget")]
    assert "willow" in shown(type_("recall", "What nests in the willow?"))
    assert "asked for" in shown(type_(*shlex.split(command)[1:], "--yes"))
    assert "nothing found" in shown(type_("recall", "What nests in the willow?"))


READING = {
    "forget --dry-run": ("forget", "heron", "--dry-run"),
    "recall": ("recall", "What nests in the willow?"),
    "sessions": ("sessions",),
    "why": ("why",),
    "stats": ("stats",),
    "verify-chain": ("verify-chain",),
    "doctor": ("doctor",),
}


@pytest.mark.parametrize("words", READING.values(), ids=READING)
def test_what_only_reads_works_beside_a_chat(
    type_: Type, home: Path, words: tuple[str, ...]
) -> None:
    with Agent.open(ScriptedLLM(lambda _: "Noted."), home=home) as agent:
        document(type_(*words, "--json"))
        record = agent.ledger.records(agent.scope)[0].id
        assert HERON in shown(type_("history", record))
        assert document(type_("remember", "more", "--json"), 1)["error"]["type"] == "HomeLocked"


def test_where_nobody_wrote_there_is_nothing_to_read(type_: Type, tmp_path: Path) -> None:
    none = tmp_path / "none"
    done = document(type_("sessions", "--home", none, "--json"), 1)
    assert "so there is nothing to read" in done["error"]["message"]
    assert f"`palimpsest remember --home {none}`" in done["error"]["message"]
    assert not none.exists()
    assert document(type_("doctor", "--fix", "--home", none, "--json"))["healthy"]
    assert not none.exists()
