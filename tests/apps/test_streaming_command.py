"""`--stream-memory`, as it is typed and read, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from palimpsest.apps.cli import app
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.hashing import HashingEmbedder
from typer.testing import CliRunner, Result


@pytest.fixture
def home(tiny_llm: LocalLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        "palimpsest.agent.building.open_embedder", lambda *_, **__: HashingEmbedder()
    )
    monkeypatch.setattr("palimpsest.agent.building.open_llm", lambda *_, **__: tiny_llm)
    return tmp_path / "home"


def typed(home: Path, *words: str | Path, answer: str | None = None) -> Result:
    environment = {"PALIMPSEST_HOME": str(home), "COLUMNS": "200"}
    return CliRunner().invoke(app, [*map(str, words)], input=answer, env=environment)


def test_a_file_is_read_into_a_session_and_asked_about_there(home: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Line {n}: herons nest in willows." for n in range(20)))
    stream = ("--stream-memory", "sinks:budget=128", "--memory", "none", "--session", "book")
    read = typed(home, "read", book, *stream)
    assert read.exit_code == 0, read.output
    assert "tokens/s" in read.stdout and "stores" in read.stdout and "MiB" in read.stdout
    again = json.loads(typed(home, "read", book, *stream, "--json").stdout)
    assert again["ingested"]["files"][0]["known"] and not again["cancelled"]
    assert "tokens_read" not in again["read"]["sinks"]
    asked = typed(home, "ask", "What nests?", *stream, "--max-tokens", "4", "--json")
    told = json.loads(asked.stdout)["why"]["memories"][0]["explain"]
    assert told["tokens_stored"] <= 128 < told["tokens_seen"] and told["tokens_read"] < 80


def test_other_ways_to_read_are_refused_beside_it(home: Path, tmp_path: Path) -> None:
    refused = typed(home, "read", tmp_path / "x.txt", "--ask", "?", "--stream-memory", "sinks")
    assert refused.exit_code == 2 and "--ask and --stream-memory" in refused.stderr
    assert typed(home, "ask", "?", "--stream-memory", "sinks:wings=2").exit_code == 2


def test_the_chat_says_what_each_turn_read(home: Path) -> None:
    how = ("--stream-memory", "sinks:budget=128", "--memory", "none", "--max-tokens", "4")
    talk = typed(home, "chat", *how, answer="Hello.\nAgain.\n/why\n")
    assert talk.exit_code == 0, talk.output
    assert talk.stdout.count("sinks:") == 2 and "stored" in talk.stdout
    assert "cache place" in talk.stdout and "tokens_read" in talk.stdout
