"""What the doctor finds on a data folder that was damaged, and what it mends."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from palimpsest import Agent, ScriptedLLM
from palimpsest.agent.doctor import Examination
from palimpsest.errors import ConfigError, HomeLocked, LedgerError, PalimpsestError, StoreError
from palimpsest.memory.backups import Undone, restore
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.home import Home
from palimpsest.memory.record import Record, Scope

QUESTION = "When does the heron nest?"
STORE = Path("stores", "scm", "stream.sqlite3")
LEDGER = "ledger.sqlite3"
PAGE = 4096


def open_agent(home: Path, **options: Any) -> Agent:
    llm = ScriptedLLM(lambda _: "Noted.")
    return Agent.open(llm, home=home, memories=["scm"], embedder=HashingEmbedder(), **options)


def examine(home: Path, **options: Any) -> Examination:
    return Agent.doctor(home=home, embedder=HashingEmbedder(), **options)


def found(examination: Examination, part: str) -> list[tuple[str, str]]:
    return [(each.state, each.what) for each in examination.findings if each.part == part]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 60 facts, closed."""
    home = tmp_path_factory.mktemp("sound") / "home"
    with open_agent(home) as agent:
        scope = Scope(session="s")
        texts = [f"Fact {n} is about a pelican that nests in June." for n in range(59)]
        texts.append("The heron nests in March.")
        agent.append([Record(text=text, scope=scope, kind="fact") for text in texts])
    return home


@pytest.fixture
def home(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "home"))


def recalls(home: Path) -> bool:
    with open_agent(home) as agent:
        return "heron" in agent.recall(QUESTION).notes[0].text


def test_a_sound_folder_is_well_and_is_left_as_it_was(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*.sqlite3")}
    seen = examine(home)
    assert seen.healthy
    assert found(seen, "ledger") == [("well", "60 records, and 60 events whose chain holds")]
    assert found(seen, "store scm") == [("well", "holds 60 records")]
    assert found(seen, "lock") == [("well", "free")]
    assert {path: path.read_bytes() for path in home.rglob("*.sqlite3")} == before


def test_a_folder_that_is_not_there_is_not_made_to_look_at_it(tmp_path: Path) -> None:
    seen = examine(tmp_path / "none")
    assert seen.healthy and found(seen, "ledger") == [("note", "there is none yet")]
    assert not (tmp_path / "none").exists()


def test_a_folder_where_nothing_was_kept_is_not_begun_by_mending_it(tmp_path: Path) -> None:
    assert examine(tmp_path / "none", fix=True).healthy
    assert not (tmp_path / "none").exists()
    (tmp_path / "bare").mkdir()
    assert examine(tmp_path / "bare", fix=True).healthy
    assert not list((tmp_path / "bare").iterdir())


def test_a_ledger_that_is_gone_is_ill_and_none_is_begun_beside_what_is_left(
    home: Path, tmp_path: Path
) -> None:
    with open_agent(home, read_only=True) as agent:
        done = agent.backup(tmp_path / "b.zip")
    for log in home.glob(f"{LEDGER}*"):
        log.unlink()
    for options in ({}, {"fix": True}):
        seen = examine(home, **options)
        [first] = [each for each in seen.findings if each.part == "ledger"]
        assert not seen.healthy and first.state == "ill" and "backups.json" in first.what
        assert first.remedy is not None and done.path in first.remedy
    for read_only in (False, True):
        with pytest.raises(LedgerError, match=r"is gone, and .*stores beside it is there"):
            open_agent(home, read_only=read_only)
    assert not (home / LEDGER).exists()
    (home / "backups.json").unlink()
    [first] = [each for each in examine(home).findings if each.part == "ledger"]
    assert first.state == "ill" and "there is no backup on the list" in str(first.remedy)
    Agent.restore(done.path, home=home, embedder=HashingEmbedder())
    assert recalls(home)


def test_a_reader_of_a_store_that_is_gone_is_told_what_makes_it(home: Path) -> None:
    (home / STORE).unlink()
    with pytest.raises(StoreError, match=r"it is not there; `palimpsest doctor --fix` makes"):
        open_agent(home, read_only=True)
    [one] = [each for each in examine(home).findings if each.part == "store scm"]
    assert one.state == "ill" and one.what.endswith("it is not there")
    assert one.remedy == "`palimpsest doctor --fix` makes it anew from the ledger"
    [(state, what)] = found(examine(home, fix=True), "store scm")
    assert state == "mended" and "doctor --fix" not in what


def overwritten(start: int, end: int) -> Callable[[Path], None]:
    """Pages `start` to `end` as nobody wrote them; negative ones count from the file's end."""

    def damage(file: Path) -> None:
        whole = bytearray(file.read_bytes())
        pages = len(whole) // PAGE
        first, last = (page if page >= 0 else pages + page for page in (start, end))
        whole[first * PAGE : last * PAGE] = b"\xa5" * ((last - first) * PAGE)
        file.write_bytes(whole)

    return damage


def cut(share: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * share)])

    return damage


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").write_text("in the way")


