"""A live KV cache for each session, bounded by a policy: a follow-up costs only its own tokens.

What a session said is a transcript, which follows the ledger as every store does; caches are read
from it and can be read again. A turn works on a fork of its session's cache, which becomes that
cache when message and reply are in the ledger. So what was cancelled, failed or forgotten meanwhile
leaves no trace in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sqlalchemy import Connection

from ...errors import ConfigError, StoreError
from ...llm.open import UnopenedLLM
from ...llm.places import Cache, Place
from ..base import Artefact, Capabilities, Cue, Erasure, Memory, StoreContext
from ..database import MEND, Database, Purpose
from ..record import Record, RecordId, Scope
from .base import RetentionPolicy, settings
from .cache import RetentionCache
from .formats.registry import open_format
from .policies.registry import POLICIES, open_policy
from .rendering import messages
from .shelf import Kept, Mark, Shelf, key_of
from .storage import StorageFormat
from .transcript import Line, Transcript, digest_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...llm.base import LLM

LIVE = 2
"""Sessions whose caches are kept in memory, unless told otherwise."""

SHARED = 64
"""Turns of the session that a fork goes on from which its cache reads."""


class SessionCache(Memory):
    """The caches of all scopes under one policy; the memory's name is the policy's.

    Options are the policy's own (see `palimpsest.memory.retention.policies`); `format`, how keys
    and values are stored; and `live`, the sessions kept in memory. Safe to use from several
    threads.
    """

    place: ClassVar[Place] = "cache"

    @classmethod
    def open(cls, name: str, context: StoreContext, options: Mapping[str, Any]) -> Self:
        """Open the store in `context.folder`.

        Raises:
            ConfigError: no such option, or one breaks a rule.
        """
        own = dict(options)
        live, form = own.pop("live", LIVE), own.pop("format", "plain")
        known = ["live", "format", *(field.name for field in fields(POLICIES.load(name)))]
        if strange := sorted(own.keys() - set(known)):
            raise ConfigError(f"memory {name!r} has no option {strange[0]!r}; it has {known}")
        if not isinstance(live, int) or isinstance(live, bool) or live < 1:
            raise ConfigError(f"{name}: live={live!r} must be a whole number of at least 1")
        try:
            policy, stored = open_policy(name, **own), open_format(str(form))
        except TypeError as error:
            raise ConfigError(f"memory {name!r} cannot use {own}: {error}") from error
        return cls(name, context, policy, stored, live)

    def __init__(
        self,
        name: str,
        context: StoreContext,
        policy: RetentionPolicy,
        form: StorageFormat,
        live: int,
    ) -> None:
        self.name = name
        self.policy, self.form = policy, form
        self.capabilities = Capabilities(recent_turns=SHARED, endless=policy.budget is not None)
        self._context = context
        self._lock = RLock()
        self._transcript = Transcript(f"{name}_" if context.database_url else "")
        purpose = Purpose(f"store {name}", StoreError, MEND, self._prepare)
        where = context.database_url or context.folder / "transcript.sqlite3"
        self._database = Database(where, purpose, read_only=context.read_only)
        self._due: dict[str, Scope] = {}
        self._revision = 0
        self._shelf = Shelf(context.folder / "caches", policy, form, live)
        if not context.read_only:
            self._shelf.sweep(self.held())

    def _prepare(self, connection: Connection, where: str) -> None:
        if not self._context.read_only:
            self._transcript.create(connection)

    def check_model(self, llm: LLM) -> None:
        """That a cache can be made for it.

        Raises:
            CapabilityError: it has no rotary embedding that can be taken over.
        """
        if (model := self._model) is not None:
            RetentionCache(model, self.policy, self.form)

    def write(self, records: Sequence[Record]) -> list[Artefact]:
        """Take records in; see `Memory.write`. A reply makes the cache that its turn left the
        session's own."""
        with self._lock:
            with self._database.write() as session:
                held, revised = self._transcript.put(session, records)
            self._revision += revised
            for record in records:
                if record.role == "assistant" and record.parents:
                    made = record.parents
                    self._shelf.commit(record.scope, made[0], record.id, made)
        return [Artefact(id, f"row:{id}") for id in held]

    def recall(self, cue: Cue) -> Cache:
        """The session's cache, and what it has not read yet."""
        with self._lock, self._database.read() as session:
            end = self._transcript.end(session, cue.scope, cue.record)
            kept, mark = None, Mark()
            for candidate in self._shelf.find(cue.scope, self._model):
                mark = self._known(candidate, end)
                new = candidate.rows[mark.rows :]
                if self._transcript.stands(session, new, cue.scope, end):
                    kept = candidate
                    break
                mark = Mark()
            rows = kept.rows if kept else ()
            lines = [
                *_shared(cue, rows),
                *self._transcript.line(
                    session, cue.scope, end, set(rows[mark.rows :]), after=mark.seq
                ),
            ]
            now = Mark(self._revision, len(rows) + len(lines), end)
            reading = Reading(self, cue, kept, lines, now)
        return reading.contribution()

    def _known(self, kept: Kept, end: int) -> Mark:
        """How far its rows need not be looked at again, so that a turn costs the same however long
        its session is. On a server others may have revised what is held."""
        mark = kept.mark
        trusted = mark is not None and mark.revision == self._revision and mark.seq <= end
        return mark if mark and trusted and not self._context.database_url else Mark()

    def take(self, reading: Reading, kept: Kept, model: PreTrainedModel) -> None:
        """What a request left of a session's cache. A turn of several requests, one that called
        tools, is read again from the transcript, which holds of it what may be held."""
        with self._lock:
            scope, message = reading.cue.scope, reading.cue.record
            if reading.version != self._shelf.version or kept.cache.broken:
                return
            self._due.pop(key_of(scope), None)
            if message is None:
                self._shelf.put(scope, kept, model)
            elif reading.requests > 1:
                self._shelf.withdraw(scope)
            else:
                self._shelf.offer(scope, message, kept, model)

    def forget(self, ids: Collection[RecordId]) -> Erasure:
        """Forget records, and at once every cache that has read any of them, in memory and on
        disk; it is read again, from what is left, when its session goes on."""
        with self._lock:
            caches = self._shelf.drop(ids)
            self._due |= caches
            self._revision += 1
            with self._database.write() as session:
                gone = self._transcript.drop(session, ids)
        return Erasure(
            store=self.name,
            erased=gone,
            unknown=frozenset(ids) - gone,
            rebuilt=tuple(f"cache:{key}" for key in sorted(caches)),
        )

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._shelf.clear()
            self._revision += 1
            with self._database.write() as session:
                self._transcript.clear(session)

    def due(self) -> list[Scope]:
        """Sessions whose caches went with what was forgotten, and that are not read again yet."""
        with self._lock:
            return list(self._due.values())

    def held(self) -> frozenset[RecordId]:
        """Ids of all records in the transcript, superseded ones included."""
        with self._database.read() as session:
            return self._transcript.held(session)

    def empty(self) -> bool:
        """Whether it holds no record."""
        with self._database.read() as session:
            return self._transcript.empty(session)

    def digest(self) -> str:
        """SHA-256, hex, of the transcript; caches follow from it."""
        seal = hashlib.sha256()
        with self._database.read() as session:
            for line in digest_lines(self._transcript.dump(session)):
                seal.update(line)
        return seal.hexdigest()

    def save(self, path: Path) -> None:
        """Write `transcript.json`."""
        path.mkdir(parents=True, exist_ok=True)
        with self._database.read() as session:
            rows = list(self._transcript.dump(session))
        new = path / "transcript.json.new"
        new.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        new.replace(path / "transcript.json")

    def load(self, path: Path) -> None:
        """Replace everything by what `save` wrote, or nothing and raise StoreError."""
        with self._lock:
            try:
                rows = json.loads((path / "transcript.json").read_text(encoding="utf-8"))
                with self._database.write() as session:
                    self._transcript.restore(session, rows)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"the transcript saved in {path} cannot be read: {error!r}; save it again, or"
                    " rebuild the store from the ledger"
                ) from error
            self._shelf.clear()

    def purge(self, *, rewrite: bool = True) -> None:
        """Leave nothing of what was forgotten in the files; see `Memory.purge`."""
        self._database.scrub(rewrite=rewrite)

    def marks(self, ids: Collection[RecordId] | None = None) -> Iterator[bytes]:
        """The token ids in the files of caches that have read the records."""
        with self._lock:
            yield from list(self._shelf.marks(ids))

    def close(self) -> None:
        """Write live caches to their files, and release these. May be called twice."""
        with self._lock:
            model = self._model
            if model is not None and not self._context.read_only:
                self._shelf.spill(model)
            self._database.close()

    @property
    def version(self) -> int:
        """Of what is kept; see `Shelf`."""
        return self._shelf.version

    @property
    def _model(self) -> PreTrainedModel | None:
        """The model in this process, if there is one that was opened to be asked."""
        llm = self._context.llm
        if isinstance(llm, UnopenedLLM):
            return None
        return getattr(llm, "model", None)


