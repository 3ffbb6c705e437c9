"""One turn, from a message to a reply to memory: recall, compose, generate, remember.

It knows places, not methods: which memories there are is data that it is given. Every step that
could be lost in a crash is in the ledger before the next one starts; stores follow the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from itertools import chain
from threading import Event, RLock
from typing import TYPE_CHECKING

from ..errors import CapabilityError
from ..llm.base import LLM, SupportsReading, Token
from ..llm.places import Cache, Contribution, Note, Prompt, compose
from ..memory.base import Cue, Memory
from ..memory.ledger import Ledger
from ..memory.projection import attend, catch_up
from ..memory.record import TRUST, Record, RecordId, Scope, Turn, now
from .prompt import PromptBuilder
from .request import Request
from .tools import ToolLoop, ToolResult
from .trace import MemoryTrace, NoteTrace, Trace

if TYPE_CHECKING:
    from ..memory.reading import Progress


class Loop:
    """The turn, as a generator of visible tokens. Safe to run from several threads."""

    def __init__(
        self,
        llm: LLM,
        ledger: Ledger,
        memories: Sequence[Memory],
        prompt: PromptBuilder,
        tools: ToolLoop,
    ) -> None:
        self.llm = llm
        self.ledger = ledger
        self.memories = tuple(memories)
        self.prompt = prompt
        self.tools = tools
        self.stores = RLock()

    def turn(self, request: Request, redo: Turn | None = None) -> Generator[Token, None, Trace]:
        """Answer one message and return the turn's trace. With `redo`, answer its message again;
        the new reply supersedes the old one.

        Whatever ends the turn early, what was said until then is kept, marked with why it ended.
        """
        clock = _Clock()
        budget, room = self.prompt.budget(request, endless=self.endless)
        message = redo.user if redo else self.hear(request)
        began = self.ledger.last_seq()
        trace = Trace(model=self.llm.name, session=str(request.scope.session), message=message.id)
        cue = self.cue(request, message, budget)
        contributions = self.recall(cue, trace)
        composition = compose(contributions)
        prompt, kept = self.prompt.place(request, composition.prompts, room, composition.cache)
        trace.note(kept)
        trace.recall_ms = clock.ms()
        said: list[str] = []
        try:
            for piece in self.tools.run(prompt, composition.attachments, request):
                if isinstance(piece, ToolResult):
                    trace.tools.append(piece.name)
                    with self.stores:
                        if not self.forgotten(message, contributions, began):
                            self.hear_tool(piece, message)
                    continue
                trace.count(piece, clock.ms())
                said.append(piece.text)
                yield piece
        except GeneratorExit:
            trace.finish = "cancelled"
            raise
        except BaseException as error:
            trace.finish, trace.error = "error", type(error).__name__
            raise
        finally:
            trace.generate_ms = clock.ms() - trace.recall_ms
            with self.stores:  # an erasure holds it, too, and comes before this or after
                forgotten = self.forgotten(message, contributions, began)
                if not forgotten:
                    self.remember("".join(said), message, redo, trace)
                self.follow()
            trace.total_ms = clock.ms()
            if not forgotten:
                self.ledger.traces.put(trace.id, request.scope, trace.reply, trace.to_json())
        return trace

    @property
    def endless(self) -> bool:
        """Whether a message may be longer than the model's window."""
        return any(memory.capabilities.endless for memory in self.memories)

    def hear(self, request: Request) -> Record:
        """The user's message, durable before anything else happens."""
        record = Record(text=request.message, scope=request.scope)
        self.ledger.append([record])
        return record

    def cue(self, request: Request, message: Record, budget: int) -> Cue:
        """What the memories may look at: the message, the turns before it, and the budget."""
        return Cue(
            message=request.message,
            scope=request.scope,
            recent=self.recent(request.scope, message),
            budget=budget,
            now=now(),
            record=message.id,
        )

    def recent(self, scope: Scope, before: Record | None = None) -> tuple[Turn, ...]:
        """The last turns of a session, up to a message, as many as any memory wants."""
        wanted = max((m.capabilities.recent_turns for m in self.memories), default=0)
        turns = self.ledger.turns(scope, wanted + 1) if wanted else []
        return tuple(turn for turn in turns if before is None or turn.user.id < before.id)[-wanted:]

    def recall(self, cue: Cue, trace: Trace) -> list[Contribution]:
        """What each memory gives to this turn, and how long it took."""
        given = []
        for memory in self.memories:
            clock = _Clock()
            with self.stores:
                contribution = memory.recall(cue)
            given.append(contribution)
            trace.memories.append(_account(memory, contribution, clock.ms()))
        return given

    def read_ahead(
        self, scope: Scope, progress: Progress | None = None, cancel: Event | None = None
    ) -> list[Contribution]:
        """Let every cache of a session read what it has not read yet; returns what each of them
        then says of itself. What a cancelled reading leaves is read before the next reply.

        Raises:
            CapabilityError: the model only reads to answer.
        """
        cue = Cue(message="", scope=scope, recent=self.recent(scope), budget=0, now=now())
        read: list[Contribution] = []
        for memory in (memory for memory in self.memories if memory.place == "cache"):
            with self.stores:
                cache = memory.recall(cue)
            assert isinstance(cache, Cache)
            if cache.holds and (cache.turns or cache.unread):
                if not isinstance(self.llm, SupportsReading):
                    raise CapabilityError(
                        f"model {self.llm.name!r} only reads to answer; what memory"
                        f" {memory.name!r} has to read, it reads with the next message"
                    )
                opening = self.prompt.opening(cache)
                self.llm.read(opening, cache, progress=progress, cancel=cancel)
            read.append(cache)
        return read

    def catch_up_caches(self, cancel: Event) -> None:
        """Read again, between turns, what caches have lost to a forgetting."""
        for memory in self.memories:
            for scope in memory.due():
                if cancel.is_set():
                    return
                self.read_ahead(scope, cancel=cancel)

    def forgotten(self, message: Record, contributions: Sequence[Contribution], began: int) -> bool:
        """Whether the message, or anything the memories gave to its turn, was forgotten since the
        turn began. What is said then is said, but not kept: it may repeat what is to be gone."""
        given = [part.records for part in contributions]
        given += [part.earlier for part in contributions if isinstance(part, Cache)]
        return self.ledger.erasures.since(began, chain([message.id], *given))

    def hear_tool(self, result: ToolResult, message: Record) -> None:
        """What a tool said, kept as a record of low trust."""
        if result.text.strip():
            self.ledger.append(
                [
                    Record(
                        text=result.text.replace("\0", "\ufffd"),
                        scope=message.scope,
                        role="tool",
                        source="tool",
                        parents=(message.id,),
                        meta={"tool": result.name, "error": result.error},
                    )
                ]
            )

    def remember(self, text: str, message: Record, redo: Turn | None, trace: Trace) -> None:
        """The reply, into the ledger; a model that said nothing leaves the turn open."""
        if not text.strip():
            return
        behind = self.ledger.find(trace.records, message.scope.across_sessions())
        reply = Record(
            text=text.replace("\0", "\ufffd"),
            scope=message.scope,
            role="assistant",
            source="assistant",
            trust=_trust(behind, trace),
            parents=(message.id, *_grounds(behind, message)),
            supersedes=redo.reply.id if redo and redo.reply else None,
            meta={"finish": trace.finish, "model": trace.model},
        )
        self.ledger.append([reply])
        trace.reply = reply.id

    def attend(self) -> None:
        """Bring every store up to date that was just opened."""
        with self.stores:
            for memory in self.memories:
                attend(self.ledger, memory)

    def follow(self) -> None:
        """Bring every store up to date with the ledger, after a turn as after a crash."""
        with self.stores:
            for memory in self.memories:
                catch_up(self.ledger, memory)


