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

from ...errors import StoreError
from ...llm.places import Place, Prompt
from ..base import Artefact, Capabilities, Cue, Erasure, Memory, StoreContext
from ..index import Hit, HybridIndex
from ..pieces import Ruler
from ..record import Record, RecordId, Scope, Turn
from .archive import Archive
from .config import StreamConfig
from .controller import Asker, Judge, Placed, concatenate, reorganise, score_judge
from .items import Item, sides
from .keys import KEYS, entries, entry_id, item_of, possible_ids
from .ranking import Candidate, best, chance_level, rank
from .summary import Summariser

_BATCH = 256
"""Items whose entries are brought up to date at once."""

_SAMPLE = 64
"""Items whose cosines say what chance looks like: 2016 pairs."""

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
        self._levels: dict[Scope, float | None] = {}
        self._opened: HybridIndex | None = None
        context.folder.mkdir(parents=True, exist_ok=True)
        self._archive = Archive(context.folder / "archive.db", layout=f"1 {config.keys}")

    def write(self, records: Sequence[Record]) -> list[Artefact]:
        """Take records in; see `Memory.write`. An edge's key is that of the item."""
        with self._lock:
            asked = self._levels.keys() & {record.scope.across_sessions() for record in records}
            items = self._archive.put(records)
            self._short.difference_update(items.values())
            self._refresh(self._index)
            for scope in asked:
                self._chance_level(scope)  # now, and not when the next message waits for it
        return [Artefact(id, f"item:{item}") for id, item in items.items()]

    def recall(self, cue: Cue) -> Prompt:
        """The previous turns, and the items that the message brings to mind, within the budget."""
        budget = min(self.config.budget, cue.budget)
        previous = cue.recent[-self.config.flash_turns :] if self.config.flash_turns else ()
        flash = self._ruler.turns(
            previous, budget, each=self.config.flash_raw, shorten=self._shorter
        )
        candidates = self._activate(cue, {turn.user.id for turn in flash.turns})
        threshold = self._chance_level(cue.scope.across_sessions()) if candidates else None
        gate = self._gate(cue.message, candidates, threshold)
        chosen = best(candidates, self.config.k, self.config.floor) if gate["open"] else []
        placed, rounds = self._place(cue.message, chosen, budget - flash.tokens, threshold)
        notes = tuple(item.note() for item in placed if item.piece.text)
        noted = [record for note in notes for record in note.records]
        return Prompt(
            memory=self.name,
            records=tuple(dict.fromkeys([*noted, *flash.records])),
            notes=notes,
            turns=flash.messages,
            explain={
                "gate": gate,
                "budget": budget,
                "flash_tokens": flash.tokens,
                "note_tokens": sum(note.tokens for note in notes),
                "rounds": rounds,
                "candidates": [item.explain() for item in placed],
            },
        )

    def forget(self, ids: Collection[RecordId]) -> Erasure:
        """Forget records, and with them the replies to them and the summaries made from them."""
        with self._lock:
            gone, touched = self._archive.drop(ids)
            self._short -= touched
            self._refresh(self._index)
            self._archive.scrub()
        return Erasure(
            store=self.name,
            erased=gone,
            unknown=frozenset(ids) - gone,
            rebuilt=tuple(f"item:{item}" for item in sorted(touched)),
        )

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._archive.clear()
            self._short.clear()
            self._index.clear()
            self._refresh(self._index)
            self._archive.scrub()

    def held(self) -> frozenset[RecordId]:
        """Ids of all records in the stream, superseded ones and summaries included."""
        return self._archive.held()

    def digest(self) -> str:
        """SHA-256, hex, of all records and of all index entries."""
        with self._lock:
            seal = hashlib.sha256(self._index.digest().encode())
            for values in self._archive.dump():
                seal.update(json.dumps(values, sort_keys=True).encode())
        return seal.hexdigest()

    def save(self, path: Path) -> None:
        """Write `records.json` and the folder `index`."""
        with self._lock:
            path.mkdir(parents=True, exist_ok=True)
            dumped = json.dumps(self._archive.dump(), ensure_ascii=False)
            (path / "records.json").write_text(dumped, encoding="utf-8")
            self._index.save(path / "index")

    def load(self, path: Path) -> None:
        """Replace everything by what `save` wrote, or nothing and raise StoreError."""
        with self._lock:
            try:
                dumped = json.loads((path / "records.json").read_text(encoding="utf-8"))
                with self._archive.transaction():
                    self._archive.restore(dumped)
                    self._index.load(path / "index")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"the stream saved in {path} cannot be read: {error!r}; save it again, or"
                    " rebuild the store from the ledger"
                ) from error
            self._short.clear()
            self._refresh(self._index)

    def derive(self, cancel: Event) -> Iterator[Record]:
        """Summaries of the items that are long and have none, oldest first."""
        for id in self._archive.live():
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
            item = None if id in self._short else self._archive.get(id)
            if item is None or item.summary is not None:
                return None
            if not self._summariser.wanted(item):
                self._short.add(id)
                return None
            return item

    def close(self) -> None:
        """Release the files. May be called twice."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None
            self._archive.close()

    @property
    def _index(self) -> HybridIndex:
        """Opened when first needed, as that loads the embedder; a crash's leftovers are mended."""
        with self._lock:
            if self._opened is None:
                index = HybridIndex(
                    self._context.folder / "index",
                    self._context.embedder(),
                    collection=f"stream-{self._archive.identity}",
                    chroma_url=self._context.chroma_url,
                )
                self._refresh(index)
                self._opened = index
            return self._opened

    def _refresh(self, index: HybridIndex) -> None:
        """Bring the entries of stale items up to date; repeated after a crash, it ends the same."""
        while stale := self._archive.stale(_BATCH):
            self._levels.clear()
            items = [item for item in map(self._archive.get, stale) if item is not None]
            wanted = {e.id: e for item in items for e in entries(item, self.config.keys)}
            index.delete(index.get(possible_ids(stale)).keys() - wanted.keys())
            index.add(wanted.values())
            self._archive.settle(stale)

    def _activate(self, cue: Cue, shown: Collection[RecordId]) -> list[Candidate]:
        """The items that a search finds, without those already in the prompt. An item that says
        nothing but the message itself (asked before, never answered) would only repeat it."""
        scope = cue.scope.across_sessions()
        if self.config.k == 0 or self._archive.count(scope) == 0:
            return []
        size = len(KEYS["all"]) * (_POOL * self.config.k + len(shown) + 1)
        found: dict[RecordId, list[Hit]] = {}
        for hit in self._index.search(cue.message, scope, size, weight=self.config.dense):
            found.setdefault(item_of(hit.entry), []).append(hit)
        items = [(self._archive.get(id), hits) for id, hits in found.items() if id not in shown]
        return [
            self._candidate(item, hits)
            for item, hits in items
            if item is not None and item.said.strip() != cue.message.strip()
        ]

    def _candidate(self, item: Item, hits: Sequence[Hit]) -> Candidate:
        relevance = max(hit.score for hit in hits)
        return Candidate(
            item=item,
            cosines={str(h.entry.meta["form"]): h.cosine for h in hits if h.cosine is not None},
            relevance=relevance,
            score=rank(item, relevance, self.config, self._archive.age),
            bm25=max((hit.bm25 for hit in hits if hit.bm25 is not None), default=None),
        )

    def _chance_level(self, scope: Scope) -> float | None:
        """Worked out once between two changes of the stream: it takes as long as a search."""
        with self._lock:
            self._refresh(self._index)  # a write may have failed half-way, in Chroma say
            if scope not in self._levels:
                sample = self._archive.sample(scope, _SAMPLE)
                vectors = self._index.vectors([entry_id(id, "raw") for id in sample])
                size = self._archive.count(scope)
                self._levels[scope] = chance_level(vectors, size, self.config.chance)
            return self._levels[scope]

    def _gate(
        self, message: str, candidates: Sequence[Candidate], threshold: float | None
    ) -> dict[str, Any]:
        """The decision and what it rests on. Without a threshold the similarity gate is open."""
        mode, value, least = self.config.gate, None, None
        if candidates and mode == "similarity":
            value, least = max(c.cosine for c in candidates), threshold
        elif candidates and mode == "llm":
            value, least = self._asker.gate(message), 0.0
        is_open = bool(candidates) and (value is None or least is None or value >= least)
        return {"mode": mode, "open": is_open, "value": value, "threshold": least}

    def _place(
        self, message: str, chosen: Sequence[Candidate], room: int, threshold: float | None
    ) -> tuple[list[Placed], int]:
        ranked = [self._pieces(candidate) for candidate in chosen]
        if self.config.reorganise == "truncate":
            return concatenate(ranked, room, self._ruler.cut)
        asked: Judge = (
            self._asker.judge(message) if self.config.judge == "llm" else score_judge(threshold)
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
        item = self._archive.get(turn.user.id)
        spoken = {part.id for part in (turn.user, turn.reply) if part}
        if item is None or item.summary is None or set(item.summary.parents) != spoken:
            return None
        return sides(item.summary.text)