class Reading:
    """One turn's use of a session's cache.

    Args:
        kept: the cache it goes on from; None: an empty one.
        lines: what that one has not read yet.
        mark: up to where these reach.
    """

    def __init__(
        self, store: SessionCache, cue: Cue, kept: Kept | None, lines: Sequence[Line], mark: Mark
    ) -> None:
        self.cue = cue
        self.version = store.version
        self.requests = 0
        self._store, self._kept, self._lines, self._mark = store, kept, lines, mark
        self._model: PreTrainedModel | None = None
        self._explain: dict[str, Any] = {
            "policy": {"name": store.policy.name, **settings(store.policy)},
            "format": store.form.name,
            "messages_to_read": len(lines),
        }
        if kept is not None:
            self._account(kept.cache)

    def contribution(self) -> Cache:
        """What the model is given."""
        kept = self._kept
        return Cache(
            memory=self._store.name,
            records=tuple(line.id for line in self._lines),
            earlier=kept.rows if kept else (),
            explain=self._explain,
            build=self.build,
            holds=True,
            turns=messages(self._lines),
            seen=kept.cache.seen if kept else 0,
            unread=kept.unread if kept else (),
            endless=self._store.capabilities.endless,
            done=self.done,
        )

    def build(self, model: PreTrainedModel) -> RetentionCache:
        """A cache to go on with, in a new turn."""
        self._model = model
        self.requests += 1
        store = self._store
        if self._kept is not None:
            cache = self._kept.cache.fork()
        else:
            cache = RetentionCache(model, store.policy, store.form)
        cache.begin_turn()
        return cache

    def done(self, cache: Any, unread: Sequence[int]) -> None:
        """Take it back after a request."""
        assert self._model is not None
        before = self._kept.cache.seen if self._kept else 0
        self._account(cache)
        self._explain["tokens_read"] = self._explain.get("tokens_read", 0) + cache.seen - before
        if cache.seen == 0:
            return
        new = [line.id for line in self._lines]
        rows = (*(self._kept.rows if self._kept else ()), *new)
        touched = (self._kept.touched if self._kept else frozenset()).union(new)
        self._store.take(self, Kept(cache, rows, touched, tuple(unread), self._mark), self._model)

    def _account(self, cache: RetentionCache) -> None:
        self._explain |= {
            "tokens_seen": cache.seen,
            "tokens_stored": cache.stored,
            "tokens_near": len(cache.tokens) if cache.seen else 0,
            "bytes": cache.nbytes,
        }


def _shared(cue: Cue, known: Sequence[RecordId]) -> list[Line]:
    """What a fork shares with the session that it goes on from, as far as the cue shows it, without
    what is known."""
    spoken = [part for turn in cue.recent for part in (turn.user, turn.reply) if part]
    shared = [
        Line(part.id, part.kind, part.role, None, part.text)
        for part in spoken
        if part.scope.session != cue.scope.session
    ]
    read = set(known) if shared else set()
    return [line for line in shared if line.id not in read]