def _grounds(behind: Sequence[Record], message: Record) -> list[RecordId]:
    """What a reply went by: the records behind its notes, and where these are replies themselves,
    what they went by. So a correction, or a forgetting, reaches every answer that followed from
    what was wrong."""
    earlier = [ground for record in behind for ground in record.parents[1:]]
    grounds = dict.fromkeys([*(record.id for record in behind), *earlier])
    return [ground for ground in grounds if ground != message.id]


def _trust(behind: Sequence[Record], trace: Trace) -> float:
    """A reply is trusted no further than what it went by: else whatever a document says would be
    trusted as conversation once it was talked of."""
    given = [record.trust for record in behind if record.trust is not None]
    return min([TRUST["assistant"], *given, *([TRUST["tool"]] if trace.tools else [])])


def _account(memory: Memory, contribution: Contribution, ms: float) -> MemoryTrace:
    prompt = contribution if isinstance(contribution, Prompt) else None
    return MemoryTrace(
        memory=memory.name,
        place=memory.place,
        records=contribution.records,
        notes=tuple(_note(note) for note in prompt.notes) if prompt else (),
        turns=len(prompt.turns) if prompt else 0,
        ms=ms,
        explain=contribution.explain,
    )


def _note(note: Note) -> NoteTrace:
    return NoteTrace(
        records=note.records,
        score=note.score,
        tokens=note.tokens,
        form=note.form,
        source=note.source,
        kept=False,
    )


class _Clock:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def ms(self) -> float:
        return (time.perf_counter() - self._start) * 1000
