"""The SDK's face: an agent that answers, remembers, and can say why.

A turn itself is in `loop.py`; everything here is a verb that a user, a command or a server calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Self

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as as_tool

from ..errors import ConfigError, InputError, RecordNotFound
from ..llm.base import LLM, GenerationConfig
from ..llm.places import Prompt
from ..memory.base import Cue, Lens, Memory
from ..memory.ledger import SessionInfo
from ..memory.record import Kind, Reach, Record, RecordId, Scope, Source, Turn, new_id, now
from ..memory.registry import DEFAULT_READER, DEFAULT_SELECTOR
from ..memory.screening import admitted
from ..memory.search.base import Where
from ..memory.vectors import Embedder
from ..unlearning.erasure import Eraser
from ..unlearning.report import Plan, Report
from ..unlearning.tiers import Tiers
from .background import Background
from .building import Parts, build_parts
from .documents import Library
from .editing import Editing
from .forgetting import Forgettable, asked, asked_scope
from .loop import Loop
from .operations import Operations
from .prompt import PromptBuilder
from .reply import Recollection, Reply, ReplyChunk, collect
from .request import AgentInput, Request, turn_scope
from .tools import ToolLoop, memory_tools
from .trace import Trace
from .unlearning import Unlearning

if TYPE_CHECKING:
    from ..memory.reading import Answer, Progress, Section

RECALL_BUDGET = 2048
"""Tokens that `Agent.recall` lets each memory return."""


class Agent(Operations, Editing, Unlearning, Runnable[AgentInput, Reply]):
    """An LLM with memories, on one data folder. Made by `Agent.open`; close it when done.

    A langchain `Runnable`: `invoke`, `stream`, `batch` and their async forms take a text or
    messages, and `session=`, `user=`, `tenant=` as keywords or under `config["configurable"]`.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        scope: Scope,
        generation: GenerationConfig,
        system: str | None = None,
        tools: Sequence[str | BaseTool | Callable[..., Any]] = (),
    ) -> None:
        self.home = parts.home
        self.llm = parts.llm
        self.ledger = parts.ledger
        self.memories = parts.memories
        self.scope = scope
        self.generation = generation
        self._resources = parts.resources
        own = memory_tools(self)
        loop_tools = ToolLoop(parts.llm, [_as_tool(each, own) for each in tools])
        prompt = PromptBuilder(parts.llm, system)
        self._loop = Loop(parts.llm, parts.ledger, parts.memories, prompt, loop_tools)
        self._library = Library(parts.llm, parts.ledger, self.append, parts.embedder)
        self._background = Background(self.derive)
        self._resources.callback(self._background.close)
        self._eraser = Eraser(
            Tiers(
                ledger=parts.ledger,
                memories=parts.memories,
                home=parts.home,
                following=self._loop.stores,
                read_only=parts.read_only,
                outside=parts.outside,
            )
        )
        if not parts.read_only:
            self._loop.attend()
            self._eraser.resume()

    @classmethod
    def open(
        cls,
        model: str | LLM = "smollm2",
        *,
        home: str | Path | None = None,
        memories: Sequence[str | Memory] | None = None,
        tools: Sequence[str | BaseTool | Callable[..., Any]] = (),
        system: str | None = None,
        generation: GenerationConfig | None = None,
        device: str = "auto",
        embedder: str | Embedder = "minilm",
        tenant: str = "default",
        user: str = "default",
        name: str = "default",
        ledger_url: str | None = None,
        chroma_url: str | None = None,
        read_only: bool = False,
    ) -> Self:
        """Open an agent on a data folder, as its one writer or as one of several readers.

        Args:
            model: a catalog name, a local folder, a served model's `http://host/v1#name`, or an
                LLM of your own.
            home: the data folder; by default PALIMPSEST_HOME, else the platform's.
            memories: specs such as "scm" or "scm:k=6,gate=llm", or stores of your own.
            tools: "remember", "recall", "forget", langchain tools, or plain functions with
                docstrings.
            system: the system prompt.
            tenant, user, name: whose agent this is; `name` is the agent's own.
            ledger_url: an SQLAlchemy URL instead of SQLite in the data folder.
            chroma_url: a Chroma server instead of Chroma in the data folder.
            read_only: look, and change nothing; also while another process holds the folder.
                Whatever writes raises a LedgerError, and stores are as their writer left them.

        Raises:
            HomeLocked, LedgerError, ModelNotFound, UnknownName, PlaceError, CapabilityError.
        """
        parts = build_parts(
            model,
            home=home,
            memories=memories,
            device=device,
            embedder=embedder,
            ledger_url=ledger_url,
            chroma_url=chroma_url,
            read_only=read_only,
        )
        try:
            return cls(
                parts,
                scope=Scope(tenant, user, name),
                generation=generation or GenerationConfig(),
                system=system,
                tools=tools,
            )
        except BaseException:
            parts.resources.close()
            raise

    def close(self) -> None:
        """Stop background work, close the stores and the ledger, release the data folder."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Answering.

    def stream(  # type: ignore[override]
        self, input: AgentInput, config: RunnableConfig | None = None, **options: Any
    ) -> Generator[ReplyChunk]:
        """Answer a message piece by piece. The last chunk is empty and carries the trace's id.

        Closing the iterator ends the turn; what was said until then is kept and marked.

        Args:
            options: `session`, `user`, `tenant`, `agent`, `scope`, `generation`, `cancel`.

        Raises:
            InputError, ContextOverflow: and nothing was stored.
            ModelError: the message is stored, and the reply as far as it went.
        """
        request = Request.parse(input, config, options, self.scope, self.generation)
        yield from self._stream(request)

    def invoke(
        self, input: AgentInput, config: RunnableConfig | None = None, **options: Any
    ) -> Reply:
        """Answer a message. Options and errors as for `stream`."""
        request = Request.parse(input, config, options, self.scope, self.generation)
        return collect(self._stream(request))

    ask = invoke

    async def ainvoke(
        self, input: AgentInput, config: RunnableConfig | None = None, **options: Any
    ) -> Reply:
        """`invoke`, in a thread of its own."""
        return await run_in_executor(config, self.invoke, input, config, **options)

    async def astream(  # type: ignore[override]
        self, input: AgentInput, config: RunnableConfig | None = None, **options: Any
    ) -> AsyncIterator[ReplyChunk]:
        """`stream`, each piece made in a thread; cancelling the task ends the turn."""
        cancel = options.setdefault("cancel", Event())
        pieces = self.stream(input, config, **options)
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
        finally:
            cancel.set()
            await asyncio.shield(asyncio.to_thread(_drain, pieces))

    def regenerate(self, **options: Any) -> Reply:
        """Answer the session's last message again; the new reply supersedes the old one.

        Raises:
            InputError: the session has no turn yet.
        """
        generation = options.pop("generation", None) or self.generation
        scope = turn_scope(self.scope, options)
        turns = self.ledger.turns(scope, 1)
        if not turns:
            raise InputError(f"session {scope.session!r} has no turn to answer again; ask first")
        own = replace(scope, session=turns[0].user.scope.session)
        request = Request(message=turns[0].user.text, scope=own, generation=generation)
        return collect(self._stream(request, turns[0]))

    # Remembering.

    def remember(
        self,
        text: str,
        *,
        kind: Kind = "fact",
        source: Source = "user",
        supersedes: str | None = None,
        **options: Any,
    ) -> Record:
        """Store a text as it is; durable, and in every store, when this returns.

        Args:
            supersedes: id of the record it replaces: that one is no longer recalled, and stays
                readable in `history`.

        Raises:
            InputError: it would supersede a record of a source that is trusted more.
        """
        record = admitted(
            Record(
                text=text,
                scope=turn_scope(self.scope, options),
                kind=kind,
                source=source,
                supersedes=RecordId(supersedes) if supersedes else None,
            )
        )
        self.append([record])
        return record

    def correct(self, wrong: Reply | str, text: str, **options: Any) -> Record:
        """Store `text` as what holds from now on, in place of what was wrong.

        Args:
            wrong: a reply, of which the most relevant record behind it is superseded; or the id of
                the record to supersede.

        Raises:
            InputError: no record is behind that reply: `remember` the text instead.
        """
        if isinstance(wrong, Reply):
            if not wrong.why.noted:
                raise InputError(
                    "no record is behind that reply, so there is nothing to correct;"
                    " remember the right answer instead"
                )
            wrong = wrong.why.noted[0]
        # What was corrected before is corrected again at its newest form.
        wrong = self.history(wrong, **options)[-1].id
        return self.remember(text, kind="correction", supersedes=wrong, **options)

    def recall(
        self,
        query: str,
        *,
        where: Where | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        as_of: datetime | None = None,
        k: int | None = None,
        **options: Any,
    ) -> Recollection:
        """What the memories hold on `query`, in all sessions, without asking the model; changes
        nothing. Nothing relevant is an answer: no notes.

        Args:
            where: "kind", "role", "session", "source" or "speaker" -> the value that a record must
                have, or several of which it must have one.
            since, until: when it must have begun to hold: from the first to just before the second.
            as_of: a time from which to look: what held then, superseded since or not.
            k: most notes; by default what each memory is configured to.
        """
        scope = turn_scope(self.scope, options)
        lens = Lens(where=where or {}, since=since, until=until, as_of=as_of, k=k)
        cue = Cue(message=query, scope=scope, budget=RECALL_BUDGET, now=now(), lens=lens)
        trace = Trace(model=self.llm.name, session=str(scope.session), message=new_id())
        given = self._loop.recall(cue, trace)
        notes = [note for part in given if isinstance(part, Prompt) for note in part.notes]
        return Recollection(
            notes=tuple(sorted(notes, key=lambda note: -note.score)),
            explain={part.memory: dict(part.explain) for part in given},
        )

    def read(
        self,
        text: str,
        *,
        title: str = "document",
        topic: str | None = None,
        reader: str = DEFAULT_READER,
        progress: Progress | None = None,
        cancel: Event | None = None,
        **options: Any,
    ) -> Iterator[Section]:
        """Read a document of any length; yields its summaries as they are made, the one of
        everything last. What was read is kept, can be recalled, and is not read again.

        Args:
            topic: a question or theme that the summaries are to serve.
            progress: called as (sections done, sections expected).
        """
        scope = turn_scope(self.scope, options)
        return self._library.read(
            text, scope, title=title, reader=reader, topic=topic, progress=progress, cancel=cancel
        )

    def ask_document(
        self,
        question: str,
        text: str,
        *,
        selector: str = DEFAULT_SELECTOR,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Answer | None:
        """Answer from the stretches of a document that bear on the question. Keeps nothing; None
        if cancelled."""
        return self._library.ask(
            question, text, selector=selector, progress=progress, cancel=cancel
        )

    def derive(self, cancel: Event | None = None) -> int:
        """Do the slow work that stores have put off (turn summaries, caches to be read again);
        returns how many records it made. Stops soon after `cancel` is set; `start_background` does
        this between turns."""
        cancel = cancel or Event()
        made = 0
        for memory in self.memories:
            if memory.capabilities.derives:
                for record in memory.derive(cancel):
                    self.ledger.append([record])
                    made += 1
        self._loop.follow()
        self._loop.catch_up_caches(cancel)
        return made

    # Forgetting.

    def forget(
        self,
        what: Forgettable | Report | None = None,
        *,
        query: str | None = None,
        everything: bool = False,
        all_users: bool = False,
        source: Source | None = None,
        origin: str | None = None,
        since: datetime | None = None,
        dry_run: bool = False,
        **options: Any,
    ) -> Report:
        """Forget, in the ledger, every store and every file, and report what went and how that was
        checked. What was made from a record goes with it, and so do its other versions.

        Args:
            what: ids or records; a text that is no id, as a query; or the report of a dry run, to
                have exactly that done.
            query: all records with all of these words, in all sessions unless `session=` is given.
            everything: all records of the user, or of the session if one is given.
            all_users: of all users and agents of the tenant.
            source: all that came from it, a "document" or "tool" for one; with `origin`, only from
                files, titles or tools of that name (`*` stands for any part of it), and with
                `since`, only what was taken in from that time on.
            dry_run: only report what would go.

        Raises:
            RecordNotFound: an id is not known in this scope, or nothing fits; nothing has gone.
            PlanOutdated: the ledger has changed since the dry run; nothing has gone.
            ConfigError: nothing is named or too much, or a store that holds some is not open.
            LedgerError, StoreError: a step failed; opening the agent again goes on from there.
        """
        asking = asked(
            self.ledger,
            asked_scope(self.scope, options),
            what,
            query=query,
            everything=everything,
            all_users=all_users,
            source=source,
            origin=origin,
            since=since,
        )
        with self._background.paused():
            if dry_run:
                return self._eraser.plan(asking.request if isinstance(asking, Plan) else asking)
            return self._eraser.forget(asking)

    def forgotten(self, *, all_users: bool = False, **options: Any) -> list[Report]:
        """The reports of all that was forgotten of the user, oldest first."""
        scope = asked_scope(self.scope, options)
        return self._eraser.reports(Reach(tenant=scope.tenant) if all_users else Reach.of(scope))

    def start_background(self) -> None:
        """Do slow work in a thread from now on, whenever no turn is running."""
        self._background.start()

    # Looking back.

    def why(self, reply: Reply | str | None = None, **options: Any) -> Trace:
        """The trace of a reply (or its record's id), or of the session's last turn.

        Raises:
            RecordNotFound: there is no such turn in this scope.
        """
        if isinstance(reply, Reply):
            return reply.why
        scope = turn_scope(self.scope, options)
        if reply is not None:
            return Trace.from_json(self.ledger.traces.get(reply, scope.across_sessions()))
        data = self.ledger.traces.last(scope)
        if data is None:
            raise RecordNotFound(
                f"session {scope.session!r} has no turn yet; `palimpsest sessions` lists those"
                " that have"
            )
        return Trace.from_json(data)

    def history(self, record: str, **options: Any) -> list[Record]:
        """A record with all it superseded and all that superseded it, oldest first."""
        scope = turn_scope(self.scope, options).across_sessions()
        return self.ledger.history(RecordId(record), scope)

    def turns(self, limit: int = 20, **options: Any) -> list[Turn]:
        """The last turns of a session, oldest first."""
        return self.ledger.turns(turn_scope(self.scope, options), limit)

    def sessions(self, **options: Any) -> list[SessionInfo]:
        """All sessions of this user with this agent, the latest first."""
        return self.ledger.sessions(turn_scope(self.scope, options).across_sessions())

    def fork(self, session: str, new: str, *, at: str | None = None, **options: Any) -> Scope:
        """Begin session `new` with the turns of `session`, up to and with record `at`."""
        scope = turn_scope(self.scope, {**options, "session": session})
        return self.ledger.fork(scope, new, RecordId(at) if at else None)

    def _stream(self, request: Request, redo: Turn | None = None) -> Iterator[ReplyChunk]:
        with self._background.paused():
            trace = None
            turn = self._loop.turn(request, redo)
            try:
                while trace is None:
                    try:
                        token = next(turn)
                    except StopIteration as end:
                        trace = end.value
                    else:
                        yield ReplyChunk(content=token.text)
            finally:
                turn.close()
        yield ReplyChunk(
            content="",
            id=trace.reply,
            response_metadata={"trace": trace.to_json(), "model_name": trace.model},
            chunk_position="last",
        )


def _as_tool(given: str | BaseTool | Callable[..., Any], own: dict[str, BaseTool]) -> BaseTool:
    if isinstance(given, BaseTool):
        return given
    if isinstance(given, str):
        if given not in own:
            raise ConfigError(f"tools={given!r} is not one of the agent's own: {sorted(own)}")
        return own[given]
    return as_tool(given)


def _drain(pieces: Iterator[ReplyChunk]) -> None:
    """Let a cancelled turn come to its end, so that what was said is kept."""
    for _ in pieces:
        pass
