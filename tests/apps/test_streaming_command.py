"""`--stream-memory`, as it is typed and read, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import pytest
from langchain_core.messages import BaseMessage
from palimpsest.apps.cli import app
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.places import Cache
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
    assert not home.exists()
    assert typed(home, "ask", "?", "--stream-memory", "sinks:wings=2").exit_code == 2
    number = typed(home, "ask", "?", "--stream-memory", "sinks:budget=much")
    assert number.exit_code == 2 and "budget='much' must be a whole number" in number.stderr


def test_it_names_one_policy_and_no_other_memory(home: Path) -> None:
    strange = typed(home, "ask", "?", "--stream-memory", "scm")
    assert strange.exit_code == 2 and "retention policy 'scm' is not known" in strange.stderr
    both = typed(home, "ask", "?", "--stream-memory", "sinks", "--memory", "sirllm:budget=512")
    assert both.exit_code == 2 and "two KV caches" in both.stderr
    assert not home.exists()


class Interrupted(LocalLLM):
    """Ctrl-C is pressed when a part of what it reads was read."""

    def read(
        self,
        messages: Sequence[BaseMessage],
        into: Cache,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancel: Event | None = None,
    ) -> int:
        def told(done: int, expected: int) -> None:
            if progress is not None:
                progress(done, expected)
            if done and cancel is None:
                raise KeyboardInterrupt

        return super().read(messages, into, progress=told, cancel=cancel)


def test_a_reading_that_is_cut_short_says_how_far_it_came(
    home: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = Interrupted.load(tiny_folder, device="cpu", name="tiny")
    monkeypatch.setattr("palimpsest.agent.building.open_llm", lambda *_, **__: llm)
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Line {n}: herons nest in willows." for n in range(20)))
    stream = ("--stream-memory", "sinks:budget=128", "--memory", "none", "--session", "book")
    told = json.loads(typed(home, "read", book, *stream, "--json").stdout)
    assert told["cancelled"]
    assert told["read"]["sinks"]["tokens_read"] == told["read"]["sinks"]["tokens_seen"] > 0


def test_the_chat_says_what_each_turn_read(home: Path) -> None:
    how = ("--stream-memory", "sinks:budget=128", "--memory", "none", "--max-tokens", "4")
    talk = typed(home, "chat", *how, answer="Hello.\nAgain.\n/why\n")
    assert talk.exit_code == 0, talk.output
    assert talk.stdout.count("sinks:") == 2 and "stored" in talk.stdout
    assert "cache place" in talk.stdout and "tokens_read" in talk.stdout
