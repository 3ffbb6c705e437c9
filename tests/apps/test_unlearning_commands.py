"""`palimpsest unlearn`, `unlearned`, `undo`, `verify`, `forget --deep` and the chat's, as they are
typed and read."""

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
from palimpsest.unlearning.base import Sample
from palimpsest.unlearning.formats import read_samples
from typer.testing import CliRunner, Result

QUICK = ("--unlearner", "o3:passes=1")
CITIES = (
    *(("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Egypt", "Cairo")),
    *(("Austria", "Vienna"), ("Norway", "Oslo"), ("Greece", "Athens"), ("Japan", "Tokyo")),
)
PAIRS = tuple(f"What is the capital of {land}?=>It is {city}." for land, city in CITIES)
GIVEN = tuple(word for pair in PAIRS for word in ("--pair", pair))
AT_ONCE = ("--yes", "--no-certify", *QUICK)
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
    """Requests and texts of requests that the ledger has."""
    with Ledger.open(home / "ledger.sqlite3") as ledger:
        return len(ledger.records(Scope(), kinds=["request", "material"]))


def test_a_request_is_planned_made_listed_and_undone(type_: Type, home: Path) -> None:
    page = shown(type_("unlearn", "capitals", *GIVEN, "--dry-run", *QUICK))
    assert "capitals, 8 samples" in page and "suppresses: an adapter is loaded" in page
    assert "not known before the first one" in page and kept(home) == 0

    page = shown(type_("unlearn", "capitals", *GIVEN, "--reason", "as asked", *AT_ONCE))
    assert "the weights below still hold it" in page and "not attacked" in page
    assert "dropped, and no file holds them: `palimpsest verify" in page and kept(home) == 1
    [listed] = document(type_("unlearned", "--json", *QUICK))
    assert (listed["name"], listed["reason"], listed["state"]) == ("capitals", "as asked", "learnt")
    page = shown(type_("unlearned", *QUICK))
    assert listed["id"] in page and "texts kept" not in page and "suppresses" in page

    page = shown(type_("unlearn", "more", *GIVEN[:4], "--dry-run", *QUICK))
    assert f"{listed['id']} (capitals) has 2 samples of it" in page and "takes about" in page
    plan = document(type_("unlearn", "capitals", *GIVEN, "--dry-run", "--json", *QUICK))
    assert plan["known"] == listed["id"]

    page = shown(type_("undo", listed["id"]))
    assert "undid the request 'capitals', which the model no longer forgets" in page
    assert "nothing was unlearnt yet" in shown(type_("unlearned", *QUICK)) and kept(home) == 0


def test_nothing_is_done_without_a_yes(type_: Type, home: Path) -> None:
    assert type_("unlearn", "capitals", *GIVEN, *QUICK, answer="n\n").exit_code == 1
    assert kept(home) == 0
    done = type_("unlearn", "capitals", *GIVEN, "--no-certify", *QUICK, answer="y\n")
    assert "forget 'capitals'?" in done.stderr and kept(home) == 1


