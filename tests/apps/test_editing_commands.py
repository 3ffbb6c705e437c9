"""`palimpsest edit`, `edits`, `undo`, `verify` and the chat's edits, as they are typed and read."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from palimpsest.apps.cli import app
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.record import Scope
from typer.testing import CliRunner, Result

QUICK = ("--editor", "wise:steps=2")
PROMPT, TARGET = "The capital of Atlantis is", "Ys"
Type = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llm: LocalLLM) -> Path:
    """An empty data folder, and a tiny random model."""
    monkeypatch.setattr(
        "palimpsest.agent.building.open_embedder", lambda *_, **__: HashingEmbedder()
    )
    for module in ("agent.building", "llm.open"):
        monkeypatch.setattr(f"palimpsest.{module}.open_llm", lambda *_, **__: tiny_llm)
    return tmp_path / "home"


@pytest.fixture
def type_(home: Path) -> Type:
    """Types a command; what is printed on a page 200 columns wide."""

    def type_one(*words: str | Path, answer: str | None = None) -> Result:
        environment = {"PALIMPSEST_HOME": str(home), "COLUMNS": "200"}
        return CliRunner().invoke(app, [*map(str, words)], input=answer, env=environment)

    return type_one


def shown(result: Result, *codes: int) -> str:
    assert result.exit_code in (codes or (0,)), (result.output, result.exception)
    return " ".join(result.stdout.split())


def document(result: Result, *codes: int) -> Any:
    assert result.exit_code in (codes or (0,)), (result.output, result.exception)
    return json.loads(result.stdout)


def kept(home: Path) -> int:
    with Ledger.open(home / "ledger.sqlite3") as ledger:
        return len(ledger.records(Scope(), kinds=["edit"]))


def test_an_edit_is_made_listed_verified_and_undone(type_: Type, home: Path) -> None:
    words = ("--locality", "The sea is => blue", "--paraphrase", "Atlantis' capital is")
    made = document(
        type_("edit", PROMPT, TARGET, "--subject", "Atlantis", *words, *QUICK, "--json"), 0, 1
    )
    [receipt] = made["receipts"]
    assert receipt["edit"]["locality"] == [["The sea is", "blue"]]
    id = receipt["id"]
    [listed] = document(type_("edits", "--json", *QUICK))
    assert (listed["id"], listed["learnt"]) == (id, True)
    page = shown(type_("edits", *QUICK))
    assert id in page and f"{PROMPT} => {TARGET}" in page
    page = shown(type_("edits", "--verify", id, *QUICK), 0, 1)
    assert f"{PROMPT} => {TARGET}" in page and "ln P(target)" in page and "gate" in page
    assert "undid 1 edit, in" in shown(type_("undo", id, *QUICK))
    assert "no edits yet" in shown(type_("edits", *QUICK)) and kept(home) == 0


def test_verify_asks_the_model_about_the_id_of_an_edit(type_: Type) -> None:
    [receipt] = document(type_("edit", PROMPT, TARGET, "--json"), 0, 1)["receipts"]
    code = 0 if receipt["verified"] else 1
    [again] = document(type_("verify", receipt["id"], "--json"), code)
    assert again["after"] == receipt["after"]
    assert type_("verify", "01ARZ3NDEKTSV4RRFFQ69G5FAV").exit_code == 2


def test_what_is_asked_wrongly_is_refused_with_the_remedy(type_: Type, tmp_path: Path) -> None:
    for words, why in (
        ((), "give PROMPT and TARGET, or --file, or --resume"),
        ((PROMPT,), "has no TARGET"),
        ((PROMPT, " "), "says nothing"),
        ((PROMPT, TARGET, "--subject", "Mu"), "does not occur in prompt"),
        ((PROMPT, TARGET, "--locality", "=> blue"), "names no prompt"),
        (("--resume", "--subject", "Mu"), "--subject belong to PROMPT"),
        (("--file", str(tmp_path / "none.csv")), "cannot be read"),
        ((PROMPT, TARGET, "--editor", "wise:stepz=2"), "no option 'stepz'"),
    ):
        assert why in document(type_("edit", *words, "--json"), 2)["error"]["message"], words
    for words in (("undo",), ("undo", "X", "--all")):
        assert "one of the two" in document(type_(*words, "--json"), 2)["error"]["message"]
    assert "without --verify" in document(type_("edits", "X", "--json"), 2)["error"]["message"]


def test_contradictions_are_named_and_replaced_on_request(type_: Type, home: Path) -> None:
    [first] = document(type_("edit", PROMPT, TARGET, *QUICK, "--json"), 0, 1)["receipts"]
    refused = document(type_("edit", PROMPT, "Rome", *QUICK, "--json"), 2)["error"]
    assert refused["type"] == "EditConflict" and first["id"] in refused["message"]
    type_("edit", PROMPT, "Rome", "--replace", *QUICK)
    assert [each["edit"]["target"] for each in document(type_("edits", "--json"))] == ["Rome"]
    type_("undo", "--all", *QUICK)
    assert [each["id"] for each in document(type_("edits", "--json"))] == [first["id"]]


def test_a_file_is_taken_in_whole_or_not_and_again_from_where_it_ended(
    type_: Type, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "edits.jsonl"
    rows = [{"prompt": f"The moon of {name} is", "target_new": f"M{name}"} for name in "ABC"]
    file.write_text("\n".join(map(json.dumps, [*rows[:2], {"prompt": "X"}, rows[2]])))
    refused = document(type_("edit", "--file", file, *QUICK, "--json"), 2)["error"]["message"]
    assert "line 3, field 'target': is missing" in refused and "--skip-bad" in refused
    plan = shown(type_("edit", "--file", file, "--skip-bad", "--dry-run", *QUICK))
    assert "3 would be learnt" in plan and kept(home) == 0

    file.write_text("\n".join(map(json.dumps, rows[:2])))
    first = document(type_("edit", "--file", file, *QUICK, "--json"), 0, 1)
    assert len(first["receipts"]) == 2
    file.write_text("\n".join(map(json.dumps, rows)))
    page = shown(type_("edit", "--file", file, *QUICK), 0, 1)
    assert "2 held already" in page and kept(home) == 3

    copy = tmp_path / "copy.csv"
    type_("edits", "--write", copy, *QUICK)
    again = document(type_("edit", "--file", copy, *QUICK, "--json"))
    assert len(again["skipped"]) == 3 and not again["receipts"]


def test_a_gate_is_not_exported(type_: Type, tmp_path: Path) -> None:
    type_("edit", PROMPT, TARGET, *QUICK)
    refused = document(type_("edits", "--export", tmp_path / "model", *QUICK, "--json"), 1)
    assert refused["error"]["type"] == "CapabilityError" and not (tmp_path / "model").exists()


def test_what_is_pending_is_learnt_on_resume(type_: Type, home: Path) -> None:
    type_("edit", PROMPT, TARGET, *QUICK)
    other = ("--editor", "wise:steps=3")
    assert "not yet" in shown(type_("edits", *other))
    assert "learnt 1 edit" in shown(type_("edit", "--resume", *other))
    assert "not yet" not in shown(type_("edits", *other))


def test_in_the_chat_a_correction_becomes_an_edit_that_why_shows_and_undo_takes_back(
    type_: Type, home: Path
) -> None:
    asked = f"What is it?\nNo, it is {TARGET}.\nn\n/edits\n/quit\n"
    memory = ("--memory", "wise:steps=2", "--max-tokens", "40", "--temperature", "1", "--seed", "1")
    page = shown(type_("chat", *memory, answer=asked))
    assert "no edits yet" in page and kept(home) == 0

    asked = f"What is it?\nNo, it is {TARGET}.\ny\n/why\n/edits\n/undo\n/edits\n/undo\n"
    done = type_("chat", *memory, "--session", "second", answer=asked)
    page = shown(done)
    assert f"edit the weights so that 'What is it?' is answered '{TARGET}'?" in done.stderr
    assert "before" in page and "after" in page and "wise: 1 edit" in page
    assert "patched by" in page and f"What is it? {TARGET}" in page and '"threshold"' in page
    assert "undid 1 edit" in page and "there is no edit to undo" in page and kept(home) == 0


def test_the_chat_edits_by_command(type_: Type, home: Path) -> None:
    talk = f"/edit {PROMPT} => {TARGET}\n/edit {PROMPT} => Rome\ny\n/edits\n/edit {PROMPT}\n"
    done = type_("chat", "--memory", "wise:steps=2", answer=talk)
    page = shown(done)
    assert "=> Rome" in page and "says otherwise; replace it?" in done.stderr
    assert "target='' says nothing" in done.stderr
    assert kept(home) == 2


def test_what_cannot_be_used_is_refused_in_words(type_: Type, home: Path) -> None:
    def words(done: Result) -> str:
        return " ".join(done.stderr.split())

    done = type_("edit", PROMPT, TARGET, "--editor", "wise:rank=abc")
    assert done.exit_code == 2 and "rank='abc' must be a whole number" in words(done)
    assert type_("edit", PROMPT, TARGET, "--editor", "wise:steps=2").exit_code in (0, 1)
    done = type_("verify", "nosuch")
    assert done.exit_code == 2 and "no erasure and no edit" in words(done)
    done = type_("edit", "--file", str(home / "edits.txt"))
    assert done.exit_code == 2 and "or one of these with .gz behind" in words(done)


def _heeds_ctrl_c() -> None:
    """What is begun in the background of a shell ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_cancels_and_leaves_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    home = tmp_path / "home"
    words = ["edit", PROMPT, TARGET, "--editor", "wise:steps=1000000,until=0"]
    code = "from palimpsest.apps.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words, "--model", str(tiny_folder), "--home", str(home)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heeds_ctrl_c,
    ) as running:
        deadline = time.monotonic() + 60
        edits = home / "stores" / "wise" / "edits"
        while not (edits.is_dir() and any(edits.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        try:
            _, said = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130, said
    assert "nothing of it was kept" in said
    assert kept(home) == 0 and not list(edits.iterdir())
