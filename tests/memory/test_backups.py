"""Backups: whole, checked, listed, and never put back by halves."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from palimpsest.errors import ChainBroken, ConfigError, InputError, LedgerError
from palimpsest.memory.backup_file import LEDGER, checked
from palimpsest.memory.backups import Undone, back_up, listed, outlook, restore
from palimpsest.memory.erasures import Note
from palimpsest.memory.home import Home
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.record import Reach, Record, Scope, new_id, now

SCOPE = Scope(session="s")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def ledger(home: Home) -> Iterator[Ledger]:
    with Ledger.open(home.path(LEDGER)) as opened:
        yield opened


def told(ledger: Ledger, *texts: str) -> list[Record]:
    records = [Record(text=text, scope=SCOPE) for text in texts]
    ledger.append(records)
    return records


def said(home: Home) -> list[str]:
    with Ledger.open(home.path(LEDGER), read_only=True) as ledger:
        return [record.text for record in ledger.records(SCOPE)]


def rewritten(backup: Path, name: str, data: bytes | None) -> Path:
    """A copy of a backup with one member changed, or without it."""
    changed = backup.with_name(f"changed-{backup.name}")
    with zipfile.ZipFile(backup) as old, zipfile.ZipFile(changed, "w") as new:
        for each in old.namelist():
            if each != name:
                new.writestr(each, old.read(each))
        if data is not None:
            new.writestr(name, data)
    return changed


def test_a_backup_holds_all_of_the_folder_and_is_listed_with_its_head(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    told(ledger, "one", "two")
    home.path("keys").mkdir()
    home.path("keys", "reports.pem").write_text("a key")
    home.path("stores", "dict").mkdir(parents=True)
    home.path("stores", "dict", "facts.json").write_text("{}")
    done = back_up(home, ledger, tmp_path / "b.zip")
    assert (done.records, done.events, done.head) == (2, 2, ledger.head())
    assert done.bytes == (tmp_path / "b.zip").stat().st_size
    assert json.loads(home.path("backups.json").read_text()) == listed(home)
    assert listed(home) == [{"path": done.path, "created": done.created, "head": done.head}]
    assert checked(tmp_path / "b.zip") == done
    assert sorted(zipfile.ZipFile(tmp_path / "b.zip").namelist()) == [
        *("keys/reports.pem", "ledger.sqlite3", "manifest.json", "stores/dict/facts.json")
    ]


def test_a_backup_into_a_folder_gets_a_name_and_a_file_that_is_there_is_kept(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    done = back_up(home, ledger, tmp_path)
    assert Path(done.path).parent == tmp_path and Path(done.path).suffix == ".zip"
    before = Path(done.path).read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        back_up(home, ledger, Path(done.path))
    assert Path(done.path).read_bytes() == before and len(listed(home)) == 1


def test_a_backup_is_of_one_state_though_others_write_all_the_while(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    told(ledger, "first")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            told(ledger, *("more " * 100 for _ in range(5)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        backups = [back_up(home, ledger, tmp_path / f"{n}.zip") for n in range(5)]
    finally:
        done.set()
        writer.join()
    counts = [checked(Path(backup.path)).records for backup in backups]
    assert counts == sorted(counts) and counts[-1] > counts[0]
    assert all(count % 5 == 1 for count in counts)  # an append is in it whole or not at all


def test_a_backup_that_cannot_be_written_leaves_nothing(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match=r"cannot write .*Not a directory"):
        back_up(home, ledger, tmp_path / "file" / "b.zip")
    assert listed(home) == []


def test_a_store_that_is_damaged_does_not_stop_a_backup(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    told(ledger, "one")
    folder = home.path("stores", "scm")
    folder.mkdir(parents=True)
    (folder / "stream.sqlite3").write_bytes(b"SQLite format 3\0" + b"x" * 9000)
    back_up(home, ledger, tmp_path / "b.zip")
    assert checked(tmp_path / "b.zip").records == 1


def test_a_restore_brings_everything_back_and_says_what_it_replaced(
    home: Home, tmp_path: Path
) -> None:
    with Ledger.open(home.path(LEDGER)) as ledger:
        told(ledger, "one")
        done = back_up(home, ledger, tmp_path / "b.zip")
        told(ledger, "two", "three")
    with pytest.raises(ConfigError, match=r"holds 3 records, which a restore replaces.*--yes"):
        restore(home, tmp_path / "b.zip")
    assert said(home) == ["one", "two", "three"]
    found = restore(home, tmp_path / "b.zip", replace=True)
    assert (found.replaced, found.backup) == (3, done)
    assert said(home) == ["one"]
    assert not home.path("restore.new").exists()
    assert len(listed(home)) == 1


def test_a_restore_into_an_empty_folder_asks_nothing_and_lists_where_it_came_from(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    told(ledger, "one")
    done = back_up(home, ledger, tmp_path / "b.zip")
    other = Home(tmp_path / "other")
    assert restore(other, tmp_path / "b.zip").replaced == 0
    assert said(other) == ["one"]
    assert [row["head"] for row in listed(other)] == [done.head]


def test_what_was_forgotten_after_the_backup_is_named(home: Home, tmp_path: Path) -> None:
    with Ledger.open(home.path(LEDGER)) as ledger:
        [record] = told(ledger, "a secret")
        back_up(home, ledger, tmp_path / "b.zip")
        note = Note(id=new_id(), reach=Reach.of(SCOPE), created=now())
        ledger.erasures.note(note)
        erased = ledger.erasures.erase(note, [record.id])
        ledger.erasures.note(replace(erased, state="done"))
    found = outlook(home, checked(tmp_path / "b.zip"))
    assert found.undone == (Undone(id=note.id, user=SCOPE.user, records=(record.id,)),)


def test_a_damaged_ledger_can_be_replaced_when_that_is_said(home: Home, tmp_path: Path) -> None:
    with Ledger.open(home.path(LEDGER)) as ledger:
        told(ledger, "one")
        back_up(home, ledger, tmp_path / "b.zip")
    home.path(LEDGER).write_bytes(b"x" * 10_000)
    with pytest.raises(ConfigError, match="holds a ledger that cannot be read"):
        restore(home, tmp_path / "b.zip")
    assert restore(home, tmp_path / "b.zip", replace=True).replaced is None
    assert said(home) == ["one"]


DAMAGES = {
    "no zip": lambda file: file.write_bytes(b"PK" + b"x" * 500),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-200]),
    "bytes changed": lambda file: file.write_bytes(
        file.read_bytes()[:600] + b"x" * 40 + file.read_bytes()[640:]
    ),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_backup_is_refused_before_anything_is_touched(
    home: Home, tmp_path: Path, damage: object
) -> None:
    with Ledger.open(home.path(LEDGER)) as ledger:
        told(ledger, *(f"text {n}" for n in range(50)))
        back_up(home, ledger, tmp_path / "b.zip")
        told(ledger, "newer")
    assert callable(damage)
    damage(tmp_path / "b.zip")
    with pytest.raises(InputError, match=r"b\.zip|of the backup"):
        restore(home, tmp_path / "b.zip", replace=True)
    assert len(said(home)) == 51


def test_a_backup_whose_files_are_not_what_it_says_is_refused(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    told(ledger, "one")
    back_up(home, ledger, tmp_path / "b.zip")
    manifest = json.loads(zipfile.ZipFile(tmp_path / "b.zip").read("manifest.json"))
    other = Home(tmp_path / "other")

    def refused(name: str, data: bytes | None, says: str) -> None:
        with pytest.raises((InputError, ChainBroken), match=says):
            restore(other, rewritten(tmp_path / "b.zip", name, data))
        assert not other.path(LEDGER).exists()

    refused(LEDGER, b"SQLite format 3\0 and more", "SHA-256")
    refused(LEDGER, None, "no backup, or a damaged one")
    refused("manifest.json", b"{}", "no backup, or a damaged one")
    refused("manifest.json", _json(manifest | {"format": 2}), "format 2 and this version reads 1")
    refused("manifest.json", _json(manifest | {"head": "0" * 64}), "not the one that its manifest")
    for name in ("../../evil", "/evil", "stores/../../evil", "notes.txt"):
        stated = manifest | {"files": {name: {"sha256": "", "bytes": 0}}}
        refused("manifest.json", _json(stated), "which no backup has")


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


def test_a_backup_of_a_ledger_that_was_rewritten_is_refused(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    told(ledger, "one")
    ledger.close()
    with sqlite3.connect(home.path(LEDGER)) as raw:
        raw.execute("UPDATE records SET text = 'won'")
    raw.close()
    with Ledger.open(home.path(LEDGER)) as forged:
        back_up(home, forged, tmp_path / "b.zip")
    with pytest.raises(ChainBroken, match="content of record"):
        checked(tmp_path / "b.zip")


def test_a_list_of_backups_that_cannot_be_read_is_an_error_and_is_kept(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    home.path("backups.json").write_text('{"not": "a list"}')
    with pytest.raises(LedgerError, match=r"backups\.json cannot be read"):
        back_up(home, ledger, tmp_path / "b.zip")
    assert home.path("backups.json").read_text() == '{"not": "a list"}'
    assert not list(tmp_path.glob("*.zip")) and not list(tmp_path.glob(".backup-*"))


def test_a_backup_leaves_no_copy_behind_beside_itself(
    home: Home, ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "backups").mkdir()
    done = back_up(home, ledger, tmp_path / "backups")
    assert [path.name for path in (tmp_path / "backups").iterdir()] == [Path(done.path).name]
    shutil.rmtree(tmp_path / "backups")
