"""`palimpsest bench store`: what recall, writing and filling cost as a memory grows.

Each size beside the same work done by calling its libraries directly: the embedder, Chroma on disk,
SQLite's full text search. Every size is measured in a process of its own, so that its memory is.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ...memory.record import Record, Scope
from .bulk import Recombined, records, sentences
from .harness import Row, Table, progress
from .metrics import Spread, percentile
from .rankers import bm25_query, chroma_collection
from .scm import at_least, at_most
from .setting import Setting
from .speed import timed

QUICK = (1_000, 10_000)
FULL = (10_000, 100_000, 1_000_000)
CHROMA_UP_TO = 100_000
"""Beyond it, filling Chroma takes hours on two cores."""

QUERIES, TURNS, FILLED = 100, 60, 1_500
"""Questions asked and turns written at each size; records of the bulk test."""

K = 10


def store(setting: Setting) -> Iterator[Table]:
    """Recall and writing by size; bulk; what holds."""
    sizes = FULL if setting.full else QUICK
    measured = {}
    for size in sizes:
        progress(f"{size:,} records")
        measured[size] = _apart(setting, size)
    yield _recall(measured)
    yield _writing(measured)
    progress(f"filling {FILLED} records")
    bulk = _bulk(setting)
    yield bulk
    yield Table(title="what holds", rows=_checks(measured, bulk, setting))


def _apart(setting: Setting, size: int) -> dict[str, Any]:
    """`_measured`, in a fresh process."""
    fresh = replace(setting, scratch=setting.folder(f"size-{size}"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(_measured, (fresh.seed, fresh.data, fresh.scratch, size))
    return found


def _measured(seed: int, data: Path | None, scratch: Path, size: int) -> dict[str, Any]:
    setting = Setting(seed=seed, full=False, data=data, scratch=scratch)
    with closing(setting):
        embedder = Recombined(setting.embedder, sentences(setting))
        setting.__dict__["embedder"] = embedder
        before = _peak_mb()
        home = setting.folder("home")
        with setting.agent("scm", home=home) as agent:
            made = records(embedder, size, agent.scope, setting.rng("records"))
            started = time.perf_counter()
            while batch := list(islice(made, 5_000)):
                agent.append(batch)
            seconds = time.perf_counter() - started
            questions = _questions(setting)
            recall = partial(agent.recall, session="now")
            ours = _times(recall, questions)
            turns = _turns(agent, embedder, setting)
            again = _times(recall, questions)
            found = {
                "fill s": seconds,
                "recall": ours,
                "recall again": again,
                "turn": turns,
                "peak MB": _peak_mb(),
                "before MB": before,
                "disk MB": sum(f.stat().st_size for f in home.rglob("*") if f.is_file()) / 1e6,
            }
        return found | _directly(setting, embedder, size, questions)


def _questions(setting: Setting) -> list[str]:
    """Sentences of the same kind, as a user's messages, none of them in the memory."""
    rng = setting.rng("questions")
    found = sentences(setting)
    return [f"{a} {b}" for a, b in (rng.sample(found, 2) for _ in range(QUERIES))]


def _times(act: Callable[[str], object], questions: Sequence[str]) -> list[float]:
    act("a first question, for what is loaded once")
    return [timed(partial(act, question)) for question in questions]


def _turns(agent: Any, embedder: Recombined, setting: Setting) -> list[float]:
    """Milliseconds that a turn's two records take, ledger and store, beyond the embedder."""
    rng, found = setting.rng("turns"), []
    scope = replace(agent.scope, session="now")
    said = sentences(setting)
    for _ in range(TURNS):
        user = Record(text=f"{rng.choice(said)} ({rng.random()})", scope=scope)
        reply = Record(
            text=f"{rng.choice(said)} ({rng.random()})",
            scope=scope,
            role="assistant",
            source="assistant",
            parents=(user.id,),
        )
        embedding = embedder.seconds
        ms = timed(partial(agent.append, [user, reply]))
        found.append(ms - (embedder.seconds - embedding) * 1000)
    return found[1:]


def _directly(
    setting: Setting, embedder: Recombined, size: int, questions: Sequence[str]
) -> dict[str, Any]:
    """The same records in Chroma and in SQLite's full text search, and the same questions."""
    texts = [r.text for r in records(embedder, size, Scope(), setting.rng("records"))]
    database = sqlite3.connect(setting.folder("fts") / "fts.sqlite3")
    setting.resources.callback(database.close)
    database.execute("CREATE VIRTUAL TABLE t USING fts5(body, tokenize='porter unicode61')")
    with database:
        database.executemany("INSERT INTO t VALUES (?)", ((text,) for text in texts))
    find = "SELECT rowid FROM t WHERE t MATCH ? ORDER BY rank LIMIT ?"
    found = {
        "embed": _times(lambda q: setting.encode([q]), questions),
        "BM25": _times(lambda q: database.execute(find, (bm25_query(q), K)).fetchall(), questions),
    }
    if size <= CHROMA_UP_TO:
        collection = chroma_collection(setting.folder("chroma"), setting.resources)
        for start in range(0, size, 5_000):
            part = texts[start : start + 5_000]
            ids = [str(start + at) for at in range(len(part))]
            collection.add(ids=ids, embeddings=embedder.embed(part))
        vectors = {question: setting.encode([question]) for question in questions}
        vectors["a first question, for what is loaded once"] = vectors[questions[0]]
        found["Chroma"] = _times(
            lambda q: collection.query(query_embeddings=vectors[q], n_results=K), questions
        )
    return found


