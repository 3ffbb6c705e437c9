"""SCM, the self-controlled memory stream: turns kept as items, recalled under a hard budget.

"Enhancing LLM with Self-Controlled Memory Framework", arXiv 2304.13343. The archive keeps the items
and the index finds them; the controller decides. Knows nothing of agents or of the ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from threading import Event, RLock
from typing import Any, ClassVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ...errors import StoreError
from ...llm.places import Place, Prompt
from ..base import Artefact, Capabilities, Cue, Erasure, Memory, StoreContext
from ..database import MEND, Database, Purpose
from ..journal import chunks
from ..pieces import NOTHING, Ruler
from ..record import Record, RecordId, Turn
from ..search.base import Hit
from ..search.index import HybridIndex
from ..search.reranking import CrossEncoderReranker
from ..search.tables import Tables
from . import influence
from .archive import Archive
from .config import StreamConfig
from .contents import Contents
from .controller import Asker, Judge, Placed, concatenate, reorganise, score_judge
from .items import Item, sides
from .keys import (
    KEYS,
    PAST,
    entries,
    entry_id,
    item_of,
    key_of,
    keys_saying,
    past_entries,
    possible_ids,
)
from .ranking import Candidate, rank
from .summary import Summariser
from .tables import StreamTables

_BATCH = 256
"""Items whose entries are brought up to date at once."""

_POOL = 2
"""Candidates that are ranked for each that is kept, so that trust and age can change the order."""


class StreamMemory(Memory):
    """The memory stream of all scopes, in one folder. Safe to use from several threads."""

    place: ClassVar[Place] = "prompt"
    Config: ClassVar[type[Any]] = StreamConfig

    def __init__(self, name: str, context: StoreContext, config: StreamConfig) -> None:
        self.name = name
        self.config = config
        asks = "llm" in (config.gate, config.judge)
        self.capabilities = Capabilities(
            recent_turns=config.flash_turns,
            needs=frozenset({"logprobs"} if asks else ()),
            derives=True,
        )
        self._context = context
        self._ruler = Ruler(context.llm.count_tokens)
        self._asker = Asker(context.llm)
        self._summariser = Summariser(
            context.llm, above=config.summarise_above, longest=config.summary_tokens
        )
        self._lock = RLock()
        self._short: set[RecordId] = set()
        self._opened: HybridIndex | None = None
        prefix = f"{name}_" if context.database_url else ""
        self._tables, self._index_tables = StreamTables(prefix), Tables(prefix)
        self._contents = Contents(self._tables)
        self._archive = Archive(self._tables, self._contents)
        purpose = Purpose(f"store {name}", StoreError, MEND, self._prepare)
        where = context.database_url or context.folder / "stream.sqlite3"
        self._database = Database(where, purpose, read_only=context.read_only)
        with self._database.write() as session:
            self._identity = self._archive.prepare(session, layout=f"3 {config.keys}")

    def _prepare(self, connection: Connection, where: str) -> None:
        self._tables.create(connection)
        self._index_tables.create(connection, where)

    def write(self, records: Sequence[Record]) -> list[Artefact]:
        """Take records in; see `Memory.write`. An edge's key is that of the item."""
        index = self._index
        with self._lock, self._database.write() as session:
            items = self._archive.put(session, records)
            self._short.difference_update(items.values())
            self._refresh(session, index)
        index.settle()
        return [Artefact(id, f"item:{item}") for id, item in items.items()]

    def recall(self, cue: Cue) -> Prompt:
        """The previous turns, and the items that the message brings to mind, within the budget."""
        budget = min(self.config.budget, cue.budget)
        previous = cue.recent[-self.config.flash_turns :] if self.config.flash_turns else ()
        flash = self._ruler.turns(
            previous, budget, each=self.config.flash_raw, shorten=self._shorter
        )
        shown = {turn.user.id for turn in flash.turns} | ({cue.record} if cue.record else set())
        candidates = self._activate(cue, shown)
        lens = cue.lens
        limits = influence.NONE if "source" in lens.where else self.config
        heard = influence.heard(candidates, cue.message, limits)
        gate = self._gate(cue.message, heard.candidates)
        k, floor = (lens.k, 0.0) if lens.k else (self.config.k, self.config.floor)
        chosen = influence.chosen(
            heard.candidates, limits, k=k, floor=floor, least=self.config.least
        )
        placed, rounds = (
            self._place(cue.message, chosen, budget - flash.tokens)
            if gate["open"]
            else ([Placed(each, NOTHING, None, "dropped", "gate") for each in chosen], 0)
        )
        notes = tuple(item.note() for item in placed if item.piece.text)
        noted = [record for note in notes for record in note.records]
        return Prompt(
            memory=self.name,
            records=tuple(dict.fromkeys([*noted, *flash.records])),
            notes=notes,
            turns=flash.messages,
            explain={
                "gate": gate,
                "limits": heard.explain(),
                "budget": budget,
                "flash_tokens": flash.tokens,
                "note_tokens": sum(note.tokens for note in notes),
                "rounds": rounds,
                "candidates": [item.explain() for item in placed],
            },
        )

    def forget(self, ids: Collection[RecordId]) -> Erasure:
        """Forget records, and with them the replies to them and the summaries made from them."""
        index = self._index
        with self._lock, self._database.write() as session:
            gone, touched = self._archive.drop(session, ids)
            self._short -= touched
            self._refresh(session, index)
        index.settle()
        return Erasure(
            store=self.name,
            erased=gone,
            unknown=frozenset(ids) - gone,
            rebuilt=tuple(f"item:{item}" for item in sorted(touched)),
        )

    def purge(self, *, rewrite: bool = True) -> None:
        """Leave nothing of what was forgotten in the files; see `Memory.purge`."""
        self._index.purge(rewrite=rewrite)

    def marks(self, ids: Collection[RecordId] | None = None) -> Iterator[bytes]:
        """What stands beside their texts, and what the index keeps in place of these; see
        `HybridIndex.marks`."""
        with self._database.read() as session:
            yield from self._contents.marks(session, ids)
            places = {} if ids is None else self._contents.places(session, ids)
        if ids is None:
            yield from self._index.marks()
        for part in chunks(sorted(set(places.values()))):
            with self._database.read() as session:
                items, past = self._contents.states(session, part)
            keys = self.config.keys
            saying = [
                entry_id(i.id, key) for i in items.values() for key in keys_saying(i, keys, places)
            ]
            for item, gone in past.values():
                said = keys_saying(item, keys, gone & places.keys())
                saying += [entry_id(item.id, PAST + key) for key in said]
            yield from self._index.marks(saying)

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            with self._database.write() as session:
                self._archive.clear(session)
            self._short.clear()
            self._index.clear()

    def held(self) -> frozenset[RecordId]:
        """Ids of all records in the stream, superseded ones and summaries included."""
        with self._database.read() as session:
            return self._contents.held(session)

    def empty(self) -> bool:
        """Whether it holds no record."""
        with self._database.read() as session:
            return self._contents.empty(session)

    def digest(self) -> str:
        """SHA-256, hex, of all records and of all index entries."""
        seal = hashlib.sha256(self._index.digest().encode())
        with self._database.read() as session:
            for values in self._contents.dump(session):
                seal.update(json.dumps(values, sort_keys=True).encode())
        return seal.hexdigest()

    def save(self, path: Path) -> None:
        """Write `records.json` and the folder `index`."""
        with self._lock:
            self._index.save(path / "index")
            with self._database.read() as session:
                records = list(self._contents.dump(session))
            saved = {"index": self._index.digest(), "records": records}
            new = path / "records.json.new"
            new.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")
            new.replace(path / "records.json")

    def load(self, path: Path) -> None:
        """Replace everything by what `save` wrote, or nothing and raise StoreError."""
        with self._lock:
            try:
                saved = json.loads((path / "records.json").read_text(encoding="utf-8"))
                index = self._index
                with self._database.write() as session:
                    self._archive.restore(session, saved["records"])
                    if index.restore(session, path / "index") != saved["index"]:
                        raise ValueError("its records and its index are of different snapshots")
                    self._refresh(session, index)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"the stream saved in {path} cannot be read: {error!r}; save it again, or"
                    " rebuild the store from the ledger"
                ) from error
            self._short.clear()
            index.settle()

    def derive(self, cancel: Event) -> Iterator[Record]:
        """Summaries of the items that are long and have none, oldest first."""
        with self._database.read() as session:
            live = self._contents.live(session)
        for id in live:
            if cancel.is_set():
                return
            item = self._unsummarised(id)
            if item is None:
                continue
            summary = self._summariser.summarise(item, cancel)
            if summary is None:
                return
            yield summary

    def _unsummarised(self, id: RecordId) -> Item | None:
        """The item, if it is long enough for a summary and has none."""
        with self._lock:
            item = None if id in self._short else self._item(id)
            if item is None or item.summary is not None:
                return None
            if not self._summariser.wanted(item):
                self._short.add(id)
                return None
            return item

    def _item(self, id: RecordId) -> Item | None:
        with self._database.read() as session:
            return self._contents.items(session, [id]).get(id)

    def close(self) -> None:
        """Release the files. May be called twice."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None
            self._database.close()

    @property
    def _index(self) -> HybridIndex:
        """Opened when first needed, as that loads the embedder."""
        with self._lock:
            if self._opened is None:
                model = self.config.reranker
                index = HybridIndex(
                    self._database,
                    self._index_tables,
                    self._context.embedder(),
                    chroma_url=self._context.chroma_url,
                    collection=f"stream-{self._identity}",
                    reranker=CrossEncoderReranker(model) if model else None,
                )
                with self._database.write() as session:
                    self._refresh(session, index)  # the layout may have changed
                self._opened = index
            return self._opened

    def _refresh(self, session: Session, index: HybridIndex) -> None:
        """Bring the entries of stale items up to date."""
        full = True
        while full and (stale := self._archive.stale(session, _BATCH)):
            full = len(stale) == _BATCH
            items, past = self._contents.states(session, stale)
            wanted = [e for item in items.values() for e in entries(item, self.config.keys)]
            for item, gone in past.values():
                wanted += past_entries(item, self.config.keys, gone)
            index.replace(session, possible_ids(stale), wanted)
            self._archive.settle(session, stale)

    def _activate(self, cue: Cue, shown: Collection[RecordId]) -> list[Candidate]:
        """The items that a search finds, without those already in the prompt and the turn that is
        answered again. An item that says nothing but the message itself (asked before, never
        answered) would only repeat it."""
        scope, lens = cue.scope.across_sessions(), cue.lens
        k = lens.k or self.config.k
        if k == 0:
            return []
        with self._database.read() as session:
            if not self._contents.any(session, scope):
                return []  # and load no embedder
        found: dict[RecordId, list[Hit]] = {}
        for hit in self._search(cue, len(KEYS["all"]) * (_POOL * k + len(shown) + 1)):
            found.setdefault(item_of(hit.entry), []).append(hit)
        with self._database.read() as session:
            items = self._contents.items(session, found.keys() - set(shown), lens.as_of)
            return [
                self._candidate(session, items[id], hits)
                for id, hits in found.items()
                if id in items and items[id].said.strip() != cue.message.strip()
            ]

    def _search(self, cue: Cue, size: int) -> Iterator[Hit]:
        """What the cue's lens lets through; for a past time, also what is over since."""
        lens = cue.lens
        for past in (False, True) if lens.as_of else (False,):
            yield from self._index.search(
                cue.message,
                cue.scope.across_sessions(),
                size,
                where=lens.where,
                since=lens.since,
                until=lens.end,
                past=past,
                at=lens.as_of or cue.now,
            )

    def _candidate(self, session: Session, item: Item, hits: Sequence[Hit]) -> Candidate:
        top = max(hits, key=lambda hit: hit.score)

        def age(item: Item) -> int:
            return self._contents.age(session, item)

        return Candidate(
            item=item,
            scores={key_of(hit.entry): hit.score for hit in hits},
            score=rank(item, top.score, self.config, age),
            signals=top.signals,
        )

    def _gate(self, message: str, candidates: Sequence[Candidate]) -> dict[str, Any]:
        """The decision and what it rests on."""
        mode, value, least = self.config.gate, None, None
        if candidates and mode == "relevance":
            value, least = max(c.relevance for c in candidates), self.config.least
        elif candidates and mode == "llm":
            value, least = self._asker.gate(message), 0.0
        is_open = bool(candidates) and (value is None or least is None or value >= least)
        return {"mode": mode, "open": is_open, "value": value, "threshold": least}

    def _place(
        self, message: str, chosen: Sequence[Candidate], room: int
    ) -> tuple[list[Placed], int]:
        ranked = [self._pieces(candidate) for candidate in chosen]
        if self.config.reorganise == "truncate":
            return concatenate(ranked, room, self._ruler.cut)
        asked: Judge = (
            self._asker.judge(message)
            if self.config.judge == "llm"
            else score_judge(self.config.least)
        )
        above = self.config.judge_above
        return reorganise(
            ranked, room, lambda p: asked(p) if p.raw.tokens > above else "raw", self._ruler.cut
        )

    def _pieces(self, candidate: Candidate) -> Placed:
        # More characters than this never fit, and counting the tokens of a whole book takes long.
        raw = self._ruler.measure(candidate.item.note[: 32 * self.config.budget])
        short = candidate.item.short_note
        summary = self._ruler.measure(short) if short else None
        return Placed(candidate, raw, summary if summary and summary.tokens < raw.tokens else None)

    def _shorter(self, turn: Turn) -> tuple[str, str] | None:
        """Both sides of a turn as its summary has them, if there is one of exactly this turn."""
        item = self._item(turn.user.id)
        spoken = {part.id for part in (turn.user, turn.reply) if part}
        if item is None or item.summary is None or set(item.summary.parents) != spoken:
            return None
        return sides(item.summary.text)