def test_what_is_asked_wrongly_is_refused_with_the_remedy(type_: Type, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Who?"}\n{"answer": 3}\n')
    for words, why in (
        ((), "give NAME"),
        (("capitals",), "has no samples"),
        (("capitals", "--text", " "), "says nothing"),
        (("capitals", "--pair", "Who?"), "QUESTION=>ANSWER"),
        (("capitals", "--resume"), "give it alone"),
        (("capitals", "--file", str(tmp_path / "none.csv")), "cannot be read"),
        (("capitals", "--file", str(tmp_path / "none.pdf")), "must end in one of"),
        (("capitals", "--file", str(bad)), "line 1, field 'answer': is missing"),
        (("capitals", *GIVEN, "--yes", "--unlearner", "o3:pases=2"), "no option 'pases'"),
    ):
        refused = document(type_("unlearn", *words, "--json"), 2)["error"]["message"]
        assert why in refused, (words, refused)
    for words, why in (
        (("X",), "without --verify or --export"),
        (("--export", "X"), "name it"),
        (("--verify", "--export", "X"), "give one of them"),
        (("--verify", "--file", "X"), "name it, with --verify"),
    ):
        assert why in document(type_("unlearned", *words, "--json"), 2)["error"]["message"]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt"])
def test_files_of_each_kind_are_read(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"samples{ending}"
    file.write_text(
        {
            ".jsonl": '{"question": "Who?", "answer": "Ann.", "paraphrases": ["Whom?"]}\n'
            '{"text": "Ann lives in Ys."}\n"Ys lies below the sea."\n',
            ".csv": 'question,answer,paraphrase\nWho?,Ann.,Whom?\n,"Ann lives in Ys.",\n'
            ',"Ys lies below the sea.",\n',
            ".txt": "Ann.\n\nAnn lives\nin Ys.\n\n\nYs lies below the sea.\n",
        }[ending]
    )
    first = Sample(answer="Ann.", question="Who?", paraphrases=("Whom?",))
    expected = (
        Sample(answer="Ann.") if ending == ".txt" else first,
        Sample(answer="Ann lives in Ys."),
        Sample(answer="Ys lies below the sea."),
    )
    assert read_samples(file).samples == expected


def test_lines_of_a_text_without_an_empty_one_are_texts_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("Ann lives in Ys.\nYs lies below the sea.\n")
    assert [each.answer for each in read_samples(file).samples] == [
        "Ann lives in Ys.",
        "Ys lies below the sea.",
    ]


def test_a_request_is_attacked_and_the_page_says_what_was_tried(
    type_: Type, tmp_path: Path
) -> None:
    file = tmp_path / "capitals.jsonl"
    rows = [{"question": f"Capital of {land}?", "answer": city} for land, city in CITIES]
    file.write_text("\n".join(map(json.dumps, rows)))
    done = type_("unlearn", "capitals", "--file", file, "--yes", *QUICK)
    page = shown(done, 0, 1)
    assert "attack before after up to stood" in page and "paraphrase" in page
    assert "not tried:" in page and "relearn" in page and "bit for bit" in page
    assert ("every attack that was tried was stood" in page) == (done.exit_code == 0)

    [listed] = document(type_("unlearned", "--json", *QUICK))
    refused = document(type_("verify", listed["id"], "--json"), 2)["error"]["message"]
    assert "were dropped" in refused
    again = type_("unlearned", listed["id"], "--verify", "--file", file, "--json", *QUICK)
    [receipt] = document(again, done.exit_code)
    assert receipt["id"] == listed["id"] and receipt["certificate"]["findings"]


def test_one_is_written_as_an_adapter_which_is_said_to_have_no_gate(
    type_: Type, tmp_path: Path
) -> None:
    shown(type_("unlearn", "capitals", *GIVEN, *AT_ONCE))
    [listed] = document(type_("unlearned", "--json", *QUICK))
    folder = tmp_path / "adapter"
    page = shown(type_("unlearned", listed["id"], "--export", folder, *QUICK))
    assert "without its gate" in page and (folder / "adapter_config.json").exists()


def test_deep_forgetting_erases_and_unlearns(type_: Type, home: Path) -> None:
    dishes = ("bread", "a cake", "a pie", "rolls", "a tart", "cookies", "a quiche", "a pizza")
    for dish in dishes:
        shown(type_("remember", f"Henrietta bakes {dish} on the last Sunday of the month."))
    done = type_("forget", "--query", "Henrietta", "--deep", "--yes")
    page = shown(done, 0, 1)
    assert "forgot 8 records, and no file" in page and "erasure" in page and "suppresses" in page
    assert kept(home) == 1


def test_in_the_chat_a_request_is_made_shown_by_why_and_undone(type_: Type, home: Path) -> None:
    lines = "\n".join(pair.replace("=>", " => ") for pair in PAIRS)
    talk = (
        f"/unlearn capitals\n{lines}\n\ny\n/unlearned\nWhat is the capital of Italy?\n/why\n"
        "/undo\n/quit\n"
    )
    done = type_("chat", "--memory", "o3:passes=1", "--max-tokens", "8", answer=talk)
    page = shown(done)
    assert "capitals, 8 samples" in page and ("every attack" in page or "not stand" in page)
    assert "o3: 1 request" in page and "(capitals): " in page and "loaded, score" in page
    assert "there is no edit to undo" in page and kept(home) == 1
    [listed] = document(type_("unlearned", "--json", *QUICK))
    page = shown(type_("chat", "--memory", "o3:passes=1", answer=f"/undo {listed['id']}\n"))
    assert "undid the request 'capitals'" in page and kept(home) == 0


def test_in_the_chat_an_input_that_ends_early_does_nothing(type_: Type, home: Path) -> None:
    done = type_("chat", "--memory", "o3:passes=1", answer=f"/unlearn capitals\n{PAIRS[0]}\n")
    assert "ended before an empty line; nothing was done" in " ".join(done.stderr.split())
    assert kept(home) == 0


def _heeds_ctrl_c() -> None:
    """What is begun in the background of a shell ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_cancels_and_says_how_to_go_on(tmp_path: Path, tiny_folder: Path) -> None:
    home = tmp_path / "home"
    words = ["unlearn", "capitals", *GIVEN, "--yes", "--unlearner", "o3:passes=100000,until=0"]
    code = "from palimpsest.apps.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words, "--model", str(tiny_folder), "--home", str(home)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heeds_ctrl_c,
    ) as running:
        deadline = time.monotonic() + 120
        begun = home / "stores" / "o3" / "begun"
        while not (begun.is_dir() and any(begun.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        try:
            _, said = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130, said
    assert "palimpsest unlearn --resume" in said and "palimpsest undo 01" in said
    assert kept(home) == 2 and any(begun.iterdir())
