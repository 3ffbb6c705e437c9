"""What is measured side by side: editors of weights, the fact as text in the prompt, and no edit.

Each takes a window of facts in, and says how a question is then to be asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Protocol

from ...editors.base import Patch
from ...editors.editor import Editor
from ...editors.lanes import settings
from ...memory.base import Cue, StoreContext
from ...memory.record import Record, RecordId, Scope, now
from ...memory.registry import open_memory
from .edit_material import Window

if TYPE_CHECKING:
    from ...llm.base import LLM
    from ...llm.places import Prompt
    from ...memory.vectors import Embedder

MERGED = "wise:shards=2,mode=merge,rank=0,gate=activation,beta=5,rate=0.003"
NOTHING, REMEMBERED = "no edit", "prompt memory"
NOTES = 768
"""Tokens of notes that the prompt memory may put before a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A system that has taken a window in.

    Args:
        ask: a prompt as it is put to the model.
        patch: on the model while it is asked.
        ids: of the edits, in the window's order, where they have any.
        seconds: what taking in each edit took.
        nbytes: what is kept of all of them.
    """

    ask: Callable[[str], str] = lambda prompt: prompt
    patch: Patch | None = None
    ids: Sequence[RecordId] = ()
    seconds: Sequence[float] = ()
    nbytes: int = 0


class System(Protocol):
    """One row of the tables."""

    @property
    def name(self) -> str:
        """As tables have it."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain JSON values on which its results depend."""

    @contextmanager
    def opened(self) -> Iterator[Callable[[Window], Applied]]:
        """Inside the block, what takes windows in; each by itself, whatever came before."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """The model as it is."""

    name: str = NOTHING

    @property
    def settings(self) -> Mapping[str, Any]:
        """None."""
        return {}

    @contextmanager
    def opened(self) -> Iterator[Callable[[Window], Applied]]:
        """Takes nothing in."""
        yield lambda window: Applied()


@dataclass(frozen=True, slots=True)
class Editing:
    """An editing method.

    Args:
        spec: as a memory is named.
        folder: for what it learns. What lies there from a run that broke off is gone on with; a
            run that ends leaves nothing.
    """

    name: str
    spec: str
    llm: LLM
    embedder: Callable[[], Embedder]
    folder: Path

    def open(self) -> Editor:
        """Its editor."""
        context = StoreContext(folder=self.folder, llm=self.llm, embedder=self.embedder)
        editor = open_memory(self.spec, context)
        assert isinstance(editor, Editor)
        return editor

    @property
    def settings(self) -> Mapping[str, Any]:
        """Hyper-parameters, defaults included."""
        from ...editors.registry import METHODS
        from ...registry import parse_spec

        name, options = parse_spec(self.spec)
        return settings(METHODS.build(name, **options))

    @contextmanager
    def opened(self) -> Iterator[Callable[[Window], Applied]]:
        """Each window is a user with edits of its own; equal edits are learnt once."""
        editor = self.open()
        try:
            yield lambda window: edited(editor, window)
        finally:
            editor.close()
        rmtree(self.folder, ignore_errors=True)


def edited(editor: Editor, window: Window) -> Applied:
    """The window's edits, written unless they are there, and learnt one after the other."""
    scope = Scope(user=window.name)
    edits = [fact.edit for fact in window.facts]
    held = [each for each, _ in editor.edits(scope)]
    if [each.edit for each in held] != edits:
        editor.forget([each.id for each in held])
        editor.write([edit.record(scope) for edit in edits])
    editor.learn()
    learnt = editor.learnt(scope)
    return Applied(
        patch=editor.patch(scope),
        ids=[each.id for each in learnt],
        seconds=[each.change.seconds for each in learnt],
        nbytes=sum(each.change.nbytes for each in learnt),
    )


@dataclass(frozen=True, slots=True)
class Remembering:
    """The plain alternative: each edit is a statement in a store of texts, and what is recalled for
    a question stands before it."""

    llm: LLM
    embedder: Callable[[], Embedder]
    folder: Path
    name: str = REMEMBERED
    spec: str = "scm:summarise_above=2048"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The store, and the room that notes have."""
        return {"spec": self.spec, "tokens": NOTES}

    @contextmanager
    def opened(self) -> Iterator[Callable[[Window], Applied]]:
        """Each window is a user with notes of its own."""
        context = StoreContext(folder=self.folder, llm=self.llm, embedder=self.embedder)
        memory = open_memory(self.spec, context)
        try:
            yield lambda window: self._told(memory, window)
        finally:
            memory.close()
        rmtree(self.folder, ignore_errors=True)

    def _told(self, memory: Any, window: Window) -> Applied:
        told, asking = (Scope(user=window.name, session=name) for name in ("told", "asking"))
        records = [Record(text=fact.edit.text, scope=told, kind="fact") for fact in window.facts]
        seconds = []
        for record in records:
            began = time.perf_counter()
            memory.write([record])
            seconds.append(time.perf_counter() - began)
        texts: dict[str, str] = {record.id: record.text for record in records}

        def ask(prompt: str) -> str:
            found: Prompt = memory.recall(
                Cue(message=prompt, scope=asking, budget=NOTES, now=now())
            )
            notes = [texts[id] for note in found.notes for id in note.records]
            return "\n".join([*dict.fromkeys(notes), prompt])

        return Applied(
            ask=ask, seconds=seconds, nbytes=sum(len(text.encode()) for text in texts.values())
        )
