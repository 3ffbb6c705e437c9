"""`palimpsest bench forget`: how long forgetting takes, and what of it is left in the files.

Beside it what people do instead: a DELETE in SQLite, and `collection.delete` in Chroma on disk.
The bytes that are left are counted here, and not by the search that a report rests on.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from ...llm.scripted import ScriptedLLM
from ...memory.hashing import HashingEmbedder
from ...memory.journal import chunks
from ...memory.record import Record, Scope
from ...memory.vectors import Embedder
from .bulk import Recombined, records, sentences
from .harness import Row, Table, progress
from .metrics import Spread
from .scm import at_most
from .setting import Setting

if TYPE_CHECKING:
    from ...agent.agent import Agent
    from ...unlearning.report import Report

SIZES = (1_000, 10_000)
FULL = 100_000
VICTIMS = 5
"""Records that are forgotten one by one, each time by all systems."""

DIMENSION = 384
STEPS = ("learn", "ledger", "stores", "purge", "search")
SCOPE = Scope(session="forget")


def forget(setting: Setting) -> Iterator[Table]:
    """Time by step, what is left in the files, and whether both are as they should be."""
    timed: list[Row] = []
    left: list[Row] = []
    for size in (*SIZES, FULL) if setting.full else SIZES:
        progress(f"forgetting in {size:,} records")
        theirs = [] if size == FULL else [_sqlite, _chroma]
        ours = _palimpsest(setting, size)
        timed += ours[0]
        left += [ours[1], *(each(setting, size) for each in theirs)]
    yield Table(
        title="time to forget one record",
        rows=timed,
        note="Seconds, planning included; median and quartiles of as many as were measured. A"
        f" hashing embedder of {DIMENSION} dimensions.",
        plot=("seconds",),
    )
    yield Table(
        title="left of forgotten records in the files",
        rows=left,
        note="Occurrences of the texts in UTF-8 and of the vectors in float32 and float16, counted"
        " in all files once they are closed. SQLite with secure_delete off, as its makers ship it;"
        " some distributions switch it on.",
        plot=("texts left", "vectors left"),
    )
    yield Table(title="targets", rows=list(_targets(timed, left)))


def _targets(timed: Sequence[Row], left: Sequence[Row]) -> Iterator[Row]:
    for row in timed:
        seconds = row["seconds"]
        assert isinstance(seconds, Spread)
        yield at_most(f"{row['system']}: seconds", seconds.median, 5)
    for row in left:
        if str(row["system"]).startswith("palimpsest"):
            found = float(row["texts left"] or 0) + float(row["vectors left"] or 0)  # type: ignore[arg-type]
            yield at_most(f"{row['system']}: left", found, 0)


def _palimpsest(setting: Setting, size: int) -> tuple[list[Row], Row]:
    from ...agent.agent import Agent

    home = setting.folder("palimpsest")
    embedder = Recombined(HashingEmbedder(DIMENSION), sentences(setting))
    llm = ScriptedLLM(lambda _: "")
    victims, rows = _victims(setting.rng("victims")), []
    with Agent.open(llm, home=home, embedder=embedder, memories=["scm"]) as agent:
        told = _told(embedder, size, setting.rng("records"), victims)
        for part in chunks(told):
            agent.append(part)
        repeated = agent.remember(embedder.text(setting.rng("repeated")), session=SCOPE.session)
        short = [agent.remember("yes", session=SCOPE.session) for _ in range(VICTIMS)]
        for what, gone in (
            ("one record", victims),
            ("of which others say a part", [repeated]),
            ("too short to be searched for", short),
        ):
            rows.append(_row(f"palimpsest, {what}, of {size:,}", agent, gone))
        residue = sum(report.residue or 0 for report in agent.forgotten())
    found = _left(home, [each.text for each in victims], embedder)
    return rows, {"system": f"palimpsest, {size:,}", **found, "residue in reports": residue}


def _row(system: str, agent: Agent, gone: Sequence[Record]) -> Row:
    reports: list[Report] = []

    def forgotten(record: Record) -> None:
        reports.append(agent.forget(record))

    seconds = [_seconds(partial(forgotten, record)) for record in gone]
    steps = {step: [report.seconds[step] for report in reports] for step in STEPS}
    last = reports[-1]
    assert last.search is not None
    return {
        "system": system,
        "measured": len(seconds),
        "seconds": Spread.of(seconds),
        **{step: Spread.of(taken).median for step, taken in steps.items()},
        "files, MB": round(last.search.bytes / 1e6, 1),
        "written anew": last.rewritten,
    }


def _sqlite(setting: Setting, size: int) -> Row:
    """A table of texts and vectors, as one writes it without a thought."""
    folder = setting.folder("sqlite")
    embedder = Recombined(HashingEmbedder(DIMENSION), sentences(setting))
    victims = _victims(setting.rng("victims"))
    told = _told(embedder, size, setting.rng("records"), victims)
    with closing(sqlite3.connect(folder / "memories.sqlite3")) as database:
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("CREATE TABLE memories (id TEXT PRIMARY KEY, text TEXT, vector BLOB)")
        for part in chunks(told):
            vectors = embedder.embed([record.text for record in part])
            rows = [(r.id, r.text, v.tobytes()) for r, v in zip(part, vectors, strict=True)]
            database.executemany("INSERT INTO memories VALUES (?, ?, ?)", rows)
            database.commit()

        def delete(record: Record) -> None:
            database.execute("DELETE FROM memories WHERE id = ?", (record.id,))
            database.commit()

        seconds = [_seconds(partial(delete, record)) for record in victims]
    found = _left(folder, [each.text for each in victims], embedder)
    return {"system": f"SQLite DELETE, {size:,}", "seconds": Spread.of(seconds), **found}


def _chroma(setting: Setting, size: int) -> Row:
    """A collection of documents and embeddings on disk."""
    import chromadb
    from chromadb.config import Settings

    folder = setting.folder("chroma")
    embedder = Recombined(HashingEmbedder(DIMENSION), sentences(setting))
    victims = _victims(setting.rng("victims"))
    told = _told(embedder, size, setting.rng("records"), victims)
    client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
    with closing(client):
        collection = client.create_collection("memories", embedding_function=None)
        for part in chunks(told):
            texts = [record.text for record in part]
            ids = [record.id for record in part]
            collection.add(ids=ids, embeddings=embedder.embed(texts), documents=texts)
        seconds = [_seconds(partial(collection.delete, [each.id])) for each in victims]
    found = _left(folder, [each.text for each in victims], embedder)
    return {"system": f"Chroma collection.delete, {size:,}", "seconds": Spread.of(seconds), **found}


def _victims(rng: Random) -> list[Record]:
    """Records of which nobody else says a word."""
    numbers = rng.sample(range(10**8, 10**9), VICTIMS)
    texts = [
        f"Passport {number} of Wilhelmina lies in locker {number % 977}." for number in numbers
    ]
    return [Record(text=text, scope=SCOPE) for text in texts]


def _told(
    embedder: Recombined, size: int, rng: Random, victims: Sequence[Record]
) -> Iterator[Record]:
    """`size` records, the victims among them, evenly spread."""
    others = records(embedder, size - len(victims), SCOPE, rng)
    for victim in victims:
        yield from islice(others, size // len(victims) // 2)
        yield victim
        yield from islice(others, size // len(victims) // 2)
    yield from others


def _left(folder: Path, texts: Sequence[str], embedder: Embedder) -> dict[str, int]:
    vectors = embedder.embed(texts)
    said = [text.encode() for text in texts]
    meant = [row.astype(kind).tobytes() for row in vectors for kind in (np.float32, np.float16)]
    files = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        "texts left": sum(data.count(each) for data in files for each in said),
        "vectors left": sum(data.count(each) for data in files for each in meant),
    }


def _seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