DAMAGES = {
    "header": overwritten(0, 1),
    "second page": overwritten(1, 2),
    "early pages": overwritten(3, 8),
    "middle pages": overwritten(15, 30),
    "last pages": overwritten(-12, -1),
    "all but the header": overwritten(1, -1),
    "cut to a half": cut(0.5),
    "cut to a tenth": cut(0.1),
    "cut in a page": cut(0.777),
    "no database": lambda file: file.write_bytes(b"not a database at all" * 1000),
    "a folder": a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_torn_index_is_a_typed_error_and_the_doctor_heals_it(
    home: Path, damage: Callable[[Path], None]
) -> None:
    damage(home / STORE)
    with pytest.raises(StoreError, match=r"stream\.sqlite3"), open_agent(home) as agent:
        agent.recall(QUESTION)
        agent.remember("one more")
        agent.memories[0].digest()
    seen = examine(home)
    assert not seen.healthy
    assert {state for state, _ in found(seen, "store scm")} == {"ill"}
    mended = examine(home, fix=True)
    assert mended.healthy and found(mended, "store scm")[0][0] == "mended"
    assert recalls(home)
    assert examine(home).healthy


@pytest.mark.parametrize("lost", ["stores", "stores/scm", "stores/scm/stream.sqlite3"])
def test_a_store_whose_files_are_gone_is_made_anew_when_it_is_opened(home: Path, lost: str) -> None:
    gone = home / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    seen = examine(home)
    assert not seen.healthy and found(seen, "store scm")[0][0] == "ill"
    assert recalls(home)
    assert examine(home).healthy


def test_a_store_of_another_format_is_refused_and_made_anew(home: Path) -> None:
    with sqlite3.connect(home / STORE) as raw:
        raw.execute("UPDATE facts SET value = '0' WHERE name = 'format'")
    raw.close()
    with pytest.raises(StoreError, match=r"format 0 .*doctor --fix"):
        open_agent(home)
    assert not examine(home).healthy
    assert examine(home, fix=True).healthy
    assert recalls(home)


def test_a_store_that_was_made_with_another_embedder_is_made_anew(home: Path) -> None:
    seen = Agent.doctor(home=home, embedder=HashingEmbedder(64))
    assert "embedder" in found(seen, "store scm")[0][1]
    assert Agent.doctor(home=home, embedder=HashingEmbedder(64), fix=True).healthy
    assert Agent.doctor(home=home, embedder=HashingEmbedder(64)).healthy


def test_a_store_that_is_behind_or_holds_too_little_is_brought_in_line(home: Path) -> None:
    with sqlite3.connect(home / LEDGER) as raw:
        raw.execute("UPDATE cursors SET seq = 50")
    raw.close()
    seen = examine(home)
    assert found(seen, "store scm") == [("ill", "10 events were not followed yet")]
    with sqlite3.connect(home / STORE) as raw:
        raw.execute("DELETE FROM records WHERE id IN (SELECT id FROM records LIMIT 3)")
    raw.close()
    whats = [what for _, what in found(examine(home), "store scm")]
    assert whats[0] == "3 records are missing from it"
    assert examine(home, fix=True).healthy
    assert examine(home).healthy and recalls(home)


def test_all_stores_can_be_made_anew_though_nothing_seems_wrong(home: Path) -> None:
    with sqlite3.connect(home / STORE) as raw:
        raw.execute("UPDATE records SET body = replace(body, 'heron', 'heren')")
        raw.execute("UPDATE entries SET text = replace(text, 'heron', 'heren')")
    raw.close()
    assert examine(home).healthy  # what a text says only the ledger can tell
    mended = examine(home, fix=True, rebuild=True)
    assert found(mended, "store scm")[0][0] == "mended"
    assert recalls(home)


def test_a_damaged_ledger_is_never_touched_and_the_way_back_is_named(
    home: Path, tmp_path: Path
) -> None:
    with open_agent(home, read_only=True) as agent:
        done = agent.backup(tmp_path / "b.zip")
    overwritten(2, 6)(home / LEDGER)
    before = {name: (home / name).read_bytes() for name in (LEDGER, STORE)}
    for options in ({}, {"fix": True}):
        seen = examine(home, **options)
        assert not seen.healthy
        [first, *_] = [each for each in seen.findings if each.part == "ledger"]
        way = f"copy the data folder as it is, then `palimpsest restore {done.path}`"
        assert first.remedy == way
        assert not found(seen, "store scm")
        assert {name: (home / name).read_bytes() for name in before} == before
    restored, health = Agent.restore(done.path, home=home, replace=True, embedder=HashingEmbedder())
    assert restored.backup == done and health is not None and health.healthy
    assert recalls(home)


def test_a_record_that_somebody_rewrote_makes_the_ledger_ill(home: Path) -> None:
    with sqlite3.connect(home / LEDGER) as raw:
        raw.execute("UPDATE records SET text = 'The heron nests in May.' WHERE text LIKE '%heron%'")
    raw.close()
    seen = examine(home, fix=True)
    assert not seen.healthy and "event 60" in found(seen, "ledger")[0][1]
    with open_agent(home, read_only=True) as agent, pytest.raises(LedgerError, match="event 60"):
        agent.verify_chain()


def test_the_doctor_looks_beside_an_open_agent_and_mends_only_without_it(home: Path) -> None:
    with open_agent(home) as agent:
        agent.remember("said while the doctor was there")
        seen = examine(home)
        assert seen.healthy and found(seen, "lock")[0][1].startswith("held by ")
        with pytest.raises(HomeLocked):
            examine(home, fix=True)


def test_backups_are_counted_and_the_missing_ones_named(home: Path, tmp_path: Path) -> None:
    with open_agent(home, read_only=True) as agent:
        agent.backup(tmp_path / "b.zip")
    (tmp_path / "b.zip").unlink()
    [(state, what)] = found(examine(home), "backups")
    assert state == "note" and str(tmp_path / "b.zip") in what
    (home / "backups.json").write_text("nonsense")
    assert found(examine(home), "backups")[0][0] == "ill"


def test_a_restore_brings_the_stores_along_and_a_dry_run_nothing(
    home: Path, tmp_path: Path
) -> None:
    with open_agent(home) as agent:
        done = agent.backup(tmp_path / "b.zip")
        agent.remember("said later")
    seen, health = Agent.restore(done.path, home=home, dry_run=True)
    assert (seen.replaced, health) == (61, None)
    with pytest.raises(ConfigError, match="holds 61 records"):
        Agent.restore(done.path, home=home, embedder=HashingEmbedder())
    other = tmp_path / "other"
    _, health = Agent.restore(done.path, home=other, embedder=HashingEmbedder())
    assert health is not None and found(health, "store scm") == [("well", "holds 60 records")]
    assert recalls(other)


def test_a_restore_names_the_erasures_that_it_undoes(home: Path, tmp_path: Path) -> None:
    with open_agent(home) as agent:
        agent.forget(agent.remember("forgotten before").id)
        done = agent.backup(tmp_path / "b.zip")
        agent.forget(agent.remember("said and forgotten after").id)
        agent.remember("The heron is back.")
        report = agent.forget(query="heron")
    [record] = sorted(report.ids)[:1]
    undone = (Undone(id=report.id, user="default", records=(record,)),)
    seen, _ = Agent.restore(done.path, home=home, dry_run=True)
    assert len(report.ids) == 2 and seen.undone == undone
    restored, health = Agent.restore(done.path, home=home, replace=True, embedder=HashingEmbedder())
    assert restored.undone == undone and health is not None and health.healthy
    assert recalls(home), "what was forgotten is back, as was said"
    with open_agent(home) as agent:
        assert agent.forget(list(restored.undone[0].records)).ids == {record}


def test_a_killed_writers_log_is_not_lost_to_a_restore_that_dies(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest records may still lie in the log alone; only whole ledgers may be there."""
    with open_agent(home) as agent:
        done = agent.backup(tmp_path / "b.zip")
        agent.remember("said last")
        copied = tmp_path / "copied"
        shutil.copytree(home, copied)  # as a kill leaves it: with its log

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(home), "replace", killed)
        restore(Home(copied), Path(done.path), replace=True)
    with open_agent(copied) as agent:
        agent.verify_chain()
        assert "said last" in {record.text for record in agent.ledger.records(agent.scope)}


def test_a_backup_whose_store_does_not_go_with_its_ledger_is_put_right(
    home: Path, tmp_path: Path
) -> None:
    old = (home / STORE).read_bytes()
    with open_agent(home) as agent:
        agent.remember("said after the store was copied")
    (home / STORE).write_bytes(old)
    with open_agent(home, read_only=True) as agent:
        done = agent.backup(tmp_path / "b.zip")
    _, health = Agent.restore(done.path, home=tmp_path / "other", embedder=HashingEmbedder())
    assert health is not None and health.healthy
    assert found(health, "store scm")[0][0] == "mended"


def test_nobody_restores_into_a_folder_that_is_open(home: Path, tmp_path: Path) -> None:
    with open_agent(home) as agent:
        done = agent.backup(tmp_path / "b.zip")
        with pytest.raises(HomeLocked):
            Agent.restore(done.path, home=home, replace=True)


def test_an_export_taken_in_by_another_agent_can_be_recalled(home: Path, tmp_path: Path) -> None:
    with open_agent(home, read_only=True) as agent:
        done = agent.export_to(tmp_path / "all.jsonl")
        with pytest.raises(ConfigError, match="is there already"):
            agent.export_to(tmp_path / "all.jsonl")
        with pytest.raises(LedgerError, match="'nowhere' is not known"):
            agent.export_to(tmp_path / "part.jsonl", session="nowhere")
        assert not list(tmp_path.glob("part*"))
    assert done.rows == (tmp_path / "all.jsonl").read_bytes().count(b"\n") - 2
    with open_agent(tmp_path / "other") as agent:
        assert agent.import_from(done.path).exact
        assert "heron" in agent.recall(QUESTION).notes[0].text
        agent.export_to(tmp_path / "again.jsonl")
        with pytest.raises(PalimpsestError, match="No such file"):
            agent.import_from(tmp_path / "none.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()


def test_the_account_counts_what_there_is(home: Path) -> None:
    with open_agent(home) as agent:
        agent.remember("by another", user="maria", source="document")
        agent.ask("Hello?", session="chat")
        found = agent.stats()
        head = agent.verify_chain()
    census = found.census
    assert (census.records, census.current, census.owners) == (63, 63, 2)
    assert census.kinds == {"fact": 61, "message": 2}
    assert census.sources == {"user": 61, "assistant": 1, "document": 1}
    assert census.sessions == {"s": 60, "chat": 2}
    assert census.stores["scm"].records == 63 and census.stores["scm"].cursor == found.events
    assert (found.events, found.head) == (head.seq, head.hash)
    assert found.disk["all"] >= found.disk["ledger"] + found.disk["store scm"] > 0
    assert json.dumps(dict(found.disk))