def _raw(found: dict[str, Any]) -> list[float]:
    """What the libraries take for each question, one after the other."""
    parts = [found[name] for name in ("embed", "Chroma", "BM25") if name in found]
    return [sum(each) for each in zip(*parts, strict=True)]


def _recall(measured: dict[int, dict[str, Any]]) -> Table:
    rows: list[Row] = []
    for size, found in measured.items():
        systems = {
            "palimpsest, recall": found["recall"],
            "embed + Chroma + BM25" if "Chroma" in found else "embed + BM25": _raw(found),
            **{f"  {name}": found[name] for name in ("embed", "Chroma", "BM25") if name in found},
        }
        for name, times in systems.items():
            p50, p95 = percentile(times, 50), percentile(times, 95)
            rows.append({"system": f"{size:,}: {name}", "ms p50": p50, "ms p95": p95})
    return Table(
        title="recall, end to end",
        rows=rows,
        note=f"{QUERIES} questions each, query embedding included; k = {K} for the libraries",
        plot=("ms p50", "ms p95"),
    )


def _writing(measured: dict[int, dict[str, Any]]) -> Table:
    return Table(
        title="writing and room",
        rows=[
            {
                "records": f"{size:,}",
                "turn, ms p50": percentile(found["turn"], 50),
                "turn, ms p95": percentile(found["turn"], 95),
                "fill, records/s": size / found["fill s"],
                "peak memory, MB": found["peak MB"],
                "of it before, MB": found["before MB"],
                "on disk, MB": found["disk MB"],
            }
            for size, found in measured.items()
        ],
        note="a turn is two records, ledger and store, beyond the embedder; filling with encodings"
        " at hand; before: with the models loaded",
    )


def _bulk(setting: Setting) -> Table:
    """Records whose texts are really embedded, into an agent, and into Chroma called directly."""
    said = sentences(setting)
    rng = setting.rng("bulk")
    texts = [f"{rng.choice(said)} ({n})" for n in range(FILLED)]
    collection = chroma_collection(setting.folder("bulk-chroma"), setting.resources)

    def directly(part: Sequence[str], first: int) -> None:
        ids = [str(first + at) for at in range(len(part))]
        collection.add(ids=ids, embeddings=setting.encode(part))

    ours, theirs = [], []
    with setting.agent("scm") as agent:
        agent.append([Record(text="the first one", scope=agent.scope)])
        setting.encode(["the first one"])
        third = FILLED // 3
        for first in range(0, FILLED, third):  # by turns, as a machine's speed wanders
            part = texts[first : first + third]
            made = [Record(text=text, scope=agent.scope, kind="fact") for text in part]
            ours.append(timed(partial(agent.append, made)) / third)
            theirs.append(timed(partial(directly, part, first)) / third)
    ratio = Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])
    return Table(
        title="filling, embedding included",
        rows=[
            {"system": "palimpsest", "ms a record": Spread.of(ours), "speed beside": ratio},
            {"system": "embed + Chroma add", "ms a record": Spread.of(theirs)},
        ],
        note=f"{FILLED} records in three parts, by turns",
    )


def _checks(measured: dict[int, dict[str, Any]], bulk: Table, setting: Setting) -> list[Row]:
    last = max(size for size, found in measured.items() if "Chroma" in found)
    ours, raw = measured[last]["recall"], _raw(measured[last])
    turn = percentile(measured[last]["turn"], 95)
    ratio = bulk.rows[0]["speed beside"]
    assert isinstance(ratio, Spread)
    sizes = sorted(measured)
    times = [percentile(measured[size]["recall"], 50) for size in sizes]
    growth = math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])
    return [
        at_most(
            f"recall p50 beside the libraries, {last:,}",
            percentile(ours, 50) / percentile(raw, 50),
            1.5,
        ),
        at_most(
            f"recall p95 beside the libraries, {last:,}",
            percentile(ours, 95) / percentile(raw, 95),
            2.0,
        ),
        at_most(f"growth exponent of recall, {sizes[0]:,} to {sizes[-1]:,}", growth, 1.0),
        at_most(f"turn beyond the embedder, ms p95, {last:,}", turn, 20),
        at_least("filling beside embed + Chroma add", ratio.median, 0.8),
    ]


def _peak_mb() -> float:
    """The most memory this process ever held; macOS counts bytes, Linux KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
